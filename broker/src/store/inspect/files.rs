//! The small files: both checkpoints, and the JSON files of `config/`.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::json;

use super::super::checkpoint::{self, PeerCheckpoint, Positions};
use super::super::disk::{Disk as _, ReadOnlyDisk};
use super::super::layout::Layout;
use super::super::recover;
use super::super::segments::Segments;
use super::finding::{Area, Finding, Findings, Severity};
use super::log::{LogFiles, Scanned};
use super::{Known, START};

const CHECKPOINT: &str = "remove the file: the next start reads more of the log instead";
const CONFIG: &str =
    "restore the file from its .bak or a backup, or remove it to start without what it holds";

/// Where the next start begins to apply records again.
pub fn replayed_from(layout: &Layout, log: &LogFiles, positions: Option<&Positions>, max_phy: u64) -> u64 {
    if let Some(positions) = positions {
        return positions.start(&["queues"]).get();
    }
    // As a start does it: at a file whose first record the peer had dispatched for sure.
    let dispatched = max_phy.max(log.min()).saturating_sub(1);
    let file = (dispatched - dispatched % log.file_bytes()).max(log.min());
    let Some(peer) = checkpoint::load_peer(layout) else { return log.min() };
    match Segments::open(Arc::new(ReadOnlyDisk), layout.commit_log(), log.file_bytes(), false) {
        Ok(segments) => recover::from_peer(&segments, &peer).get().min(file),
        Err(_) => log.min(), // the files themselves are a finding already
    }
}

/// The checkpoint and the queues do not agree how many entries there are.
pub fn miscounted(known: &Known, found: u64, expected: u64) -> Finding {
    Finding {
        severity: if known.is_clean() { Severity::Damage } else { Severity::Mended },
        area: Area::Checkpoint,
        file: "gantry.checkpoint".to_owned(),
        byte: 0,
        message: None,
        what: format!("it counts {expected} entries of all queues, the queues have {found}"),
        advice: "the next start builds all queues again from the log",
    }
}

/// Names of the topics in `config/topics.json`; `None` when it cannot be read.
pub fn topics(layout: &Layout) -> Option<BTreeSet<String>> {
    let bytes = std::fs::read(layout.config().join("topics.json")).ok()?;
    let file = json::parse(&bytes).ok()?;
    let table = file.get("topicConfigTable")?.as_object()?;
    Some(table.keys().cloned().collect())
}

/// Positions of our checkpoint, which must be places between records.
#[derive(Debug)]
pub struct Checkpoints {
    positions: Vec<(String, u64, bool)>,
}

impl Checkpoints {
    /// The positions to look for.
    pub fn new(positions: Option<&Positions>) -> Self {
        let named = positions.into_iter().flat_map(|known| {
            let own = known.projections.iter().map(|(name, at)| (name.clone(), *at, false));
            own.chain([("flushed".to_owned(), known.flushed, false)])
        });
        Self { positions: named.collect() }
    }

    /// A record starts or ends at `at`.
    pub fn boundary(&mut self, at: u64) {
        for (_, _, seen) in self.positions.iter_mut().filter(|(_, position, _)| *position == at) {
            *seen = true;
        }
    }

    /// Says which positions cannot be.
    pub fn finish(
        self,
        layout: &Layout,
        known: &Known,
        scanned: &Scanned,
        log: &LogFiles,
        findings: &mut Findings,
    ) {
        let add = |findings: &mut Findings, file: &str, byte, what| {
            let severity = if known.is_clean() { Severity::Damage } else { Severity::Mended };
            findings.add(Finding {
                severity,
                area: Area::Checkpoint,
                file: file.to_owned(),
                byte,
                message: None,
                what,
                advice: if known.is_clean() { CHECKPOINT } else { START },
            });
        };
        for (name, at, seen) in self.positions {
            let inside = (log.min()..=scanned.end).contains(&at);
            let mut stretches = scanned.damaged.list.iter().chain(&scanned.gaps.list);
            let in_damage = stretches.any(|(from, to)| (*from..*to).contains(&at));
            // That the log does not reach to where it was flushed was told.
            if inside && !seen && !in_damage || at > scanned.end && name != "flushed" {
                let what =
                    format!("{name} is said to be at log position {at}, where no record starts or ends");
                add(findings, "gantry.checkpoint", 0, what);
            }
        }
        if !known.is_ours && layout.positions().exists() {
            add(findings, "gantry.checkpoint", 0, "it cannot be read".to_owned());
        }
        let Ok(bytes) = std::fs::read(layout.checkpoint()) else { return };
        let Some(peer) = PeerCheckpoint::decode(&bytes) else {
            let what = format!("{} bytes are no checkpoint", bytes.len());
            return add(findings, "checkpoint", 0, what);
        };
        let times = [(0, peer.physic_msg_time), (8, peer.logics_msg_time), (16, peer.index_msg_time)];
        for (byte, time) in times {
            if time.get() < 0 || scanned.records > 0 && time.get() > scanned.newest {
                let what = format!(
                    "time {time} is not one up to {}, when the newest record was stored",
                    scanned.newest
                );
                add(findings, "checkpoint", byte, what);
            }
        }
        if peer.logics_phy.get() > scanned.end {
            let what = format!("log position {} is behind the end of the log", peer.logics_phy);
            add(findings, "checkpoint", 40, what);
        }
    }
}

/// Reads every JSON file of `config/`; gives how many there are.
pub fn check_config(layout: &Layout, findings: &mut Findings) -> io::Result<u64> {
    let mut count = 0;
    for (name, _) in ReadOnlyDisk.list(&layout.config())? {
        let plain = Path::new(name.strip_suffix(".bak").unwrap_or(&name));
        if plain.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        count += 1;
        let bytes = std::fs::read(layout.config().join(&name))?;
        if let Err(error) = json::parse(&bytes) {
            findings.add(Finding {
                severity: Severity::Damage,
                area: Area::Config,
                file: format!("config/{name}"),
                byte: error.at as u64,
                message: None,
                what: format!("it is no JSON: {error}"),
                advice: CONFIG,
            });
        }
    }
    Ok(count)
}
