use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::disk::Disk;
use super::format::{Entry, Kind};
use super::journal::{Journal, append};
use super::power::{Loss, Names, PowerCut};

/// A journal written by hand.
#[derive(Default)]
struct Told {
    disk: Disk,
    syncs: u64,
}

impl Told {
    fn tell(&mut self, kind: Kind, path: &str, a: u64, b: u64) -> &mut Self {
        self.disk.apply(&Entry::new(kind, path.as_bytes(), a, b));
        self
    }

    fn write(&mut self, path: &str, at: u64, bytes: &[u8]) -> &mut Self {
        self.disk.apply(&Entry { bytes, ..Entry::new(Kind::Write, path.as_bytes(), at, 0) });
        self
    }

    fn rename(&mut self, from: &str, to: &str) -> &mut Self {
        let second = to.as_bytes();
        self.disk.apply(&Entry { second, ..Entry::new(Kind::Rename, from.as_bytes(), 0, 0) });
        self
    }

    fn sync(&mut self, path: &str) -> &mut Self {
        self.syncs += 1;
        let number = self.syncs;
        self.tell(Kind::SyncBegin, path, number, 0).tell(Kind::SyncEnd, "", number, 1)
    }

    fn failed_sync(&mut self, path: &str) -> &mut Self {
        self.syncs += 1;
        let number = self.syncs;
        self.tell(Kind::SyncBegin, path, number, 0).tell(Kind::SyncEnd, "", number, 0)
    }

    /// Every file after the cut.
    fn after(&self, cut: PowerCut) -> BTreeMap<String, Vec<u8>> {
        let dir = scratch();
        let root = dir.path().join("image");
        self.disk.write_image(&cut, &root);
        files(&root)
    }

    /// What a file holds in each way for the power to fail; `None`: it is not there.
    fn outcomes(&self, path: &str) -> Vec<Option<Vec<u8>>> {
        let mut found: Vec<_> = cuts(20).map(|cut| self.after(cut).remove(path)).collect();
        found.sort();
        found.dedup();
        found
    }
}

/// In memory where the system has such a place: these are many small files.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn cuts(seeds: u64) -> impl Iterator<Item = PowerCut> {
    let names = [Names::PerName, Names::PerDirectory, Names::Journalled];
    let each = Loss::ALL.into_iter().flat_map(move |loss| names.map(|names| (loss, names)));
    each.flat_map(move |(loss, names)| (0..seeds).map(move |seed| PowerCut { loss, names, seed }))
}

fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn what_is_synced_survives_every_cut() {
    let mut told = Told::default();
    told.tell(Kind::Mkdir, "d", 0, 0).sync("");
    told.tell(Kind::Create, "d/f", 0, 0).write("d/f", 0, &[7; 5000]).sync("d/f").sync("d");
    told.write("d/f", 100, b"over").sync("d/f");
    let mut expected = vec![7; 5000];
    expected[100..104].copy_from_slice(b"over");
    for cut in cuts(4) {
        assert_eq!(told.after(cut).get("d/f"), Some(&expected), "{cut:?}");
    }
}

#[test]
fn what_is_not_synced_may_vanish_arrive_or_tear() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).tell(Kind::Truncate, "f", 1024, 0).sync("f").sync("");
    told.write("f", 0, &[1; 1024]);
    let both = |first: u8, second: u8| Some([[first; 512], [second; 512]].concat());
    assert_eq!(told.outcomes("f"), [both(0, 0), both(0, 1), both(1, 0), both(1, 1)]);
    let drop = told.after(PowerCut::new(Loss::Drop, 1));
    assert_eq!(drop.get("f"), both(0, 0).as_ref());
    assert_eq!(told.after(PowerCut::new(Loss::Keep, 1)).get("f"), both(1, 1).as_ref());
    assert_eq!(told.after(PowerCut::new(Loss::Zeroed, 1)).get("f"), both(0, 0).as_ref());
    for seed in 0..20 {
        let page = told.after(PowerCut::new(Loss::Torn4096, seed)).remove("f");
        assert!(page == both(0, 0) || page == both(1, 1), "sectors of one page arrive together");
    }
}

#[test]
fn a_later_write_brings_the_earlier_one_to_the_same_sector() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).tell(Kind::Truncate, "f", 4, 0).sync("f").sync("");
    told.write("f", 0, b"ab").write("f", 2, b"cd");
    let all = told.outcomes("f");
    assert_eq!(all, [b"\0\0\0\0", b"ab\0\0", b"abcd"].map(|bytes| Some(bytes.to_vec())));
    // A sync of something else changes nothing; one of the file ends the doubt.
    told.sync("");
    assert_eq!(told.outcomes("f"), all);
    told.sync("f");
    assert_eq!(told.outcomes("f"), [Some(b"abcd".to_vec())]);
}

#[test]
fn a_sync_covers_what_was_there_when_it_began() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).write("f", 0, b"one").sync("");
    told.tell(Kind::SyncBegin, "f", 99, 0).write("f", 0, b"two").tell(Kind::SyncEnd, "", 99, 1);
    assert_eq!(told.outcomes("f"), [Some(b"one".to_vec()), Some(b"two".to_vec())]);
    // A process that dies within a sync has synced nothing.
    told.tell(Kind::SyncBegin, "f", 100, 0).tell(Kind::Start, "", 0, 0).tell(Kind::SyncEnd, "", 100, 1);
    assert_eq!(told.outcomes("f").len(), 2);
}

#[test]
fn what_a_failed_sync_was_for_stays_in_doubt() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).tell(Kind::Truncate, "f", 1024, 0).sync("f").sync("");
    told.write("f", 0, &[1; 512]).failed_sync("f").write("f", 512, &[2; 512]).sync("f");
    let half = |first: u8| Some([[first; 512], [2; 512]].concat());
    assert_eq!(told.outcomes("f"), [half(0), half(1)]);
    told.write("f", 0, &[3; 512]).sync("f");
    assert_eq!(told.outcomes("f"), [half(3)]);
}

#[test]
fn a_new_name_needs_its_directory_synced() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).write("f", 0, b"x").sync("f");
    assert_eq!(told.outcomes("f"), [None, Some(b"x".to_vec())]);
    // A journalling file system keeps the name with the file.
    let journalled = PowerCut { loss: Loss::Drop, names: Names::Journalled, seed: 0 };
    assert_eq!(told.after(journalled).len(), 1);
    told.sync("");
    assert_eq!(told.outcomes("f"), [Some(b"x".to_vec())]);
}

#[test]
fn a_sync_of_the_file_system_covers_everything() {
    let mut told = Told::default();
    told.tell(Kind::Mkdir, "d", 0, 0).tell(Kind::Create, "d/f", 0, 0).write("d/f", 0, b"x");
    told.tell(Kind::SyncBegin, "", 99, 1).tell(Kind::SyncEnd, "", 99, 1);
    assert_eq!(told.outcomes("d/f"), [Some(b"x".to_vec())]);
}

#[test]
fn a_rename_shows_the_old_or_the_new_content() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).write("f", 0, b"old").sync("f").sync("");
    told.tell(Kind::Create, "f.tmp", 0, 0).write("f.tmp", 0, b"new").sync("f.tmp").rename("f.tmp", "f");
    assert_eq!(told.outcomes("f"), [Some(b"new".to_vec()), Some(b"old".to_vec())]);
    told.sync("");
    assert_eq!(told.outcomes("f"), [Some(b"new".to_vec())]);
    assert_eq!(told.outcomes("f.tmp"), [None]);
}

#[test]
fn a_rename_of_unsynced_bytes_may_leave_zeros_or_nothing() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).write("f", 0, b"old").sync("f").sync("");
    told.tell(Kind::Create, "f.tmp", 0, 0).write("f.tmp", 0, b"new").rename("f.tmp", "f").sync("");
    let some = |bytes: &[u8]| Some(bytes.to_vec());
    assert_eq!(told.outcomes("f"), [some(b""), some(b"\0\0\0"), some(b"new")]);
}

#[test]
fn a_removed_file_may_come_back_as_it_was() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).write("f", 0, b"x").sync("f").sync("");
    told.tell(Kind::Unlink, "f", 0, 0);
    assert_eq!(told.outcomes("f"), [None, Some(b"x".to_vec())]);
    told.sync("");
    assert_eq!(told.outcomes("f"), [None]);
}

#[test]
fn holes_and_lengths_are_as_uncertain_as_bytes() {
    let mut told = Told::default();
    told.tell(Kind::Create, "f", 0, 0).write("f", 0, &[1; 2000]).sync("f").sync("");
    told.tell(Kind::Zero, "f", 600, 5000);
    let mut zeroed = vec![1; 2000];
    zeroed[600..].fill(0);
    assert_eq!(told.after(PowerCut::new(Loss::Keep, 0)).get("f"), Some(&zeroed));
    assert_eq!(told.after(PowerCut::new(Loss::Drop, 0)).get("f"), Some(&vec![1; 2000]));
    told.sync("f").tell(Kind::Truncate, "f", 100, 0).tell(Kind::Truncate, "f", 200, 0).sync("f");
    let mut cut = vec![1; 200];
    cut[100..].fill(0);
    assert_eq!(told.outcomes("f"), [Some(cut)]);
}

#[test]
fn a_store_that_was_there_is_certain() {
    let dir = scratch();
    let store = dir.path().join("store");
    fs::create_dir_all(store.join("a/b")).unwrap();
    fs::write(store.join("a/b/f"), [9; 1300]).unwrap();
    fs::write(store.join("empty"), b"").unwrap();
    let sparse = fs::File::create(store.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 700_000).unwrap();
    let disk = Disk::load(&store).unwrap();
    let image = dir.path().join("image");
    disk.write_image(&PowerCut::new(Loss::Drop, 0), &image);
    assert_eq!(files(&image), files(&store));
}

#[test]
fn the_end_of_a_journal_is_put_right_after_a_kill() {
    let dir = scratch();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    let journal = Journal::create(dir.path().join("journal"), &store).unwrap();
    let mut file = fs::File::options().append(true).open(journal.path()).unwrap();
    let keep = PowerCut::new(Loss::Keep, 0);
    let mut images = 0;
    let mut image = || {
        images += 1;
        let image = dir.path().join(format!("image{images}"));
        journal.disk().unwrap().write_image(&keep, &image);
        files(&image)
    };
    append(&mut file, &Entry::new(Kind::Create, b"f", 0, 0)).unwrap();
    fs::write(store.join("f"), b"ab").unwrap();
    let write = Entry { bytes: b"abcd", ..Entry::new(Kind::Write, b"f", 0, 0) };
    append(&mut file, &write).unwrap();
    journal.settle(&store).unwrap();
    assert_eq!(image(), files(&store), "half of the write was done");
    append(&mut file, &Entry::new(Kind::Create, b"g", 0, 0)).unwrap();
    journal.settle(&store).unwrap();
    assert_eq!(image(), files(&store), "the file was not made");
    append(&mut file, &Entry::new(Kind::Unlink, b"f", 0, 0)).unwrap();
    std::io::Write::write_all(&mut file, &write.header().unwrap()[..20]).unwrap();
    journal.settle(&store).unwrap();
    append(&mut file, &write).unwrap();
    assert_eq!(image().get("f"), Some(&b"abcd".to_vec()), "it was not removed, and half an entry is none");
}
