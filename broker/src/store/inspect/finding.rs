//! What an inspection finds wrong, and how much of it is kept.

use std::collections::BTreeMap;
use std::fmt;

use gantry_proto::record::RecordView;
use serde::Serialize;

/// The part of the store that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// The commit log.
    Log,
    /// The consume queues.
    Queue,
    /// The key index.
    Index,
    /// The two checkpoint files.
    Checkpoint,
    /// The JSON files.
    Config,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was kept is lost or wrong.
    Damage,
    /// What a crash leaves behind: the next start cuts it off or builds it again.
    Mended,
    /// A gap of the log that an earlier start has passed over, of writes that were under way.
    Gap,
}

/// The message that a finding is about, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageRef {
    /// Its topic.
    pub topic: String,
    /// Its queue.
    pub queue_id: u32,
    /// Its number in the queue.
    pub queue_offset: u64,
    /// Its id, as the client made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl MessageRef {
    /// The message of a record.
    pub fn of(view: &RecordView<'_>) -> Self {
        Self {
            topic: view.topic().to_owned(),
            queue_id: view.queue_id().get(),
            queue_offset: view.queue_offset().get(),
            id: view.properties().uniq_key().map(str::to_owned),
        }
    }
}

impl fmt::Display for MessageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {:?} queue {} offset {}", self.topic, self.queue_id, self.queue_offset)?;
        self.id.as_ref().map_or(Ok(()), |id| write!(f, " id {id:?}"))
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The part of the store.
    pub area: Area,
    /// The file, below the store's directory.
    pub file: String,
    /// The byte of the file where it is.
    pub byte: u64,
    /// The message it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageRef>,
    /// What is wrong.
    pub what: String,
    /// What to try.
    pub advice: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Damage => "damage",
            Severity::Mended => "mended at the next start",
            Severity::Gap => "gap",
        };
        write!(f, "{kind}: {} at byte {}: ", self.file, self.byte)?;
        if let Some(message) = &self.message {
            write!(f, "{message}: ")?;
        }
        write!(f, "{}; {}", self.what, self.advice)
    }
}

/// All that was found: how much, and the first of it.
#[derive(Clone, Debug)]
pub struct Findings {
    kept: BTreeMap<Area, Vec<Finding>>,
    max: usize,
    damage: u64,
    mended: u64,
    gaps: u64,
}

impl Findings {
    /// None yet; the first `max` of each area will be kept.
    pub(super) fn new(max: usize) -> Self {
        Self { kept: BTreeMap::new(), max, damage: 0, mended: 0, gaps: 0 }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Damage => self.damage += 1,
            Severity::Mended => self.mended += 1,
            Severity::Gap => self.gaps += 1,
        }
        let kept = self.kept.entry(finding.area).or_default();
        if kept.len() < self.max {
            kept.push(finding);
        }
    }

    /// How many are damage.
    pub const fn damage(&self) -> u64 {
        self.damage
    }

    /// How many are mended by the next start.
    pub const fn mended(&self) -> u64 {
        self.mended
    }

    /// How many are gaps of writes that were under way, which is no damage.
    pub const fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Those that were kept, by area.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.values().flatten()
    }

    /// How many more there are than were kept.
    pub fn more(&self) -> u64 {
        let kept: usize = self.kept.values().map(Vec::len).sum();
        (self.damage + self.mended + self.gaps).saturating_sub(kept as u64)
    }
}
