//! What the kernel says about processes of this machine, in `/proc`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::load::Used;
use crate::stop;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(50);
const MIB: f64 = 1024.0 * 1024.0;

/// Anonymous memory (`RssAnon`) of processes together in MiB: what is not backed by a file.
pub fn anonymous_mib(pids: &[u32]) -> Result<f64, Failure> {
    anonymous_bytes(pids).map(mib)
}

fn anonymous_bytes(pids: &[u32]) -> Result<u64, Failure> {
    let one = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.ok().and_then(|status| anonymous_of(&status)).ok_or(Failure::Process(*pid))
    };
    pids.iter().map(one).sum()
}

fn anonymous_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// Share of one core in percent that processes use together over `time`.
pub fn cpu_percent(pids: &[u32], time: Duration) -> Result<f64, Failure> {
    let (before, since) = (Threads::of(pids)?, Instant::now());
    stop::sleep(time)?;
    let used = Threads::of(pids)?.since(&before);
    Ok(used.as_secs_f64() / since.elapsed().as_secs_f64() * 100.0)
}

/// CPU time of each thread. The scheduler counts nanoseconds; `/proc/PID/stat` has ticks, which are as long as
/// an idle broker's whole work in a second. What a thread used that ended in between is not seen.
#[derive(Debug)]
struct Threads(HashMap<String, Duration>);

impl Threads {
    fn of(pids: &[u32]) -> Result<Self, Failure> {
        let mut all = HashMap::new();
        for pid in pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Failure::Process(*pid))?;
            let before = all.len();
            all.extend(tasks.filter_map(|task| {
                let task = task.ok()?;
                let name = format!("{pid}/{}", task.file_name().to_string_lossy());
                Some((name, cpu_of_task(&task.path())?))
            }));
            if all.len() == before {
                return Err(Failure::Process(*pid));
            }
        }
        Ok(Self(all))
    }

    fn since(&self, before: &Self) -> Duration {
        let used = |(thread, time): (&String, &Duration)| {
            time.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        };
        self.0.iter().map(used).sum()
    }
}

fn cpu_of_task(task: &Path) -> Option<Duration> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Processes that are being watched.
#[derive(Debug)]
pub struct Watch {
    pids: Vec<u32>,
    before: Threads,
    done: Arc<AtomicBool>,
    anonymous_max: Arc<AtomicU64>,
    sampler: JoinHandle<()>,
}

/// What watched processes used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// Time on CPUs, in the processes and in the kernel for them.
    pub cpu: Duration,
    /// Most anonymous memory that was seen.
    pub anonymous_mib_max: f64,
}

impl Use {
    /// As a report gives it, for so many messages.
    pub fn by(self, messages: u64) -> Used {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let millions = messages as f64 / 1e6;
        let cpu_seconds = self.cpu.as_secs_f64();
        Used {
            cpu_seconds,
            cpu_seconds_per_million: (messages > 0).then(|| cpu_seconds / millions),
            rss_anon_peak_mib: self.anonymous_mib_max,
        }
    }
}

impl Watch {
    /// Watches processes from now on.
    pub fn start(pids: &[u32]) -> Result<Self, Failure> {
        let pids = pids.to_vec();
        let done = Arc::new(AtomicBool::new(false));
        let anonymous_max = Arc::new(AtomicU64::new(anonymous_bytes(&pids)?));
        let sampler = {
            let (pids, done, max) = (pids.clone(), Arc::clone(&done), Arc::clone(&anonymous_max));
            thread::spawn(move || {
                while !done.load(Ordering::Acquire) {
                    thread::park_timeout(SAMPLE);
                    max.fetch_max(anonymous_bytes(&pids).unwrap_or_default(), Ordering::Relaxed);
                }
            })
        };
        Ok(Self { before: Threads::of(&pids)?, pids, done, anonymous_max, sampler })
    }

    /// What they used since the start.
    pub fn stop(self) -> Result<Use, Failure> {
        let after = Threads::of(&self.pids);
        self.done.store(true, Ordering::Release);
        self.sampler.thread().unpark();
        self.sampler.join().expect("the sampler does not panic");
        let anonymous_mib_max = mib(self.anonymous_max.load(Ordering::Relaxed));
        Ok(Use { cpu: after?.since(&self.before), anonymous_mib_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let pids = [std::process::id()];
        assert!(anonymous_mib(&pids).unwrap() > 0.0);
        assert!(cpu_percent(&pids, Duration::ZERO).unwrap() >= 0.0);
        assert!(Watch::start(&pids).unwrap().stop().unwrap().anonymous_mib_max > 0.0);
        assert!(matches!(anonymous_mib(&[u32::MAX]), Err(Failure::Process(u32::MAX))));
    }

    #[test]
    fn memory_is_in_bytes_and_cpu_time_by_message() {
        assert_eq!(anonymous_of("Name:\tx\nRssAnon:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(anonymous_of("Name:\tx\n"), None);
        let used = Use { cpu: Duration::from_secs(2), anonymous_mib_max: 3.0 };
        assert_eq!(used.by(500_000).cpu_seconds_per_million, Some(4.0));
        assert_eq!(used.by(0).cpu_seconds_per_million, None);
    }
}
