//! Cases that the model does not reach: damage, and what happens while slots are read.

use super::*;
use crate::store::disk::RealDisk;

const NOW: Millis = Millis::new(1_700_000_000_000);

fn open(dir: &Path) -> (TimeIndex, Option<PhyOffset>) {
    TimeIndex::open(Arc::new(RealDisk), dir, Bounds::default()).expect("it opens")
}

fn place(wait_ms: u64, phy: u64) -> Place {
    Place { due: NOW.plus(wait_ms), phy: PhyOffset::new(phy) }
}

/// An index with two timers, saved.
fn saved(dir: &Path) -> PathBuf {
    let (index, _) = open(dir);
    index.add(place(5_000, 10), 1, 5_000);
    index.add(place(6_000, 20), 2, 6_000);
    index.save(&index.capture(PhyOffset::new(30))).expect("saved");
    let name = RealDisk.list(dir).expect("readable").into_iter().map(|(name, _)| name);
    dir.join(name.into_iter().find(|name| name != "slots").expect("a file"))
}

#[test]
fn what_was_saved_is_read_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    saved(dir.path());
    let (index, position) = open(dir.path());
    assert_eq!((position, index.pending()), (Some(PhyOffset::new(30)), 2));
    index.load(NOW).expect("readable");
    assert_eq!(index.take_due(NOW.plus(5_999), 10), [place(5_000, 10)]);
    assert_eq!(index.first_due(), Some(NOW.plus(6_000)));
}

#[test]
fn a_damaged_list_or_a_short_file_means_that_all_is_made_again() {
    for damage in 0..3 {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = saved(dir.path());
        match damage {
            0 => std::fs::write(dir.path().join("slots"), b"{").expect("written"),
            1 => std::fs::write(&file, [0; 16]).expect("written"),
            _ => std::fs::remove_file(dir.path().join("slots")).expect("removed"),
        }
        let (index, position) = open(dir.path());
        assert_eq!((position, index.pending(), file.exists()), (None, 0, false), "damage {damage}");
    }
}

#[test]
fn a_damaged_slot_is_reported_and_made_again_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = saved(dir.path());
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[0] = 9;
    std::fs::write(&file, bytes).expect("written");
    let (index, _) = open(dir.path());
    index.load(NOW).expect("what can be made out is read");
    assert!(index.is_damaged());
    assert_eq!(index.take_due(NOW.plus(10_000), 10), [place(6_000, 20)]);
    index.save(&index.capture(PhyOffset::new(40))).expect("removed");
    assert_eq!(open(dir.path()).1, None);
}

#[test]
fn what_comes_or_goes_while_slots_are_read_is_not_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (index, _) = open(dir.path());
    for number in 0..4 {
        index.add(place(1_000 + number, number * 10), 0, 1_000);
    }
    index.lock().loading = Some(Loading::default());
    index.add(place(500, 50), 0, 500);
    assert!(index.close(place(1_001, 10), PhyOffset::new(60)).expect("readable"));
    {
        let state = index.lock();
        let loading = state.loading.as_ref().expect("it goes on");
        assert_eq!((loading.late.len(), loading.done.len(), loading.is_void), (1, 1, false));
    }
    index.lock().loading = None;
    index.load(NOW).expect("readable");
    let due: Vec<_> = index.take_due(NOW.plus(5_000), 10).iter().map(|place| place.phy.get()).collect();
    assert_eq!(due, [50, 0, 20, 30]);
}

#[test]
fn far_timers_cost_no_memory_but_their_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (index, _) = open(dir.path());
    for number in 0..10_000 {
        index.add(place(40 * 24 * 3_600_000 + number * 1000, number), 0, 40 * 24 * 3_600_000);
    }
    index.load(NOW).expect("readable");
    index.save(&index.capture(PhyOffset::new(10_000))).expect("saved");
    let state = index.lock();
    assert!(state.near.is_empty() && state.slots.values().all(|slot| slot.buffer.capacity() == 0));
    assert_eq!((state.slots.len(), state.buffered), (3, 0));
    let bytes: u64 = RealDisk.list(dir.path()).expect("readable").iter().map(|(_, len)| len).sum();
    assert!(bytes < 10_000 * FACT_BYTES as u64 + 1000, "{bytes}");
}

/// Regression: where one record ends several waits, the timer that it begins was not found again, and came out twice
/// after a restart.
#[test]
fn a_timer_that_takes_the_place_of_several_is_found() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (index, _) = open(dir.path());
    for phy in [10, 20, 30] {
        index.add(place(5_000, phy), 1, 5_000);
    }
    let at = PhyOffset::new(40);
    for old in index.find_by_key(NOW.plus(5_000), 1).expect("readable") {
        assert!(index.close(old, at).expect("readable"));
    }
    index.add(place(5_000, 40), 1, 4_000);
    assert_eq!((index.take(place(5_000, 40)).expect("readable"), index.pending()), (Standing::Taken, 1));
}

/// A disk that lets something happen when a file is opened.
#[derive(Debug, Default)]
struct Surprise {
    /// What is to happen with the index, once.
    armed: Mutex<Option<std::sync::Weak<TimeIndex>>>,
}

impl Disk for Surprise {
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        RealDisk.list(dir)
    }

    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.dirs(dir)
    }

    fn open(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.open(path, len)?;
        let index = self.armed.lock().expect("no panic").take().and_then(|index| index.upgrade());
        if let Some(index) = index {
            // The only timer of the slot is done, the slot goes, and comes again with another one.
            assert!(index.close(place(1_000, 10), PhyOffset::new(20))?);
            index.save(&index.capture(PhyOffset::new(30)))?;
            index.add(place(2_000, 40), 0, 2_000);
        }
        Ok(file)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        RealDisk.replace(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_names(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_names(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<crate::store::disk::Space> {
        RealDisk.space(dir)
    }
}

/// Regression: the new timer had the number of the one that was done, and never came.
#[test]
fn a_slot_that_goes_and_comes_again_while_slots_are_read_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Arc::new(Surprise::default());
    let (index, _) =
        TimeIndex::open(Arc::clone(&disk) as Arc<dyn Disk>, dir.path(), Bounds::default()).expect("it opens");
    let index = Arc::new(index);
    index.add(place(1_000, 10), 0, 1_000);
    index.save(&index.capture(PhyOffset::new(15))).expect("saved");
    *disk.armed.lock().expect("no panic") = Some(Arc::downgrade(&index));
    index.load(NOW).expect("readable");
    index.load(NOW).expect("readable");
    assert_eq!((index.take_due(NOW.plus(3_000), 10), index.pending()), (vec![place(2_000, 40)], 1));
}

/// Regression: each record that names a timer by its id read all facts of the slot again.
#[test]
fn many_timers_of_one_hour_are_found_by_key() {
    const TIMERS: u64 = 20_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (index, _) = open(dir.path());
    let hour = 4 * 3_600_000;
    let key = |number: u64| u32::try_from(number / 2).expect("small");
    for number in 0..TIMERS {
        index.add(place(hour + number / 20, number), key(number), hour);
    }
    index.save(&index.capture(PhyOffset::new(TIMERS))).expect("saved");
    for number in 0..TIMERS {
        let due = NOW.plus(hour + number / 20);
        let found = index.find_by_key(due, key(number)).expect("readable");
        // Two have one key, until the first of them is done.
        assert_eq!(found.first(), Some(&place(hour + number / 20, number)));
        assert_eq!(found.len() as u64, 2 - number % 2);
        assert!(index.close(found[0], PhyOffset::new(TIMERS + 2 * number)).expect("readable"));
        let more = place(hour + number / 20, TIMERS + 2 * number + 1);
        index.add(more, 1_000_000 + key(number), hour);
        if number == TIMERS / 2 {
            index.save(&index.capture(PhyOffset::new(TIMERS + 2 * number + 1))).expect("saved");
        }
    }
    assert_eq!(index.find_by_key(NOW.plus(hour), 1_000_000).expect("readable").len(), 2);
    assert!(
        index.find_by_key(NOW.plus(hour + 5_000), 1_000_000).expect("readable").is_empty(),
        "another time"
    );
    assert_eq!(index.pending(), TIMERS);
}
