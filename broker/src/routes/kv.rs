//! The name service's key-value configuration, kept in `config/kvConfig.json`:
//!
//! ```text
//! {"configTable":{"ORDER_TOPIC_CONFIG":{"orders":"broker-a:4;broker-b:4"}}}
//! ```
//!
//! The file is replaced before a change is acknowledged: a crash leaves the table before or after it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use gantry_proto::json::{self, IntKeys};
use serde::{Deserialize, Serialize};

use crate::saved::{SaveError, SavedFile};
use crate::store::layout::load_json;

/// The namespace whose values say how the queues of an ordered topic are spread.
pub const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";
/// Pairs over all namespaces, at the most.
pub const PAIRS_MAX: usize = 10_000;
/// Bytes of a namespace or key, at the most.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of all names and values together, at the most.
pub const BYTES_MAX: usize = 4 << 20;

/// Why a pair was not put or deleted.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// No namespace or no key.
    #[error("the namespace or the key is empty: name both")]
    Empty,
    /// A namespace or key that is too long.
    #[error("a namespace or key of {len} bytes; the limit is {NAME_BYTES_MAX}: choose a shorter one")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// No room.
    #[error(
        "the configuration would hold {pairs} pairs of {bytes} bytes; the limits are {PAIRS_MAX} and {BYTES_MAX}: delete some first"
    )]
    Full {
        /// Pairs there would be.
        pairs: usize,
        /// Bytes there would be.
        bytes: usize,
    },
    /// In memory, but not on the disk.
    #[error(transparent)]
    Save(#[from] SaveError),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Table {
    config_table: BTreeMap<String, BTreeMap<String, String>>,
}

impl Table {
    fn pairs(&self) -> usize {
        self.config_table.values().map(BTreeMap::len).sum()
    }

    fn bytes(&self) -> usize {
        let pair = |(key, value): (&String, &String)| key.len() + value.len();
        let space =
            |(name, pairs): (&String, &BTreeMap<_, _>)| name.len() + pairs.iter().map(pair).sum::<usize>();
        self.config_table.iter().map(space).sum()
    }
}

/// All pairs.
#[derive(Debug)]
pub struct KvConfig {
    table: RwLock<Table>,
    file: SavedFile,
}

impl KvConfig {
    /// Reads `kvConfig.json` in `config_dir`; without the file there are no pairs.
    pub fn open(config_dir: &Path) -> io::Result<Self> {
        let path = config_dir.join("kvConfig.json");
        let table = load_json(&path, |bytes| json::from_slice::<Table>(bytes).ok())?.unwrap_or_default();
        Ok(Self { table: RwLock::new(table), file: SavedFile::new(path) })
    }

    /// Sets a pair. Kept when it returns.
    pub fn put(&self, namespace: &str, key: &str, value: &str) -> Result<(), KvError> {
        if namespace.is_empty() || key.is_empty() {
            return Err(KvError::Empty);
        }
        let len = namespace.len().max(key.len());
        if len > NAME_BYTES_MAX {
            return Err(KvError::TooLong { len });
        }
        let revision = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let before = table.config_table.get(namespace).and_then(|pairs| pairs.get(key));
            let pairs = table.pairs() + usize::from(before.is_none());
            let replaced = before.map_or(0, |value| key.len() + value.len());
            let bytes = (table.bytes() + namespace.len() + key.len() + value.len()).saturating_sub(replaced);
            if pairs > PAIRS_MAX || bytes > BYTES_MAX {
                return Err(KvError::Full { pairs, bytes });
            }
            let space = table.config_table.entry(namespace.to_owned()).or_default();
            space.insert(key.to_owned(), value.to_owned());
            self.file.changed()
        };
        self.file.save(revision, || self.encode()).map(drop).map_err(KvError::from)
    }

    /// Deletes a pair; it may be gone already. Kept when it returns.
    pub fn delete(&self, namespace: &str, key: &str) -> Result<(), KvError> {
        let revision = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let Some(pairs) = table.config_table.get_mut(namespace) else { return Ok(()) };
            if pairs.remove(key).is_none() {
                return Ok(());
            }
            if pairs.is_empty() {
                table.config_table.remove(namespace);
            }
            self.file.changed()
        };
        self.file.save(revision, || self.encode()).map(drop).map_err(KvError::from)
    }

    /// The value of a pair.
    pub fn get(&self, namespace: &str, key: &str) -> Option<String> {
        self.read().config_table.get(namespace)?.get(key).cloned()
    }

    /// All pairs of a namespace; `None` when it has none.
    pub fn list(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.read().config_table.get(namespace).cloned()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn encode(&self) -> Vec<u8> {
        json::to_vec(&*self.read(), IntKeys::Quoted)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn pairs_survive_in_apaches_form() {
        let dir = TempDir::new().unwrap();
        let kv = KvConfig::open(dir.path()).unwrap();
        kv.put(ORDER_TOPIC_CONFIG, "orders", "broker-a:4").unwrap();
        kv.put("other", "k", "v").unwrap();
        kv.put("other", "k", "w").unwrap();
        kv.delete("other", "unknown").unwrap();
        kv.delete("unknown", "k").unwrap();
        let text = std::fs::read_to_string(kv.path()).unwrap();
        assert_eq!(
            text,
            r#"{"configTable":{"ORDER_TOPIC_CONFIG":{"orders":"broker-a:4"},"other":{"k":"w"}}}"#
        );
        let again = KvConfig::open(dir.path()).unwrap();
        assert_eq!(again.get(ORDER_TOPIC_CONFIG, "orders").as_deref(), Some("broker-a:4"));
        again.delete("other", "k").unwrap();
        assert_eq!(KvConfig::open(dir.path()).unwrap().list("other"), None);
    }

    #[test]
    fn what_breaks_a_limit_is_refused() {
        let dir = TempDir::new().unwrap();
        let kv = KvConfig::open(dir.path()).unwrap();
        assert!(matches!(kv.put("", "k", "v"), Err(KvError::Empty)));
        assert!(matches!(kv.put("n", &"k".repeat(256), "v"), Err(KvError::TooLong { len: 256 })));
        let error = kv.put("n", "k", &"v".repeat(BYTES_MAX)).unwrap_err();
        assert!(error.to_string().contains("delete some first"), "{error}");
        assert_eq!(kv.list("n"), None);
        {
            let mut table = kv.table.write().unwrap();
            let full = (0..PAIRS_MAX).map(|n| (n.to_string(), String::new())).collect();
            table.config_table.insert("n".to_owned(), full);
        }
        assert!(matches!(kv.put("m", "k", "v"), Err(KvError::Full { pairs: 10_001, .. })));
        kv.put("n", "7", "a pair that is there may change").unwrap();
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_an_empty_one() {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("kvConfig.json"), b"{\"configTable\":").unwrap();
        assert!(KvConfig::open(dir.path()).is_err());
    }
}
