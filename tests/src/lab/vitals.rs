//! What the system says about the broker's process.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

/// How often a watch looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Anonymous memory of a process that lies in RAM: what it really needs, without its mapped files. `None` when
/// there is no such process.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// Sockets that a process has open. `None` when there is no such process.
pub fn sockets(pid: u32) -> Option<usize> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let is_socket = |target: &std::path::Path| target.to_string_lossy().starts_with("socket:");
    Some(open.flatten().filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| is_socket(&target))).count())
}

/// Looks at a process's memory until it is dropped.
#[derive(Debug)]
pub struct Watch {
    most: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches the process whose id is in `pid`, which may change.
    pub fn start(pid: Arc<AtomicU32>) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&most);
        let task = tokio::spawn(async move {
            loop {
                if let Some(bytes) = resident_bytes(pid.load(Ordering::Relaxed)) {
                    seen.fetch_max(bytes, Ordering::Relaxed);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self { most, task }
    }

    /// The most memory that it saw, in bytes.
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Tells tasks to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Tells them.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether they were told.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_sockets() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).is_some_and(|bytes| bytes > 0));
        let before = sockets(pid).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(sockets(pid).unwrap() > before);
        drop(listener);
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
