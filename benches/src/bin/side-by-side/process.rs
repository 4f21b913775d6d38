//! What the kernel says about a process of this machine, in `/proc`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::stop;

/// Anonymous memory (`RssAnon`) in MiB: what is not backed by a file.
pub fn anonymous_mib(pid: u32) -> Result<f64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.ok().and_then(|status| anonymous_of(&status)).ok_or(Failure::Process(pid))
}

fn anonymous_of(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(f64::from(kib) / 1024.0)
}

/// Share of one core in percent that the process uses over `time`.
pub fn cpu_percent(pid: u32, time: Duration) -> Result<f64, Failure> {
    let (before, since) = (threads(pid)?, Instant::now());
    stop::sleep(time)?;
    let (after, took) = (threads(pid)?, since.elapsed());
    let used: Duration = after
        .iter()
        .map(|(thread, time)| time.saturating_sub(before.get(thread).copied().unwrap_or_default()))
        .sum();
    Ok(used.as_secs_f64() / took.as_secs_f64() * 100.0)
}

/// CPU time of each thread. The scheduler counts nanoseconds; `/proc/PID/stat` has ticks, which are as long as
/// an idle broker's whole work in a second.
fn threads(pid: u32) -> Result<HashMap<String, Duration>, Failure> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Failure::Process(pid))?;
    let times: HashMap<_, _> = tasks
        .filter_map(|task| {
            let task = task.ok()?;
            Some((task.file_name().to_string_lossy().into_owned(), cpu_of_task(&task.path())?))
        })
        .collect();
    if times.is_empty() { Err(Failure::Process(pid)) } else { Ok(times) }
}

fn cpu_of_task(task: &Path) -> Option<Duration> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(anonymous_mib(pid).unwrap() > 0.0);
        assert!(cpu_percent(pid, Duration::ZERO).unwrap() >= 0.0);
        assert!(matches!(anonymous_mib(u32::MAX), Err(Failure::Process(u32::MAX))));
    }

    #[test]
    fn memory_is_in_mib() {
        assert_eq!(anonymous_of("Name:\tx\nRssAnon:\t    2048 kB\n"), Some(2.0));
        assert_eq!(anonymous_of("Name:\tx\n"), None);
    }
}
