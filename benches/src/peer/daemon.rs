//! A server that says in its log when it is ready.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::stop;

/// A large store is recovered before a server is ready.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// How often somebody who waits looks whether to stop.
const LOOK: Duration = Duration::from_millis(20);
/// So much of a log is shown when something goes wrong.
const LINES_MAX: usize = 20;

/// The last lines of a log.
type Tail = Arc<Mutex<VecDeque<String>>>;

/// A process of a server. Dropping it is SIGKILL.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    took: Duration,
}

impl Daemon {
    /// Starts it, and waits for a line with `ready` on its standard error.
    pub fn start(command: &mut Command, ready: &'static str) -> Result<Self, Failure> {
        let since = Instant::now();
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| Failure::Peer(format!("{name}: {error}")))?;
        // From here on dropping it ends the process.
        let mut daemon = Self { child, took: Duration::ZERO };
        let tail = Tail::default();
        let (sender, is_ready) = mpsc::channel();
        if let Some(log) = daemon.child.stderr.take() {
            let tail = Arc::clone(&tail);
            thread::spawn(move || follow(log, ready, &tail, &sender));
        }
        loop {
            match is_ready.recv_timeout(LOOK) {
                Ok(at) => {
                    daemon.took = at.saturating_duration_since(since);
                    return Ok(daemon);
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() < READY_WITHIN => stop::check()?,
                Err(_) => {
                    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                    let said: Vec<_> = tail.iter().map(String::as_str).collect();
                    return Err(Failure::Peer(format!(
                        "{name} did not start, it said:\n{}",
                        said.join("\n")
                    )));
                }
            }
        }
    }

    /// Id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From before the process was made until its log said that it is ready.
    pub const fn took(&self) -> Duration {
        self.took
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone already
        let _ = self.child.wait();
    }
}

/// Reads a log to its end: a server must never wait for its reader.
fn follow(log: ChildStderr, ready: &str, tail: &Tail, to: &mpsc::Sender<Instant>) {
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        if line.contains(ready) {
            let _ = to.send(Instant::now()); // nobody waits for a second one
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == LINES_MAX {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Daemon, Failure> {
        Daemon::start(Command::new("sh").args(["-c", script]), "is ready")
    }

    #[test]
    fn a_server_is_ready_when_it_says_so() {
        let daemon = shell("echo begins >&2; echo 'it is ready' >&2; exec sleep 600").unwrap();
        assert!(daemon.took() > Duration::ZERO && daemon.pid() > 0);
    }

    #[test]
    fn a_server_that_ends_is_quoted() {
        let failure = shell("echo 'no such port' >&2").unwrap_err().to_string();
        assert!(failure.contains("no such port"), "{failure}");
    }
}
