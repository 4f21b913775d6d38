//! Commands written by the Java implementation, for the tests.

use bytes::Bytes;
use serde_json::Value;

use super::codes::Language;
use super::frame::Serialize;
use super::header::{ExtFields, OwnedCommand};

/// One sampled frame and what it says.
pub(super) struct Sample {
    pub name: String,
    pub serialize: Serialize,
    pub bytes: Vec<u8>,
    decoded: Value,
}

/// All samples of one version.
pub(super) fn commands(version: &str) -> Vec<Sample> {
    let path = format!("{}/../tests/vectors/remoting_commands.{version}.json", env!("CARGO_MANIFEST_DIR"));
    let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    entries.into_iter().map(Sample::new).collect()
}

impl Sample {
    fn new(mut entry: Value) -> Self {
        let text = |key: &str| entry[key].as_str().unwrap().to_owned();
        let hex = text("hex");
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        let serialize = if text("serialize") == "JSON" { Serialize::Json } else { Serialize::RocketMq };
        Self { name: text("name"), serialize, bytes: bytes.collect(), decoded: entry["decoded"].take() }
    }

    /// The command, built from the sample's own account of it, with sorted fields.
    pub(super) fn command(&self) -> OwnedCommand {
        let number = |key: &str| i32::try_from(self.decoded[key].as_i64().unwrap()).unwrap();
        let mut ext = ExtFields::new();
        for (name, value) in self.decoded["extFields"].as_object().into_iter().flatten() {
            ext.push(name.clone(), value.as_str().unwrap().to_owned());
        }
        let body_len = usize::try_from(self.decoded["body_len"].as_u64().unwrap()).unwrap();
        let body = Bytes::copy_from_slice(&self.bytes[self.bytes.len() - body_len..]);
        if let Some(text) = self.decoded["body_utf8"].as_str() {
            assert_eq!(text.as_bytes(), body, "{}", self.name);
        }
        OwnedCommand {
            code: number("code"),
            language: Language::from_name(self.decoded["language"].as_str().unwrap()),
            version: number("version"),
            opaque: number("opaque"),
            flag: number("flag"),
            remark: self.decoded["remark"].as_str().map(str::to_owned),
            ext,
            body,
        }
    }
}
