//! The two checkpoint files.
//!
//! `gantry.checkpoint` (JSON) says up to which log position each projection is durable: recovery
//! starts at the smallest. `checkpoint` is the peer's, 4096 bytes, and kept so that it can take the
//! store over:
//!
//! ```text
//!  0                8                16               24               32               40
//!  +----------------+----------------+----------------+----------------+----------------+----------------+
//!  | physicMsgTime  | logicsMsgTime  | indexMsgTime   | masterFlushed  | confirmPhy     | logicsPhy      |
//!  +----------------+----------------+----------------+----------------+----------------+----------------+
//! ```
//!
//! Both are replaced as a whole, so a crash leaves the old or the new one.

use std::collections::BTreeMap;
use std::io;

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::reader::Reader;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::gaps::Gap;
use super::layout::Layout;

/// The newest store format this program knows.
pub const FORMAT: u32 = 1;
const PEER_BYTES: usize = 4096;

/// Our own checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Format of the store; a larger number than [`FORMAT`] is from a newer program.
    pub format: u32,
    /// Log bytes below are on the disk.
    pub flushed: u64,
    /// Length of the log's files in bytes; `None` in checkpoints of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_bytes: Option<u64>,
    /// How many entries all consume queues had ever had for the log below their position here: tells queue
    /// files that lost their ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_entries: Option<u64>,
    /// For each projection, the log position below which it is durable.
    pub projections: BTreeMap<String, u64>,
    /// Places of the log that a start has passed over, at most [`GAPS_MAX`](super::gaps::GAPS_MAX).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// The machine's run in which this was written, see [`Disk::boot`]; `None` where it cannot be told, and in
    /// checkpoints of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

impl Positions {
    /// Of a store that has no log yet.
    pub fn of_new(segment_bytes: u64, boot: Option<String>) -> Self {
        Self { format: FORMAT, segment_bytes: Some(segment_bytes), boot, ..Self::default() }
    }

    /// Whether the machine has not stopped since, so that its power cannot have failed.
    pub fn is_of_this_boot(&self, disk: &dyn Disk) -> bool {
        self.boot.is_some() && self.boot == disk.boot()
    }

    /// Where recovery must start for all of `names`: zero when one of them is new.
    pub fn start(&self, names: &[&str]) -> PhyOffset {
        let positions = names.iter().map(|name| self.projections.get(*name).copied().unwrap_or(0));
        PhyOffset::new(positions.min().unwrap_or(0))
    }
}

/// The peer's checkpoint, the fields we use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCheckpoint {
    /// Store time of the last flushed record.
    pub physic_msg_time: Millis,
    /// Store time of the last record whose queue entry is durable.
    pub logics_msg_time: Millis,
    /// Store time of the last record of a full index file.
    pub index_msg_time: Millis,
    /// Log position of the last record whose queue entry is durable (written since 5.4).
    pub logics_phy: PhyOffset,
}

impl PeerCheckpoint {
    /// Reads the file's bytes; `None` when it is too short to be one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let mut next = || reader.i64("checkpoint field").ok();
        let (physic, logics, index) = (next()?, next()?, next()?);
        let (_master, _confirm, logics_phy) = (next()?, next()?, next()?);
        Some(Self {
            physic_msg_time: Millis::new(physic),
            logics_msg_time: Millis::new(logics),
            index_msg_time: Millis::new(index),
            logics_phy: PhyOffset::from_wire(logics_phy)?,
        })
    }

    /// The whole file.
    pub fn encode(&self, confirmed: PhyOffset) -> Vec<u8> {
        let fields = [
            self.physic_msg_time.get(),
            self.logics_msg_time.get(),
            self.index_msg_time.get(),
            0,
            confirmed.to_wire(),
            self.logics_phy.to_wire(),
        ];
        let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
        bytes.resize(PEER_BYTES, 0);
        bytes
    }

    /// The store time up to which a crashed peer's files are safe.
    pub fn safe_time(&self) -> Millis {
        self.physic_msg_time.min(self.logics_msg_time).minus(3000)
    }
}

/// Why our checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file was written by a newer program.
    #[error(
        "the store has format {found}, this program knows {FORMAT}: start it with the newer version that wrote it"
    )]
    Newer {
        /// The store's format.
        found: u32,
    },
    /// The file cannot be read.
    #[error("cannot read the store's checkpoint")]
    Io(#[from] io::Error),
}

/// Loads our checkpoint; `None` when there is none or it is damaged (recovery then reads more).
pub fn load(layout: &Layout) -> Result<Option<Positions>, CheckpointError> {
    let bytes = match std::fs::read(layout.positions()) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match serde_json::from_slice::<Positions>(&bytes) {
        Ok(positions) if positions.format > FORMAT => Err(CheckpointError::Newer { found: positions.format }),
        Ok(positions) => Ok(Some(positions)),
        Err(error) => {
            tracing::warn!(%error, "gantry.checkpoint is damaged; the whole log is read instead");
            Ok(None)
        }
    }
}

/// Loads the peer's checkpoint.
pub fn load_peer(layout: &Layout) -> Option<PeerCheckpoint> {
    PeerCheckpoint::decode(&std::fs::read(layout.checkpoint()).ok()?)
}

/// The log bytes below are on the disk. The peer's file says more than ours when Apache's broker had the store since; our
/// own never does.
pub fn flushed(positions: &Positions, peer: Option<&PeerCheckpoint>) -> u64 {
    peer.map_or(0, |peer| peer.logics_phy.get()).max(positions.flushed)
}

/// Replaces both checkpoints.
pub fn save(
    disk: &dyn Disk,
    layout: &Layout,
    positions: &Positions,
    peer: &PeerCheckpoint,
) -> io::Result<()> {
    save_positions(disk, layout, positions)?;
    disk.replace(&layout.checkpoint(), &peer.encode(PhyOffset::new(positions.flushed)))
}

/// Replaces our own checkpoint only.
pub fn save_positions(disk: &dyn Disk, layout: &Layout, positions: &Positions) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(positions).map_err(io::Error::other)?;
    disk.replace(&layout.positions(), &bytes)
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::super::gaps::GapKind;
    use super::*;

    #[test]
    fn the_peers_file_round_trips() {
        let peer = PeerCheckpoint {
            physic_msg_time: Millis::new(10_000),
            logics_msg_time: Millis::new(9_000),
            index_msg_time: Millis::ZERO,
            logics_phy: PhyOffset::new(77),
        };
        let bytes = peer.encode(PhyOffset::new(99));
        assert_eq!(bytes.len(), PEER_BYTES);
        assert_eq!(PeerCheckpoint::decode(&bytes), Some(peer));
        assert_eq!(peer.safe_time(), Millis::new(6_000));
        assert_eq!(PeerCheckpoint::decode(&bytes[..47]), None);
    }

    #[test]
    fn a_checkpoint_of_an_older_version_has_no_gaps_and_one_without_gaps_does_not_name_them() {
        let old = r#"{"format":1,"flushed":5,"projections":{"queues":4}}"#;
        let positions: Positions = serde_json::from_str(old).expect("positions");
        assert_eq!(positions.gaps, []);
        assert_eq!(serde_json::to_string(&positions).expect("text"), old);
    }

    #[test]
    fn a_newer_format_is_refused_and_a_damaged_file_is_not_fatal() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(dir.path());
        assert_eq!(load(&layout).expect("none yet"), None);
        let mut positions = Positions { format: FORMAT, flushed: 5, ..Positions::default() };
        positions.projections.insert("queues".to_owned(), 4);
        positions.gaps.push(Gap { from: 1, to: 3, kind: GapKind::Unflushed, since: 9 });
        save(&RealDisk, &layout, &positions, &PeerCheckpoint::default()).expect("saved");
        assert_eq!(load(&layout).expect("loaded"), Some(positions.clone()));
        assert_eq!(positions.start(&["queues"]), PhyOffset::new(4));
        assert_eq!(positions.start(&["queues", "new"]), PhyOffset::ZERO);
        positions.format = FORMAT + 1;
        save(&RealDisk, &layout, &positions, &PeerCheckpoint::default()).expect("saved");
        assert!(matches!(load(&layout), Err(CheckpointError::Newer { found: 2 })));
        std::fs::write(layout.positions(), b"{").expect("written");
        assert_eq!(load(&layout).expect("damaged"), None);
    }
}
