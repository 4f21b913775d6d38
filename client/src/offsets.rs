//! Offsets that a broadcasting consumer keeps for itself: in memory, or in a JSON file.
//!
//! ```json
//! {"orders@broker-a:0":17}
//! ```
//!
//! The file is replaced as a whole: a crash leaves the old or the new one.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gantry_proto::ids::QueueOffset;

use crate::error::{Error, Result};
use crate::message::MessageQueue;

/// The table, and where it lies.
#[derive(Debug, Default)]
pub(crate) struct LocalOffsets {
    file: Option<PathBuf>,
    table: BTreeMap<String, u64>,
    changed: bool,
}

impl LocalOffsets {
    /// Reads the file, if there is one.
    pub(crate) fn open(file: Option<PathBuf>) -> Result<Self> {
        let table = match &file {
            None => BTreeMap::new(),
            Some(path) => read(path).map_err(|error| {
                Error::invalid(format!("the offsets file {} cannot be read: {error}", path.display()))
                    .because(error)
            })?,
        };
        Ok(Self { file, table, changed: false })
    }

    pub(crate) fn get(&self, queue: &MessageQueue) -> Option<QueueOffset> {
        self.table.get(&queue.to_string()).copied().map(QueueOffset::new)
    }

    pub(crate) fn set(&mut self, queue: &MessageQueue, offset: QueueOffset) {
        self.changed |= self.table.insert(queue.to_string(), offset.get()) != Some(offset.get());
    }

    /// What is to be written, and where; `None` when nothing changed or it is kept in memory.
    pub(crate) fn take_changes(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let bytes = serde_json::to_vec(&self.table).unwrap_or_default();
        Some((self.file.clone()?, bytes))
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the file.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let mut file = std::fs::File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use gantry_proto::ids::QueueId;
    use gantry_proto::names::{BrokerName, TopicName};

    use super::*;

    #[test]
    fn offsets_come_back_from_the_file_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offsets.json");
        let queue = MessageQueue {
            topic: TopicName::internal("T"),
            broker: BrokerName::internal("b"),
            id: QueueId::new(3),
        };
        let mut offsets = LocalOffsets::open(Some(path.clone())).unwrap();
        assert_eq!(offsets.get(&queue), None);
        offsets.set(&queue, QueueOffset::new(9));
        let (to, bytes) = offsets.take_changes().unwrap();
        replace(&to, &bytes).unwrap();
        offsets.set(&queue, QueueOffset::new(9));
        assert_eq!(offsets.take_changes(), None);
        assert_eq!(LocalOffsets::open(Some(path.clone())).unwrap().get(&queue), Some(QueueOffset::new(9)));
        std::fs::write(&path, b"{").unwrap();
        assert!(LocalOffsets::open(Some(path)).is_err());
    }
}
