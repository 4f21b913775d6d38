//! What a process of this machine uses: CPU time and anonymous memory, as the kernel counts them in `/proc`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::super::output::Failure;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(50);

/// What a process used in a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    /// Time on CPUs, in the process and in the kernel for it.
    pub cpu: Duration,
    /// Most anonymous memory that was seen, in bytes.
    pub anonymous_bytes_max: u64,
}

/// A process that is being watched.
#[derive(Debug)]
pub struct Watch {
    dir: PathBuf,
    cpu_before: Duration,
    stop: Arc<AtomicBool>,
    anonymous_max: Arc<AtomicU64>,
    sampler: JoinHandle<()>,
}

impl Watch {
    /// Watches a process from now on.
    pub fn start(pid: u32) -> Result<Self, Failure> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let gone = || {
            Failure::Usage(format!(
                "no process {pid} is here; give the process id of a broker on this machine"
            ))
        };
        let stop = Arc::new(AtomicBool::new(false));
        let anonymous_max = Arc::new(AtomicU64::new(anonymous_bytes(&dir).ok_or_else(gone)?));
        let sampler = {
            let (dir, stop, max) = (dir.clone(), Arc::clone(&stop), Arc::clone(&anonymous_max));
            thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    thread::park_timeout(SAMPLE);
                    max.fetch_max(anonymous_bytes(&dir).unwrap_or_default(), Ordering::Relaxed);
                }
            })
        };
        let cpu_before = cpu(&dir).ok_or_else(gone)?;
        Ok(Self { dir, cpu_before, stop, anonymous_max, sampler })
    }

    /// What it used since the start; `None` when it is gone.
    pub fn stop(self) -> Option<Used> {
        let after = cpu(&self.dir);
        self.stop.store(true, Ordering::Release);
        self.sampler.thread().unpark();
        self.sampler.join().expect("the sampler does not panic");
        let cpu = after?.saturating_sub(self.cpu_before);
        Some(Used { cpu, anonymous_bytes_max: self.anonymous_max.load(Ordering::Relaxed) })
    }
}

fn cpu(dir: &std::path::Path) -> Option<Duration> {
    cpu_of_stat(&fs::read_to_string(dir.join("stat")).ok()?, rustix::param::clock_ticks_per_second())
}

fn anonymous_bytes(dir: &std::path::Path) -> Option<u64> {
    anonymous_of_status(&fs::read_to_string(dir.join("status")).ok()?)
}

/// `utime` and `stime`: the 14th and 15th field. The second one is the name, in brackets, and may hold anything.
fn cpu_of_stat(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let nanos = (user + system).checked_mul(1_000_000_000)?.checked_div(ticks_per_second)?;
    Some(Duration::from_nanos(nanos))
}

fn anonymous_of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(cpu_of_stat(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(cpu_of_stat("7 (x) S 1", 100), None);
        assert_eq!(anonymous_of_status("Name:\tx\nRssAnon:\t     12 kB\n"), Some(12 * 1024));
        assert_eq!(anonymous_of_status("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_can_be_watched_and_one_that_is_not_there_cannot() {
        let used = Watch::start(std::process::id()).unwrap().stop().unwrap();
        assert!(used.anonymous_bytes_max > 0);
        assert!(matches!(Watch::start(u32::MAX), Err(Failure::Usage(_))));
    }
}
