//! The golden vectors under `tests/vectors`, made by the real Java classes and brokers.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Path of a vector file.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name)
}

/// A vector file as JSON.
pub fn load(name: &str) -> Value {
    let text = std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Bytes of a lower-case hex text.
pub fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    text.as_bytes().chunks(2).map(|two| pair(two).unwrap_or_else(|| panic!("not hex: {text}"))).collect()
}

/// Makes the files of a vector store (`store/files.json`, `small_store/*.json`) under `dir`, sparse.
pub fn make_store(vector: &str, dir: &Path) {
    let description = load(vector);
    let files = description["files"].as_object().expect("a map of files");
    for (name, file) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("files lie in the store")).expect("a directory");
        let made = File::create(&path).expect("a file");
        made.set_len(file["length"].as_u64().expect("a length")).expect("sparse length");
        for segment in file["segments"].as_array().expect("segments") {
            let at = segment[0].as_u64().expect("an offset");
            let bytes = unhex(segment[1].as_str().expect("hex"));
            made.write_all_at(&bytes, at).expect("written");
        }
    }
}
