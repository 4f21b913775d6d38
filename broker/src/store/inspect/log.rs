//! The commit log: its files, the records in them, what lies between and behind.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::record::{RecordView, Slot};

use super::super::disk::{Disk as _, Map, ReadOnlyDisk, offset_path, parse_offset_name};
use super::super::gaps::{Gap, GapKind};
use super::super::layout::Layout;
use super::super::queues::QUEUE_ID_MAX;
use super::super::recover::RESYNC_BYTES;
use super::super::replay::{self, Trust};
use super::finding::{Area, Finding, Findings, MessageRef, Severity};
use super::{Known, RESTORE, START, first_nonzero, open_map};

/// Files whose maps are kept for looking back.
const MAPS_MAX: usize = 3;
/// Damaged stretches that are remembered one by one.
const STRETCHES_MAX: usize = 10_000;
/// What is wrong with bytes that nothing was written to.
const BLANK: &str = "it is blank";
/// How often progress is told, in bytes.
const PROGRESS_BYTES: u64 = 16 * 1024 * 1024;

/// The files, by their first bytes.
#[derive(Debug)]
pub struct LogFiles {
    dir: PathBuf,
    bytes: u64,
    starts: Vec<u64>,
    maps: RefCell<Vec<(u64, Map)>>,
}

/// What the scan passes.
pub enum Seen<'a, 'b> {
    /// A record may start or end here, or a file.
    Boundary(u64),
    /// A record that checks out.
    Record(&'b RecordView<'a>),
}

/// Bytes between records of the log that are none.
#[derive(Clone, Debug, Default)]
pub struct Stretches {
    /// How many.
    pub count: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    /// First byte and first byte behind, of the first ones.
    pub list: Vec<(u64, u64)>,
}

/// What the scan found.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// The end of the log.
    pub end: u64,
    /// Records that check out.
    pub records: u64,
    /// The newest store time, in milliseconds since the epoch.
    pub newest: i64,
    /// Damage before the end.
    pub damaged: Stretches,
    /// Gaps that are no damage.
    pub gaps: Stretches,
}

impl LogFiles {
    /// Lists the files; those of a wrong length or missing between others are findings.
    pub fn open(layout: &Layout, known: Option<u64>, findings: &mut Findings) -> io::Result<Self> {
        let dir = layout.commit_log();
        let listed: Vec<(u64, u64)> = ReadOnlyDisk
            .list(&dir)?
            .into_iter()
            .filter_map(|(name, len)| parse_offset_name(&name).map(|start| (start, len)))
            .collect();
        let first = listed.first().map_or(0, |(_, len)| *len);
        let bytes = known.unwrap_or(first).max(1);
        let mut log = Self { dir, bytes, starts: Vec::new(), maps: RefCell::default() };
        for (number, &(start, len)) in listed.iter().enumerate() {
            let expected = log.starts.last().map_or(start, |before| before + bytes);
            if start != expected {
                let what = format!("the file that starts at {expected} is missing before this one");
                findings.add(log.finding(start, None, what, RESTORE));
            }
            // A crash while the newest file was made leaves it empty.
            let made = number + 1 == listed.len() && len == 0;
            if len != bytes && !made {
                let what = format!("the file is {len} bytes long, log files are {bytes}");
                findings.add(log.finding(start, None, what, RESTORE));
            }
            log.starts.push(start);
        }
        Ok(log)
    }

    /// First byte of the log.
    pub fn min(&self) -> u64 {
        self.starts.first().copied().unwrap_or(0)
    }

    /// First byte behind the last file.
    pub fn limit(&self) -> u64 {
        self.starts.last().map_or(0, |last| last + self.bytes)
    }

    /// How many files there are.
    pub fn count(&self) -> u64 {
        self.starts.len() as u64
    }

    /// Length of each file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// The first byte of the file that `at` lies in.
    fn start_of(&self, at: u64) -> Option<u64> {
        let behind = self.starts.partition_point(|start| *start <= at);
        let start = *self.starts.get(behind.checked_sub(1)?)?;
        (at - start < self.bytes).then_some(start)
    }

    fn map(&self, start: u64) -> io::Result<Option<Map>> {
        let mut maps = self.maps.borrow_mut();
        if let Some((_, map)) = maps.iter().find(|(known, _)| *known == start) {
            return Ok(Some(map.clone()));
        }
        let Some(map) = open_map(&offset_path(&self.dir, start))?.1 else { return Ok(None) };
        if maps.len() >= MAPS_MAX {
            maps.remove(0);
        }
        maps.push((start, map.clone()));
        Ok(Some(map))
    }

    /// Looks at the record at `at` without its checksums; `None` when there is none that says it lies there.
    pub fn record<T>(&self, at: u64, look: impl FnOnce(&RecordView<'_>) -> T) -> io::Result<Option<T>> {
        let Some(start) = self.start_of(at) else { return Ok(None) };
        let Some(map) = self.map(start)? else { return Ok(None) };
        let view = RecordView::parse(within(&map, at - start, self.bytes)).ok();
        Ok(view.filter(|view| view.phy_offset().get() == at).map(|view| look(&view)))
    }

    /// Whether the record at `at` checks out.
    pub fn is_sound(&self, at: u64) -> io::Result<bool> {
        let sound =
            self.record(at, |view| replay::check(view, PhyOffset::new(at), Trust::Nothing).is_ok())?;
        Ok(sound.unwrap_or(false))
    }

    /// The next place behind `at` and below `limit` where a record checks out.
    fn resync(&self, at: u64, limit: u64) -> io::Result<Option<u64>> {
        let mut candidate = at + 1;
        while candidate < limit {
            let Some(start) = self.start_of(candidate) else {
                let Some(next) = self.starts.iter().find(|start| **start > candidate) else {
                    return Ok(None);
                };
                candidate = *next;
                continue;
            };
            let map = self.map(start)?;
            let rest = map
                .as_deref()
                .map_or(&[][..], |map| within(map, candidate - start, limit.saturating_sub(start)));
            match replay::candidate_in(rest) {
                Some(skip) => {
                    candidate += skip as u64;
                    if self.is_sound(candidate)? {
                        return Ok(Some(candidate));
                    }
                    candidate += 1;
                }
                None => candidate = start + self.bytes,
            }
        }
        Ok(None)
    }

    /// A finding at a place of the log.
    pub fn finding(
        &self,
        at: u64,
        message: Option<MessageRef>,
        what: String,
        advice: &'static str,
    ) -> Finding {
        let start = self.start_of(at).or(self.starts.last().copied()).unwrap_or(at);
        Finding {
            severity: Severity::Damage,
            area: Area::Log,
            file: format!("commitlog/{start:020}"),
            byte: at - start,
            message,
            what,
            advice,
        }
    }
}

/// Reads all of the log, telling `each` what it passes.
pub fn scan(
    log: &LogFiles,
    known: &Known,
    findings: &mut Findings,
    progress: &mut dyn FnMut(u64, u64),
    mut each: impl FnMut(Seen<'_, '_>, &mut Findings) -> io::Result<()>,
) -> io::Result<Scanned> {
    let mut scanned = Scanned::default();
    let (min, limit) = (log.min(), log.limit());
    let (mut at, mut told) = (min, min);
    let mut current: Option<(u64, Map)> = None;
    let mut is_told = false;
    while at < limit {
        if at >= told {
            progress(at - min, limit - min);
            told = at + PROGRESS_BYTES;
        }
        each(Seen::Boundary(at), findings)?;
        let inside = |start: u64| at >= start && at - start < log.bytes;
        if current.as_ref().is_none_or(|(start, _)| !inside(*start)) {
            let Some(start) = log.start_of(at) else {
                // A file is missing, which was told; a start would refuse the store.
                let next = log.starts.iter().find(|start| **start > at).copied();
                at = next.unwrap_or(limit);
                continue;
            };
            let Some(map) = log.map(start)? else { break };
            current = Some((start, map));
        }
        let Some((start, map)) = &current else { break };
        let file_end = start + log.bytes;
        let wrong = match Slot::read(within(map, at - start, log.bytes)) {
            Ok(Slot::Record(view)) => match checked(&view, at) {
                Ok(()) => {
                    scanned.records += 1;
                    scanned.newest = scanned.newest.max(view.store_at().get());
                    check_names(log, &view, at, findings);
                    each(Seen::Record(&view), findings)?;
                    at += u64::from(view.total_size());
                    continue;
                }
                Err(what) => (what, Some(MessageRef::of(&view))),
            },
            Ok(Slot::Blank { len }) => {
                if u64::from(len) != file_end - at {
                    let what = format!("the blank record says {len} bytes, {} are left", file_end - at);
                    findings.add(log.finding(at, None, what, RESTORE));
                }
                at = file_end;
                continue;
            }
            // After a clean stop the end is known.
            Ok(Slot::End) if known.is_clean() && known.is_ours && at == known.flushed => break,
            Ok(Slot::End) => (BLANK.to_owned(), None),
            Err(error) => (error.to_string(), None),
        };
        let Some(next) = log.resync(at, limit.min(at + RESYNC_BYTES))? else {
            is_told = torn(log, known, at, wrong, findings);
            break;
        };
        stretch(log, known, &mut scanned, (at, next), wrong, findings);
        at = next;
    }
    each(Seen::Boundary(at), findings)?;
    progress(limit - min, limit - min);
    scanned.end = at;
    if !is_told {
        check_end(log, known, at, findings)?;
    }
    Ok(scanned)
}

/// Both checksums: that of the record is not made from the body's, but from what the body's says.
fn checked(view: &RecordView<'_>, at: u64) -> Result<(), String> {
    replay::check(view, PhyOffset::new(at), Trust::Nothing)?;
    view.check_body_crc().map_err(|error| error.to_string())
}

fn check_names(log: &LogFiles, view: &RecordView<'_>, at: u64, findings: &mut Findings) {
    let impossible = view.queue_id().get() > QUEUE_ID_MAX
        || gantry_proto::names::TopicName::storable(view.topic()).is_err();
    if impossible {
        let what = "the record names no queue that can exist".to_owned();
        findings.add(log.finding(at, Some(MessageRef::of(view)), what, RESTORE));
    }
}

/// Whole records follow behind something that is none: damage, unless a start has judged otherwise, or will.
fn stretch(
    log: &LogFiles,
    known: &Known,
    scanned: &mut Scanned,
    (at, next): (u64, u64),
    (what, message): (String, Option<MessageRef>),
    findings: &mut Findings,
) {
    let what = format!("{} bytes up to log position {next} are no record: {what}", next - at);
    let recorded = Gap::around(&known.gaps, at, next);
    let (severity, stretches, why) = match recorded.map(|gap| (gap.kind, gap.since)) {
        Some((GapKind::Unflushed, since)) => {
            let why = format!(
                "; passed over since the start at {} ms: a power failure tore what was being written, none of it was \
                 known to be on the disk",
                Millis::new(since)
            );
            (Severity::Gap, &mut scanned.gaps, why)
        }
        None if at >= known.gaps_from => {
            let why = "; none of it was known to be on the disk, the next start passes over it, or ends the log there".to_owned();
            (Severity::Mended, &mut scanned.gaps, why)
        }
        Some((GapKind::Damaged, _)) | None => (Severity::Damage, &mut scanned.damaged, String::new()),
    };
    stretches.count += 1;
    stretches.bytes += next - at;
    if stretches.list.len() < STRETCHES_MAX {
        stretches.list.push((at, next));
    }
    let advice = if severity == Severity::Damage { RESTORE } else { START };
    findings.add(Finding { severity, ..log.finding(at, message, format!("{what}{why}"), advice) });
}

/// The last thing in the log is no record: an unfinished write, unless it had been finished. Returns whether there is
/// something, and it was told.
fn torn(
    log: &LogFiles,
    known: &Known,
    at: u64,
    (what, message): (String, Option<MessageRef>),
    findings: &mut Findings,
) -> bool {
    let blank = message.is_none() && what == BLANK;
    if blank || at < known.flushed {
        return false; // told by the check of the end
    }
    let cut_off = !(known.is_clean() && known.is_ours);
    let what = format!("the log ends in something that is no record: {what}");
    let finding = log.finding(at, message, what, if cut_off { START } else { RESTORE });
    let severity = if cut_off { Severity::Mended } else { Severity::Damage };
    findings.add(Finding { severity, ..finding });
    true
}

/// The log must reach to where it was flushed; what lies behind its end is zero.
fn check_end(log: &LogFiles, known: &Known, end: u64, findings: &mut Findings) -> io::Result<()> {
    if end < known.flushed {
        let what = format!(
            "no record checks out from log position {end} on, but the log was on the disk up to {}",
            known.flushed
        );
        findings.add(log.finding(end, None, what, RESTORE));
    }
    let reached = log.starts.iter().copied().filter(|start| start + log.bytes > end);
    for start in reached {
        let (file, map) = open_map(&offset_path(&log.dir, start))?;
        let Some(map) = map else { continue };
        let from = end.saturating_sub(start);
        if let Some(byte) = first_nonzero(file.as_ref(), &map, from)? {
            // Apache leaves the rests of what it cut off; a start of ours makes them zero.
            let cut_off = !(known.is_clean() && known.is_ours);
            let severity = if cut_off { Severity::Mended } else { Severity::Damage };
            let what = format!("bytes that are not zero lie behind the end of the log, which is {end}");
            let finding = log.finding(start + byte, None, what, if cut_off { START } else { RESTORE });
            findings.add(Finding { severity, ..finding });
            break;
        }
    }
    Ok(())
}

fn within(map: &[u8], from: u64, to: u64) -> &[u8] {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let to = usize::try_from(to).unwrap_or(usize::MAX).min(map.len());
    map.get(from..to).unwrap_or_default()
}
