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
    Some(inodes(pid)?.len())
}

/// The connections that a process has: both addresses, the state, and whether this process has the other end. Empty
/// when there is no such process.
pub fn peers(pid: u32) -> Vec<String> {
    let [theirs, ours] = [pid, std::process::id()].map(|pid| inodes(pid).unwrap_or_default());
    let table = connections();
    let is_ours = |near: &str, far: &str| {
        table.iter().any(|other| other.near == far && other.far == near && ours.contains(&other.inode))
    };
    let of_process = table.iter().filter(|one| theirs.contains(&one.inode));
    of_process
        .map(|one| {
            let whose = if is_ours(&one.near, &one.far) { "ours" } else { "not ours" };
            format!("{} from {} {} ({whose})", one.near, one.far, one.state)
        })
        .collect()
}

/// A line of the system's table of TCP sockets.
struct Connection {
    near: String,
    far: String,
    state: &'static str,
    inode: String,
}

fn connections() -> Vec<Connection> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    lines.filter_map(connection).collect()
}

fn connection(line: &str) -> Option<Connection> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [_, near, far, state, ..] = fields[..] else { return None };
    let state = match state {
        "01" => "established",
        "08" => "closed by the peer",
        "0A" => "listening",
        _ => "closing",
    };
    let inode = (*fields.get(9)?).to_owned();
    Some(Connection { near: address(near)?, far: address(far)?, state, inode })
}

/// An address as the system's table has it: each word of the host in the order of this machine's bytes.
fn address(text: &str) -> Option<String> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // What is an IPv4 address in the table of the others ends like one.
    let last = host.get(host.len().checked_sub(8)?..)?;
    let host = std::net::Ipv4Addr::from(u32::from_str_radix(last, 16).ok()?.to_ne_bytes());
    Some(format!("{host}:{port}"))
}

/// The sockets of a process, as the system numbers them.
fn inodes(pid: u32) -> Option<Vec<String>> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let number = |target: std::path::PathBuf| {
        let target = target.to_string_lossy().into_owned();
        Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    Some(open.flatten().filter_map(|fd| number(fs::read_link(fd.path()).ok()?)).collect())
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

    #[test]
    fn both_ends_of_a_connection_are_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (listening, from) = (listener.local_addr().unwrap(), near.local_addr().unwrap());
        let here = format!("{listening} from {from} established (ours)");
        // Not accepted yet, so no process has that end.
        assert!(!peers(std::process::id()).contains(&here));
        let far = listener.accept().unwrap();
        let seen = peers(std::process::id());
        assert!(seen.contains(&here), "{seen:?} has {here}");
        drop(far);
        assert_eq!(peers(u32::MAX), Vec::<String>::new());
    }
}
