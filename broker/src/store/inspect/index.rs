//! The key index: its entries lie in the order of the log, so one cursor follows the records.
//!
//! Each entry must carry the hash of a key of the record that it names, and the seconds between its file's begin and
//! the record. While a file is passed, the newest entry of each slot is kept in memory: each entry must name the one
//! before it in its slot, and at the file's end the slots must hold the newest ones. So whatever a query follows leads
//! where it must.
//!
//! The last record that was indexed before a crash has its entries twice: the next start adds them again.

use std::io;
use std::path::PathBuf;

use gantry_proto::record::{HotProperties, RecordView, TransactionFlag};

use super::super::disk::{Disk as _, Map, ReadOnlyDisk};
use super::super::index::{
    Entry, Header, IndexOptions, KeyKind, is_index_file, is_unborn, key_hashes, newest_in, slot_in,
    topic_hash,
};
use super::super::layout::Layout;
use super::finding::{Area, Finding, Findings, MessageRef, Severity};
use super::log::LogFiles;
use super::{Counts, Known, REBUILD, START, open_map};

const SIZES: &str = "give the sizes that the store was made with as --index-slots and --index-entries";

/// All index files, and where the scan is in them.
#[derive(Debug)]
pub struct IndexChecks {
    dir: PathBuf,
    options: IndexOptions,
    known: Known,
    log_start: u64,
    /// Names of the files.
    names: Vec<String>,
    /// Number of the file that is read next.
    next_file: usize,
    current: Option<Current>,
    /// The newest entry of each slot so far.
    newest: Vec<u32>,
    /// Where the first entry of all leads to; `None` without any.
    first_phy: Option<u64>,
    /// Records with keys before that.
    unindexed: u64,
    first_unindexed: Option<MessageRef>,
    /// Hashes of the record's keys, and whether an entry was found.
    wanted: Vec<(KeyKind, u32, bool)>,
    counts: Counts,
}

/// The file that is being read.
#[derive(Debug)]
struct Current {
    name: String,
    map: Map,
    header: Header,
    /// End time and position of the file before.
    before: Option<(i64, i64)>,
    /// The next entry to look at.
    number: u32,
    used_slots: u32,
    /// Store time and position of the first record, when that is known.
    first: Option<(i64, i64)>,
    /// The same of the last one.
    last: Option<(i64, i64)>,
    /// Position of the last entry.
    last_phy: i64,
    /// Its seconds.
    last_secs: u32,
}

impl IndexChecks {
    /// Lists the files.
    pub fn open(
        layout: &Layout,
        options: IndexOptions,
        known: &Known,
        log: &LogFiles,
        findings: &mut Findings,
    ) -> io::Result<Self> {
        let dir = layout.index();
        let mut names = Vec::new();
        for (name, len) in ReadOnlyDisk.list(&dir)? {
            if is_index_file(&name, len, options) {
                names.push(name);
                continue;
            }
            let (severity, advice) =
                if is_unborn(&name, len) { (Severity::Mended, START) } else { (Severity::Damage, SIZES) };
            let what = format!("{len} bytes, index files of this store have {}", options.file_bytes());
            findings.add(Finding {
                severity,
                area: Area::Index,
                file: format!("index/{name}"),
                byte: 0,
                message: None,
                what,
                advice,
            });
        }
        let mut checks = Self {
            dir,
            options,
            known: known.clone(),
            log_start: log.min(),
            names,
            next_file: 0,
            current: None,
            newest: vec![0; if options.slots == 0 { 1 } else { options.slots as usize }],
            first_phy: None,
            unindexed: 0,
            first_unindexed: None,
            wanted: Vec::new(),
            counts: Counts::default(),
        };
        checks.counts.index_files = checks.names.len() as u64;
        checks.enter(None, findings)?;
        checks.first_phy = checks.peek(findings)?.map(|entry| entry.phy.cast_unsigned());
        Ok(checks)
    }

    /// Opens the next file, if there is one.
    fn enter(&mut self, before: Option<(i64, i64)>, findings: &mut Findings) -> io::Result<bool> {
        let Some(name) = self.names.get(self.next_file).cloned() else { return Ok(false) };
        self.next_file += 1;
        let Some(map) = open_map(&self.dir.join(&name))?.1 else { return Ok(false) };
        let mut header = Header::decode(&map);
        header.next = header.next.max(1);
        let current = Current {
            name,
            map,
            header,
            before,
            number: 1,
            used_slots: 0,
            first: None,
            last: None,
            last_phy: 0,
            last_secs: 0,
        };
        if header.next > self.options.entries {
            let what = format!(
                "the header names entry {} as the next, there are {}",
                header.next, self.options.entries
            );
            findings.add(finding(&current.name, 36, None, what));
        }
        self.newest.fill(0);
        self.current = Some(current);
        Ok(true)
    }

    /// The next entry, in the next file if this one is through.
    fn peek(&mut self, findings: &mut Findings) -> io::Result<Option<Entry>> {
        loop {
            let Some(current) = &self.current else { return Ok(None) };
            if current.number < current.header.next.min(self.options.entries) {
                return Ok(Entry::read(&current.map, self.options, current.number));
            }
            let Some(done) = self.current.take() else { return Ok(None) };
            self.leave(&done, findings);
            if !self.enter(Some((done.header.end_at, done.header.end_phy)), findings)? {
                return Ok(None);
            }
        }
    }

    /// Takes the next entry: its place in its chain must be right.
    fn take(&mut self, entry: Entry, findings: &mut Findings) {
        let Some(current) = &mut self.current else { return };
        let slot = entry.hash % self.options.slots.max(1);
        let Some(newest) = self.newest.get_mut(slot as usize) else { return };
        if entry.before != *newest {
            let what =
                format!("the entry says that {} is before it in slot {slot}, it is {newest}", entry.before);
            let byte = self.options.entry_at(current.number) + 16;
            findings.add(finding(&current.name, byte, None, what));
        }
        if *newest == 0 {
            current.used_slots += 1;
        }
        *newest = current.number;
        current.number += 1;
        current.last_phy = entry.phy;
        current.last_secs = entry.secs;
    }

    /// Looks at the entries of a record.
    pub fn record(
        &mut self,
        view: &RecordView<'_>,
        hot: &HotProperties<'_>,
        findings: &mut Findings,
    ) -> io::Result<()> {
        let phy = view.phy_offset().to_wire();
        self.wanted.clear();
        let wanted = &mut self.wanted;
        key_hashes(topic_hash(view.topic()), hot, |kind, hash| wanted.push((kind, hash, false)));
        while let Some(entry) = self.peek(findings)? {
            if entry.phy > phy && !self.is_astray(phy) {
                break;
            }
            if entry.phy == phy {
                self.match_entry(entry, view, findings);
            } else if entry.phy >= 0 && entry.phy.cast_unsigned() < self.log_start {
                self.counts.expired_keys += 1;
            } else {
                self.astray(entry, findings);
            }
            self.take(entry, findings);
        }
        self.count_missing(view, findings);
        Ok(())
    }

    /// Whether the next entry is out of order: the one behind it leads to `phy` or to a place soon after, but itself
    /// it leads behind that.
    fn is_astray(&self, phy: i64) -> bool {
        let Some(current) = &self.current else { return false };
        let entry = |number| {
            (number < current.header.next).then(|| Entry::read(&current.map, self.options, number)).flatten()
        };
        let (this, next) = (entry(current.number), entry(current.number + 1));
        match (this, next) {
            (Some(this), Some(next)) => next.phy >= phy && next.phy < this.phy,
            (Some(this), None) => this.phy > current.header.end_phy && phy <= current.header.end_phy,
            _ => false,
        }
    }

    fn match_entry(&mut self, entry: Entry, view: &RecordView<'_>, findings: &mut Findings) {
        let Some(current) = &mut self.current else { return };
        let byte = self.options.entry_at(current.number);
        let stored = (view.store_at().get(), entry.phy);
        let mut wanted = self.wanted.iter_mut().filter(|(_, hash, _)| *hash == entry.hash).peekable();
        if wanted.peek().is_none() {
            let what = format!("the entry's hash {:#010x} is that of no key of its record", entry.hash);
            findings.add(finding(&current.name, byte, Some(MessageRef::of(view)), what));
        } else {
            wanted.for_each(|(_, _, found)| *found = true);
            self.counts.keys += 1;
        }
        let secs = |begin: i64| {
            let secs = stored.0.saturating_sub(begin).max(0) / 1000;
            u32::try_from(i32::try_from(secs).unwrap_or(i32::MAX)).unwrap_or(0)
        };
        // The peer counts the first entry's from the file before.
        let begins = [Some(current.header.begin_at), current.before.map(|(at, _)| at)];
        let first = current.number == 1;
        let is_right =
            begins.iter().flatten().take(if first { 2 } else { 1 }).any(|at| entry.secs == secs(*at))
                || first && entry.secs == 0;
        if !is_right {
            let what = format!(
                "the entry says {} s after the begin of the file, its record was stored {} s after",
                entry.secs,
                secs(current.header.begin_at)
            );
            findings.add(finding(&current.name, byte + 12, Some(MessageRef::of(view)), what));
        }
        if first {
            current.first = Some(stored);
        }
        current.last = Some(stored);
    }

    /// An entry that leads to no record.
    fn astray(&self, entry: Entry, findings: &mut Findings) {
        let Some(current) = &self.current else { return };
        let what =
            format!("the entry leads to log position {}, where no record with its key starts", entry.phy);
        findings.add(finding(&current.name, self.options.entry_at(current.number), None, what));
    }

    fn count_missing(&mut self, view: &RecordView<'_>, findings: &mut Findings) {
        let phy = view.phy_offset().get();
        let missing = self.wanted.iter().filter(|(kind, _, found)| !found && *kind != KeyKind::Tag).count();
        // The peer does not index rollbacks.
        if missing == 0 || view.sys_flag().transaction() == TransactionFlag::Rollback {
            return;
        }
        if self.known.severity_at(phy) == Severity::Mended {
            self.counts.keys_to_come += missing as u64;
            return;
        }
        if self.first_phy.is_none_or(|first| phy < first) {
            self.unindexed += 1;
            self.first_unindexed.get_or_insert_with(|| MessageRef::of(view));
            return;
        }
        let name = self.current.as_ref().map(|current| current.name.clone()).or(self.names.last().cloned());
        let byte = self.current.as_ref().map_or(0, |current| self.options.entry_at(current.number));
        let what = format!("{missing} keys of the record at log position {phy} are not in the index");
        findings.add(finding(&name.unwrap_or_default(), byte, Some(MessageRef::of(view)), what));
    }

    /// The slots and the header of a file whose entries were all looked at.
    fn leave(&self, done: &Current, findings: &mut Findings) {
        let next = done.header.next;
        for (slot, newest) in (0_u32..).zip(&self.newest) {
            let held = slot_in(&done.map, slot);
            // A run that a crash ended may have left numbers of entries that do not count; queries see through them.
            let leads_to = if self.known.is_clean() && held != 0 && *newest == 0 {
                held
            } else {
                newest_in(&done.map, self.options, slot, next)
            };
            if leads_to != *newest {
                let what = format!("slot {slot} leads to entry {held}, the newest is {newest}");
                findings.add(finding(&done.name, 40 + u64::from(slot) * 4, None, what));
            }
        }
        if done.number == 1 {
            return;
        }
        let header = &done.header;
        if header.slots != done.used_slots {
            let what = format!(
                "the header says that {} slots are used, there are {}",
                header.slots, done.used_slots
            );
            findings.add(finding(&done.name, 32, None, what));
        }
        if header.end_phy != done.last_phy {
            let what = format!(
                "the header says that it ends at log position {}, the last entry leads to {}",
                header.end_phy, done.last_phy
            );
            findings.add(finding(&done.name, 24, None, what));
        }
        // A start that cut the file knows the seconds only.
        let cut_at = header.begin_at.saturating_add(i64::from(done.last_secs) * 1000 + 999);
        let ends = |at: i64| at == header.end_at || cut_at == header.end_at;
        if let Some((at, _)) = done.last.filter(|(at, phy)| *phy == done.last_phy && !ends(*at)) {
            let what = format!(
                "the header says that it ends at {} ms, its last record was stored at {at}",
                header.end_at
            );
            findings.add(finding(&done.name, 8, None, what));
        }
        // The file begins with its first record, or where the one before ends.
        let begins = [done.first, done.before];
        if let Some((at, _)) =
            done.first.filter(|_| !begins.iter().flatten().any(|(at, _)| *at == header.begin_at))
        {
            let what = format!(
                "the header says that it begins at {} ms, its first record was stored at {at}",
                header.begin_at
            );
            findings.add(finding(&done.name, 0, None, what));
        }
        if let Some((_, phy)) =
            done.first.filter(|_| !begins.iter().flatten().any(|(_, phy)| *phy == header.begin_phy))
        {
            let what = format!(
                "the header says that it begins at log position {}, its first entry leads to {phy}",
                header.begin_phy
            );
            findings.add(finding(&done.name, 16, None, what));
        }
    }

    /// Looks at what is left behind the last record.
    pub fn finish(mut self, end: u64, findings: &mut Findings, counts: &mut Counts) -> io::Result<()> {
        while let Some(entry) = self.peek(findings)? {
            let beyond = entry.phy >= 0 && entry.phy.cast_unsigned() >= end;
            if beyond
                && !self.known.is_clean()
                && let Some(current) = &self.current
            {
                let what = format!("the entry leads to log position {}, behind the end", entry.phy);
                let byte = self.options.entry_at(current.number);
                let found = finding(&current.name, byte, None, what);
                findings.add(Finding { severity: Severity::Mended, advice: START, ..found });
            } else if entry.phy >= 0 && entry.phy.cast_unsigned() < self.log_start {
                self.counts.expired_keys += 1;
            } else {
                self.astray(entry, findings);
            }
            self.take(entry, findings);
        }
        // The peer drops what it is not sure of after a crash, and may be told to make no index.
        if self.unindexed > 0 && self.known.is_ours {
            let what = format!("{} records with keys are not in the index", self.unindexed);
            let name = self.names.first().cloned().unwrap_or_default();
            findings.add(finding(&name, 0, self.first_unindexed.clone(), what));
        }
        counts.index_files = self.counts.index_files;
        counts.keys = self.counts.keys;
        counts.expired_keys = self.counts.expired_keys;
        counts.keys_to_come = self.counts.keys_to_come;
        Ok(())
    }
}

fn finding(name: &str, byte: u64, message: Option<MessageRef>, what: String) -> Finding {
    Finding {
        severity: Severity::Damage,
        area: Area::Index,
        file: format!("index/{name}"),
        byte,
        message,
        what,
        advice: REBUILD,
    }
}
