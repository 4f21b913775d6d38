//! How much of a store on the disk is content.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

const CHUNK: usize = 1 << 20;

/// Bytes of all files below a directory up to the last one that is not zero. Brokers allocate files ahead, as
/// zeroes: their length says nothing, and neither do their blocks. Take the *difference* of two looks: tables of
/// fixed length (hash slots of an index) are in both.
pub fn content_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let content = if entry.file_type()?.is_dir() {
            content_bytes(&entry.path())
        } else {
            File::open(entry.path()).and_then(|file| content_of(&file))
        };
        bytes += match content {
            // A broker that runs removes files.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            other => other?,
        };
    }
    Ok(bytes)
}

fn content_of(file: &File) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    for (start, mut end) in pieces(file)?.into_iter().rev() {
        while end > start {
            let length = (end - start).min(CHUNK as u64);
            let part = chunk.get_mut(..usize::try_from(length).unwrap_or(CHUNK)).unwrap_or_default();
            match file.read_exact_at(part, end - length) {
                // It became shorter meanwhile.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                other => other?,
            }
            if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
                return Ok(end - length + last as u64 + 1);
            }
            end -= length;
        }
    }
    Ok(0)
}

/// Where something was written, as the file system knows it: 10,000 queues have files of 60 GB in all, of which
/// nearly nothing ever was.
fn pieces(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let length = file.metadata()?.len();
    let mut pieces = Vec::new();
    let mut end = 0;
    while end < length {
        let start = match seek(file, SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // It became shorter meanwhile.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        pieces.push((start, end));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allocated_ahead_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("queue")).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        log.set_len(3 << 20).unwrap();
        log.write_all_at(b"end", 1 << 20).unwrap();
        fs::write(dir.path().join("queue/0"), [1, 0, 2, 0, 0]).unwrap();
        File::create(dir.path().join("empty")).unwrap();
        let sparse = File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        sparse.write_all_at(b"far", 1 << 39).unwrap();
        assert_eq!(content_bytes(dir.path()).unwrap(), (1 << 20) + 3 + 3 + (1 << 39) + 3);
    }
}
