//! The consume queues: each entry against its record, each record against its entry.
//!
//! Records come in log order, and so do the entries of each queue: a cursor for each queue follows the log. Entries
//! that no record came for are looked at one by one: they may stand for messages that are gone, or name anything.
//!
//! A topic that is deleted leaves its records in the log without entries, and one that is made anew lists its new
//! messages from number 0 on: a record whose number is taken by a later record of the same queue is none that
//! lacks an entry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::record::{HotProperties, RecordView};

use super::super::checkpoint::Positions;
use super::super::disk::{Disk as _, Map, ReadOnlyDisk, offset_path, parse_offset_name};
use super::super::dispatch::{DelayLevels, is_listed, listed_tags_code};
use super::super::layout::Layout;
use super::super::queue::{ENTRY_BYTES, QueueEntry, partition_point};
use super::super::queues::QUEUE_ID_MAX;
use super::finding::{Area, Finding, Findings, MessageRef, Severity};
use super::log::LogFiles;
use super::{Counts, Known, REBUILD, START, first_nonzero, open_map};

/// Files that are mapped at a time.
const MAPS_MAX: usize = 4096;
/// Queues without files that are remembered one by one.
const ORPHANS_MAX: usize = 10_000;
/// Tags codes below stand for an address in `consumequeue_ext`, where the peer keeps longer entries.
const EXT_BELOW: i64 = i32::MIN as i64;

/// All queues of the store.
#[derive(Debug)]
pub struct QueueChecks {
    layout: Layout,
    delay_levels: DelayLevels,
    file_bytes: u64,
    has_ext: bool,
    topics: HashMap<String, BTreeMap<u32, QueueCheck>>,
    mapped: usize,
    /// Topics that exist; `None` when that is not known.
    existing: Option<BTreeSet<String>>,
    /// Whether the checkpoint says that no queue lacks entries; `None` when it does not say.
    is_whole: Option<bool>,
    /// Records that should be in queues that have no entries, by queue: how many, and the first.
    orphans: BTreeMap<(String, u32), (u64, MessageRef, u64)>,
    counts: Counts,
}

/// One queue.
#[derive(Debug, Default)]
struct QueueCheck {
    /// First bytes of its files.
    starts: Vec<u64>,
    /// Number of the first entry.
    first: u64,
    /// The number behind the last entry.
    end: u64,
    /// The next entry that no record came for yet.
    cursor: u64,
    /// The number behind the last entry that the next start keeps.
    kept: u64,
    /// Where the record of the last entry lies.
    last_phy: Option<u64>,
    /// The file that is being read.
    map: Option<(u64, Map)>,
}

/// What a slot of a queue file holds.
enum Held {
    Entry(QueueEntry),
    Nothing,
}

impl QueueChecks {
    /// Lists the queues and finds their ends.
    pub fn open(layout: &Layout, delay_levels: &DelayLevels, findings: &mut Findings) -> io::Result<Self> {
        let dir = layout.root().join("consumequeue");
        let mut listed = Vec::new();
        let mut lengths: BTreeMap<u64, u64> = BTreeMap::new();
        for topic in ReadOnlyDisk.dirs(&dir)? {
            for id in ReadOnlyDisk.dirs(&dir.join(&topic))? {
                let Some(number) = id.parse().ok().filter(|id| *id <= QUEUE_ID_MAX) else { continue };
                let files = ReadOnlyDisk.list(&dir.join(&topic).join(&id))?;
                let files: Vec<(u64, u64)> = files
                    .iter()
                    .filter_map(|(name, len)| parse_offset_name(name).map(|start| (start, *len)))
                    .collect();
                for (_, len) in &files {
                    *lengths.entry(*len).or_default() += 1;
                }
                listed.push((topic.clone(), number, files));
            }
        }
        // All are equally long; a few that are cut short do not say how long.
        let most = lengths.iter().max_by_key(|(len, count)| (**count, **len)).map_or(0, |(len, _)| *len);
        let file_bytes = most.div_ceil(ENTRY_BYTES).max(1) * ENTRY_BYTES;
        let mut checks = Self {
            layout: layout.clone(),
            delay_levels: delay_levels.clone(),
            file_bytes,
            has_ext: layout.root().join("consumequeue_ext").is_dir(),
            topics: HashMap::new(),
            mapped: 0,
            existing: None,
            is_whole: None,
            orphans: BTreeMap::new(),
            counts: Counts::default(),
        };
        for (topic, id, files) in listed {
            let check = checks.open_one(&topic, id, &files, findings)?;
            checks.counts.queues += 1;
            checks.counts.queue_files += files.len() as u64;
            checks.topics.entry(topic).or_default().insert(id, check);
        }
        Ok(checks)
    }

    fn open_one(
        &self,
        topic: &str,
        id: u32,
        files: &[(u64, u64)],
        findings: &mut Findings,
    ) -> io::Result<QueueCheck> {
        let mut check = QueueCheck::default();
        for &(start, len) in files {
            let expected = check.starts.last().map_or(start, |before| before + self.file_bytes);
            let wrong = if len != self.file_bytes {
                format!("the file is {len} bytes long, queue files are {}", self.file_bytes)
            } else if start != expected || start % self.file_bytes != 0 {
                format!("the file is not one that follows the one before, which ends at {expected}")
            } else {
                check.starts.push(start);
                continue;
            };
            // A short file is read as far as it goes.
            check.starts.push(start);
            findings.add(self.finding(topic, id, start / ENTRY_BYTES, None, wrong));
        }
        let Some(first) = check.starts.first() else { return Ok(check) };
        check.first = first / ENTRY_BYTES;
        check.cursor = check.first;
        check.end = check.first;
        let dir = queue_dir(&self.layout, topic, id);
        for start in check.starts.iter().rev() {
            let end = written_end(&offset_path(&dir, *start))?;
            if end > 0 {
                check.end = start / ENTRY_BYTES + end;
                break;
            }
        }
        check.kept = check.end;
        for number in (check.first..check.end).rev().take(64) {
            if let Held::Entry(entry) = self.read(topic, id, &mut check, number)?
                && !entry.is_blank()
            {
                check.last_phy = Some(entry.phy.get());
                break;
            }
        }
        check.map = None;
        Ok(check)
    }

    fn read(&self, topic: &str, id: u32, check: &mut QueueCheck, number: u64) -> io::Result<Held> {
        let byte = number * ENTRY_BYTES;
        let start = byte - byte % self.file_bytes;
        if check.map.as_ref().is_none_or(|(known, _)| *known != start) {
            check.map = None;
            if check.starts.binary_search(&start).is_err() {
                return Ok(Held::Nothing);
            }
            let path = offset_path(&queue_dir(&self.layout, topic, id), start);
            check.map = open_map(&path)?.1.map(|map| (start, map));
        }
        let Some((_, map)) = &check.map else { return Ok(Held::Nothing) };
        let from = usize::try_from(byte - start).unwrap_or(usize::MAX);
        let entry = map.get(from..).and_then(|rest| QueueEntry::decode(QueueOffset::new(number), rest));
        Ok(entry.map_or(Held::Nothing, Held::Entry))
    }

    /// The end of the last record that any queue names: how far a peer that stopped cleanly had dispatched.
    pub fn max_phy(&self) -> u64 {
        self.topics.values().flat_map(BTreeMap::values).filter_map(|check| check.last_phy).max().unwrap_or(0)
    }

    /// How many entries the queues ever had below `end`, and how many the checkpoint counted; `None` when it did
    /// not. Notes for each queue what a start keeps.
    pub fn count_below(&mut self, positions: Option<&Positions>, end: u64) -> Option<(u64, u64)> {
        let mut found = 0;
        let mut topics = std::mem::take(&mut self.topics);
        for (topic, queues) in &mut topics {
            for (id, check) in queues {
                let (first, count) = (check.first, check.end - check.first);
                let mut holds = |n: u64| {
                    let entry = self.read(topic, *id, check, first + n);
                    // As recovery cuts: an entry of a record that does not end below.
                    matches!(entry, Ok(Held::Entry(entry)) if entry.is_blank() && entry.phy.get() < end
                        || !entry.is_blank() && entry.phy.get() + u64::from(entry.size) <= end)
                };
                let (mut low, mut high) = (0, count);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if holds(middle) { low = middle + 1 } else { high = middle }
                }
                check.map = None;
                check.kept = first + low;
                // With nothing left a start begins the queue anew.
                found += if low == 0 && count > 0 { 0 } else { check.kept };
            }
        }
        self.topics = topics;
        positions.and_then(|known| known.queue_entries).map(|expected| (found, expected))
    }

    /// What tells a record that lost its entry from one of a deleted topic: the topics that exist, and whether the
    /// checkpoint counts as many entries as there are.
    pub fn judge_missing_by(&mut self, existing: Option<BTreeSet<String>>, is_whole: Option<bool>) {
        self.existing = existing;
        self.is_whole = is_whole;
    }

    /// Looks at the entry of a record.
    pub fn record(
        &mut self,
        view: &RecordView<'_>,
        hot: &HotProperties<'_>,
        log: &LogFiles,
        known: &Known,
        findings: &mut Findings,
    ) -> io::Result<()> {
        if !is_listed(view) || view.queue_id().get() > QUEUE_ID_MAX || self.is_elsewhere(view) {
            return Ok(());
        }
        let (topic, id) = (view.topic(), view.queue_id().get());
        let taken = self.topics.get_mut(topic).and_then(|queues| queues.get_mut(&id)).map(std::mem::take);
        let Some(mut check) = taken.filter(|check| !check.starts.is_empty()) else {
            self.orphan(view, known);
            return Ok(());
        };
        let looked = self.compare(&mut check, (view, hot), log, known, findings);
        if check.map.is_some() {
            self.mapped += 1;
        }
        if let Some(place) = self.topics.get_mut(topic).and_then(|queues| queues.get_mut(&id)) {
            *place = check;
        }
        if self.mapped > MAPS_MAX {
            self.mapped = 0;
            self.topics.values_mut().flat_map(BTreeMap::values_mut).for_each(|check| check.map = None);
        }
        looked
    }

    fn compare(
        &mut self,
        check: &mut QueueCheck,
        (view, hot): (&RecordView<'_>, &HotProperties<'_>),
        log: &LogFiles,
        known: &Known,
        findings: &mut Findings,
    ) -> io::Result<()> {
        if check.map.is_some() {
            self.mapped = self.mapped.saturating_sub(1);
        }
        let (topic, id, number) = (view.topic(), view.queue_id().get(), view.queue_offset().get());
        let phy = view.phy_offset().get();
        if number >= check.end {
            // A later record of the queue has a lower number: the topic was made anew in between.
            if check.last_phy.is_some_and(|last| last > phy) {
                self.counts.records_of_deleted_topics += 1;
            } else {
                self.missing(check, view, known, findings);
            }
            return Ok(());
        }
        if number < check.first {
            self.missing(check, view, known, findings);
            return Ok(());
        }
        let held = self.read(topic, id, check, number)?;
        let wrong = match held {
            Held::Nothing => "the entry of this message holds nothing that is an entry".to_owned(),
            Held::Entry(entry) if entry.is_blank() => {
                "the entry says that this message is gone, but its record is in the log".to_owned()
            }
            Held::Entry(entry) if entry.phy != view.phy_offset() => {
                let later = entry.phy > view.phy_offset();
                if later && is_message(log, &entry, topic, id)? {
                    self.counts.records_of_deleted_topics += 1;
                    return Ok(());
                }
                format!("the entry leads to log position {}, the record lies at {phy}", entry.phy)
            }
            Held::Entry(entry) => match self.differing(&entry, view, hot) {
                None => {
                    self.pass(check, (topic, id), number, log, known, findings)?;
                    self.counts.entries += 1;
                    check.cursor = check.cursor.max(number + 1);
                    return Ok(());
                }
                Some(wrong) => wrong,
            },
        };
        self.pass(check, (topic, id), number, log, known, findings)?;
        check.cursor = check.cursor.max(number + 1);
        let severity = known.severity_at(phy);
        let finding = self.finding(topic, id, number, Some(MessageRef::of(view)), wrong);
        findings.add(mendable(finding, severity));
        Ok(())
    }

    /// What else of the entry is not the record's.
    fn differing(
        &self,
        entry: &QueueEntry,
        view: &RecordView<'_>,
        hot: &HotProperties<'_>,
    ) -> Option<String> {
        if entry.size != view.total_size() {
            return Some(format!(
                "the entry says {} bytes, the record has {}",
                entry.size,
                view.total_size()
            ));
        }
        let expected = listed_tags_code(TopicKind::of(view.topic()), view, hot, &self.delay_levels);
        if entry.tags_code == expected || self.has_ext && entry.tags_code < EXT_BELOW {
            return None;
        }
        Some(format!("the entry has tags code {}, the record's is {expected}", entry.tags_code))
    }

    /// Looks at the entries up to `number`, which no record came for.
    fn pass(
        &mut self,
        check: &mut QueueCheck,
        (topic, id): (&str, u32),
        number: u64,
        log: &LogFiles,
        known: &Known,
        findings: &mut Findings,
    ) -> io::Result<()> {
        while check.cursor < number {
            let at = check.cursor;
            check.cursor += 1;
            let what = match self.read(topic, id, check, at)? {
                Held::Entry(entry) if entry.is_blank() => {
                    self.counts.blank_entries += 1;
                    continue;
                }
                Held::Entry(entry) if entry.phy.get() < log.min() => {
                    self.counts.expired_entries += 1;
                    continue;
                }
                Held::Entry(entry) if is_message(log, &entry, topic, id)? => {
                    if log.is_sound(entry.phy.get())? {
                        self.counts.entries += 1;
                        continue;
                    }
                    format!("the record of this message, at log position {}, is damaged", entry.phy)
                }
                Held::Entry(entry) => {
                    format!("the entry leads to log position {}, where this message is not", entry.phy)
                }
                Held::Nothing => "there is no entry here, but behind it there are".to_owned(),
            };
            let message = MessageRef {
                topic: topic.to_owned(),
                queue_id: id,
                queue_offset: at,
                ..MessageRef::default()
            };
            let finding = self.finding(topic, id, at, Some(message), what);
            let severity =
                if !known.is_clean() && at >= check.kept { Severity::Mended } else { Severity::Damage };
            findings.add(mendable(finding, severity));
        }
        Ok(())
    }

    /// A record without an entry in a queue that has some.
    fn missing(&mut self, check: &QueueCheck, view: &RecordView<'_>, known: &Known, findings: &mut Findings) {
        let phy = view.phy_offset().get();
        if check.end == check.first {
            return self.orphan(view, known);
        }
        if known.severity_at(phy) == Severity::Mended {
            self.counts.entries_to_come += 1;
            return;
        }
        let what = format!("the record at log position {phy} has no entry");
        let number = view.queue_offset().get();
        let (topic, id) = (view.topic(), view.queue_id().get());
        findings.add(self.finding(topic, id, number, Some(MessageRef::of(view)), what));
    }

    /// A record whose queue has no entry at all: lost, or of a topic that was deleted.
    fn orphan(&mut self, view: &RecordView<'_>, known: &Known) {
        if known.severity_at(view.phy_offset().get()) == Severity::Mended {
            self.counts.entries_to_come += 1;
            return;
        }
        let key = (view.topic().to_owned(), view.queue_id().get());
        if let Some((count, ..)) = self.orphans.get_mut(&key) {
            *count += 1;
        } else if self.orphans.len() < ORPHANS_MAX {
            self.orphans.insert(key, (1, MessageRef::of(view), view.phy_offset().get()));
        }
    }

    /// Whether the peer lists the record's topic in queues of another kind, which are not looked at.
    fn is_elsewhere(&self, view: &RecordView<'_>) -> bool {
        view.sys_flag().is_inner_batch()
            && self.layout.root().join("batchconsumequeue").join(view.topic()).is_dir()
    }

    /// Looks at what is left of each queue behind the last record.
    pub fn finish(
        mut self,
        log: &LogFiles,
        known: &Known,
        findings: &mut Findings,
        counts: &mut Counts,
    ) -> io::Result<()> {
        let mut topics = std::mem::take(&mut self.topics);
        for (topic, queues) in &mut topics {
            for (id, check) in queues {
                let end = check.end;
                self.pass(check, (topic, *id), end, log, known, findings)?;
                check.map = None;
            }
        }
        for ((topic, id), (count, first, phy)) in std::mem::take(&mut self.orphans) {
            let deleted = match (self.is_whole, &self.existing) {
                (Some(whole), _) => whole,
                (None, Some(existing)) => {
                    !existing.contains(&topic)
                        && TopicName::storable(&topic).is_ok_and(|name| !name.is_system())
                }
                (None, None) => false,
            };
            if deleted {
                self.counts.records_of_deleted_topics += count;
                continue;
            }
            let what =
                format!("the queue has no entries, but {count} records in the log; the first at {phy}");
            findings.add(self.finding(&topic, id, first.queue_offset, Some(first.clone()), what));
        }
        counts.queues = self.counts.queues;
        counts.queue_files = self.counts.queue_files;
        counts.entries = self.counts.entries;
        counts.blank_entries = self.counts.blank_entries;
        counts.expired_entries = self.counts.expired_entries;
        counts.entries_to_come = self.counts.entries_to_come;
        counts.records_of_deleted_topics = self.counts.records_of_deleted_topics;
        Ok(())
    }

    fn finding(
        &self,
        topic: &str,
        id: u32,
        number: u64,
        message: Option<MessageRef>,
        what: String,
    ) -> Finding {
        let byte = number * ENTRY_BYTES;
        let within = byte % self.file_bytes;
        Finding {
            severity: Severity::Damage,
            area: Area::Queue,
            file: format!("consumequeue/{topic}/{id}/{:020}", byte - within),
            byte: within,
            message,
            what,
            advice: REBUILD,
        }
    }
}

fn mendable(finding: Finding, severity: Severity) -> Finding {
    let advice = if severity == Severity::Mended { START } else { finding.advice };
    Finding { severity, advice, ..finding }
}

fn queue_dir(layout: &Layout, topic: &str, id: u32) -> PathBuf {
    layout.root().join("consumequeue").join(topic).join(id.to_string())
}

/// Whether the record that an entry names says that it is the message that the entry is for.
fn is_message(log: &LogFiles, entry: &QueueEntry, topic: &str, id: u32) -> io::Result<bool> {
    let is = log.record(entry.phy.get(), |view| {
        let own = view.topic() == topic
            && view.queue_id() == QueueId::new(id)
            && view.queue_offset() == entry.at
            && is_listed(view);
        // The peer lists a message in further queues when it names them.
        let further = view
            .properties()
            .multi_dispatch()
            .is_some_and(|queues| queues.split(',').any(|queue| queue == topic));
        view.total_size() == entry.size && (own || further)
    })?;
    Ok(is.unwrap_or(false))
}

/// How many entries of a file are up to the last one that is not all zeroes.
fn written_end(path: &Path) -> io::Result<u64> {
    let (file, map) = open_map(path)?;
    let Some(map) = map else { return Ok(0) };
    let at = |n: u64| {
        let from = usize::try_from(n * ENTRY_BYTES).unwrap_or(usize::MAX);
        map.get(from..).and_then(|rest| QueueEntry::decode(QueueOffset::ZERO, rest))
    };
    let count = (map.len() as u64) / ENTRY_BYTES;
    let mut end = partition_point(count, |n| at(n).is_some());
    while let Some(byte) = first_nonzero(file.as_ref(), &map, end * ENTRY_BYTES)? {
        end = byte / ENTRY_BYTES + 1;
        while at(end).is_some() {
            end += 1;
        }
    }
    Ok(end)
}
