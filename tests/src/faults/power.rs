//! Power loss: what a disk may hold when the power comes back.
//!
//! [`Disk::write_image`] makes a directory of what is certain and, of the rest, what a [`PowerCut`] lets through.
//! Everything is chosen by a seed: the same journal and the same cut give the same directory.
//!
//! What is not modelled: reordering below the file system that breaks its own barriers (a disk that lies about
//! its cache), and damage to what was certain.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::disk::{Content, Disk, History, Kept, Node, ROOT, SECTOR};

/// Directories in each other; deeper ones would be a circle.
const DEPTH_MAX: u32 = 32;

/// What becomes of bytes and lengths that were written and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All are lost, names as well.
    Drop,
    /// All arrive, names as well: as after a kill.
    Keep,
    /// Each sector of 512 bytes arrives or does not, in any order.
    Torn512,
    /// Each page of 4096 bytes arrives or does not, in any order.
    Torn4096,
    /// Lengths and names arrive; bytes do not where space was new: there are zeros.
    Zeroed,
    /// Everything arrives in order until some moment, names as well; the write of that moment is torn.
    Prefix,
    /// For each file another one of these, for names what [`Names`] allows.
    Random,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Drop, Self::Keep, Self::Torn512, Self::Torn4096, Self::Zeroed, Self::Prefix, Self::Random];
}

/// Which names of files arrive that were made, renamed or removed and whose directory was not synced, where a
/// [`Loss`] leaves it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Names {
    /// Each name for itself, as blocks of a directory are written back without a journal: of a rename the new
    /// name may arrive without the old one going, or the other way round. All that POSIX promises; the
    /// strictest, and the default.
    #[default]
    PerName,
    /// The changes of each directory in their order, until some moment.
    PerDirectory,
    /// The changes of all directories in their order, until some moment that is not before the last sync of
    /// anything: ext4. So a sync of a new file keeps its name.
    Journalled,
}

/// One way for the power to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCut {
    /// What becomes of bytes.
    pub loss: Loss,
    /// What becomes of names.
    pub names: Names,
    /// Decides all that is left open.
    pub seed: u64,
}

impl PowerCut {
    /// With the strictest [`Names`].
    pub fn new(loss: Loss, seed: u64) -> Self {
        Self { loss, names: Names::default(), seed }
    }
}

/// What a [`PowerCut`] met and took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Sectors of reachable files that were not certain.
    pub uncertain_sectors: u64,
    /// Those of them that do not hold what was written last.
    pub lost_sectors: u64,
    /// Names that were not certain.
    pub uncertain_names: u64,
    /// Those of them that are not what they were last.
    pub lost_names: u64,
}

/// A cut under way.
struct Cutter<'a> {
    disk: &'a Disk,
    cut: PowerCut,
    rng: fastrand::Rng,
    /// [`Loss::Prefix`]: the last change that arrived whole.
    until: u64,
    /// [`Names::Journalled`]: the last change of names that arrived.
    names_until: u64,
    damage: Damage,
}

impl Disk {
    /// Makes `dir`, which must not exist yet, as the disk holds it after `cut`.
    pub fn write_image(&self, cut: &PowerCut, dir: &Path) -> Damage {
        self.try_write_image(cut, dir)
            .unwrap_or_else(|error| panic!("{} cannot be written: {error}", dir.display()))
    }

    /// The same for a store that is used again: the machine's run, which the store notes, ends with its power.
    pub fn fail_power(&self, cut: &PowerCut, store: &Path) -> Damage {
        let damage = self.write_image(cut, store);
        let checkpoint = store.join("gantry.checkpoint");
        if let Ok(bytes) = fs::read(&checkpoint)
            && let Ok(mut noted) = serde_json::from_slice::<serde_json::Value>(&bytes)
            && noted.get("boot").is_some()
        {
            noted["boot"] = "before-the-power-failed".into();
            fs::write(&checkpoint, noted.to_string()).expect("the image takes a file");
        }
        damage
    }

    fn try_write_image(&self, cut: &PowerCut, dir: &Path) -> io::Result<Damage> {
        let mut rng = fastrand::Rng::with_seed(cut.seed);
        let mut cut = *cut;
        if cut.loss == Loss::Random && rng.u8(..) < 51 {
            cut.loss = Loss::Prefix;
        }
        let mut cutter = Cutter {
            disk: self,
            cut,
            until: rng.u64(0..=self.time),
            names_until: rng.u64(self.names_committed..=self.time),
            rng,
            damage: Damage::default(),
        };
        cutter.directory(ROOT, dir, DEPTH_MAX)?;
        Ok(cutter.damage)
    }
}

impl Cutter<'_> {
    fn directory(&mut self, node: Node, path: &Path, depth: u32) -> io::Result<()> {
        let disk = self.disk;
        let Some(Kept::Directory(names)) = disk.nodes.get(node) else { return Ok(()) };
        fs::create_dir(path)?;
        let mut times: Vec<u64> = names.values().flat_map(History::times).collect();
        times.push(0);
        times.sort_unstable();
        let of_directory = self.rng.choice(&times).copied().unwrap_or_default();
        for (name, history) in names {
            let own: Vec<u64> = history.times().chain([0]).collect();
            let of_name = self.rng.choice(&own).copied().unwrap_or_default();
            let until = match (self.cut.loss, self.cut.names) {
                (Loss::Keep | Loss::Zeroed, _) => u64::MAX,
                (Loss::Drop, Names::Journalled) => disk.names_committed,
                (Loss::Drop, _) => 0,
                (Loss::Prefix, Names::Journalled) => self.until.max(disk.names_committed),
                (Loss::Prefix, _) => self.until,
                (_, Names::PerName) => of_name,
                (_, Names::PerDirectory) => of_directory,
                (_, Names::Journalled) => self.names_until,
            };
            let found = *history.until(until);
            if own.len() > 1 {
                self.damage.uncertain_names += 1;
                self.damage.lost_names += u64::from(found != *history.now());
            }
            let path = path.join(std::ffi::OsStr::from_bytes(name));
            match found.and_then(|found| Some((found, disk.nodes.get(found)?))) {
                Some((_, Kept::File(content))) => self.file(content, &path)?,
                Some((found, Kept::Directory(_))) if depth > 0 => self.directory(found, &path, depth - 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, content: &Content, path: &Path) -> io::Result<()> {
        let loss = match self.cut.loss {
            Loss::Random => {
                let each = [Loss::Drop, Loss::Keep, Loss::Torn512, Loss::Torn4096, Loss::Zeroed];
                self.rng.choice(each).unwrap_or(Loss::Drop)
            }
            other => other,
        };
        let lengths: Vec<u64> = content.len.times().chain([0]).collect();
        let any_length = self.rng.choice(&lengths).copied().unwrap_or_default();
        let len = *content.len.until(match loss {
            Loss::Drop => 0,
            Loss::Keep | Loss::Zeroed | Loss::Random => u64::MAX,
            Loss::Torn512 | Loss::Torn4096 => any_length,
            Loss::Prefix => self.until + u64::from(self.rng.bool()),
        });
        let file = File::create_new(path)?;
        file.set_len(len)?;
        let group = if loss == Loss::Torn4096 { 8 } else { 1 };
        let mut page = (u64::MAX, 0);
        for (&number, sector) in &content.sectors {
            if page.0 != number / group {
                page = (number / group, self.arrived(content, number / group * group, group));
            }
            let kept = match loss {
                Loss::Drop => &sector.certain,
                Loss::Torn512 | Loss::Torn4096 => sector.until(page.1),
                Loss::Zeroed if sector.certain.is_none() => &None,
                Loss::Keep | Loss::Zeroed | Loss::Random => sector.now(),
                // The write after the last whole one arrives in parts.
                Loss::Prefix => sector.until(self.until + u64::from(self.rng.bool())),
            };
            if sector.times().next().is_some() {
                self.damage.uncertain_sectors += 1;
                self.damage.lost_sectors += u64::from(kept.as_deref() != sector.now().as_deref());
            }
            if let Some(bytes) = kept.as_deref() {
                let room = len.saturating_sub(number * SECTOR).min(SECTOR);
                let bytes = bytes.get(..usize::try_from(room).unwrap_or_default()).unwrap_or_default();
                file.write_all_at(bytes, number * SECTOR)?;
            }
        }
        Ok(())
    }

    /// The change up to which the `count` sectors from `first` on, which arrive together, have arrived.
    fn arrived(&mut self, content: &Content, first: u64, count: u64) -> u64 {
        let sectors = content.sectors.range(first..first + count);
        let times: Vec<u64> = sectors.flat_map(|(_, sector)| sector.times()).chain([0]).collect();
        self.rng.choice(&times).copied().unwrap_or_default()
    }
}
