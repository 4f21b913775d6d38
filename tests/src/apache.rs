//! The real Apache name server and broker, in a JVM of their own: 5.5.0 unless another version is asked for.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness;
use crate::java;
use crate::ports;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// A clean stop sleeps for about eleven seconds in several places.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// A small JVM: tests want many, not a fast one.
const TEST_JVM: [&str; 3] = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC"];

/// A running broker. Killed when dropped.
#[derive(Debug)]
pub struct Apache {
    child: Child,
    /// The broker stops when this end closes.
    input: Option<ChildStdin>,
    name_server: String,
    store: PathBuf,
    /// Its standard error and temporary files, and the store unless the caller keeps it.
    dir: TempDir,
}

impl Apache {
    /// Starts it on a fresh store with `settings` of its `broker.conf` (`key=value`). `Err` says why it cannot
    /// be used here: print it and go on.
    pub fn start(settings: &[&str]) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let store = dir.path().join("store");
        Self::start_in(java::APACHE, dir, store, &TEST_JVM, settings)
    }

    /// Starts it on a directory that the caller keeps.
    pub fn start_on(store: &Path, settings: &[&str]) -> Result<Self, String> {
        Self::start_version(java::APACHE, store, &TEST_JVM, settings)
    }

    /// Starts a version on a directory that the caller keeps, in a JVM with these flags.
    pub fn start_version(
        version: &str,
        store: &Path,
        jvm: &[&str],
        settings: &[&str],
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        Self::start_in(version, dir, store.to_owned(), jvm, settings)
    }

    fn start_in(
        version: &str,
        dir: TempDir,
        store: PathBuf,
        jvm: &[&str],
        settings: &[&str],
    ) -> Result<Self, String> {
        let target = java::apache(version)?;
        let ports = ports::free().map_err(|error| error.to_string())?;
        let log = File::create(dir.path().join("log")).map_err(|error| error.to_string())?;
        let temporary =
            java::temporary_files_in(&dir.path().join("tmp")).map_err(|error| error.to_string())?;
        let mut command = Command::new("java");
        command
            .current_dir(target)
            .args(jvm)
            .arg(temporary)
            .args(["--add-opens", "java.base/java.nio=ALL-UNNAMED"])
            .args(["--add-opens", "java.base/sun.nio.ch=ALL-UNNAMED"])
            .args(["--add-exports", "java.base/jdk.internal.ref=ALL-UNNAMED"])
            .args(["-cp", "classes:lib/*", "gantry.peer.ApachePeer"])
            .args(["--namesrv-port", &ports.name.to_string(), "--broker-port", &ports.broker.to_string()])
            .arg("--store")
            .arg(&store)
            .args(["--set", "mappedFileSizeCommitLog=67108864"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("java cannot be started: {error}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take();
        let apache = Self { child, input, name_server: format!("127.0.0.1:{}", ports.name), store, dir };
        match output.and_then(|output| harness::first_line(output, READY_WITHIN)) {
            Some(line) if line.trim() == "ready" => Ok(apache),
            line => Err(format!(
                "Apache's broker was not ready within {READY_WITHIN:?}, it said {line:?}:\n{}",
                apache.log()
            )),
        }
    }

    /// Address of the name server.
    pub fn name_server(&self) -> &str {
        &self.name_server
    }

    /// Id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Directory of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// What it said on standard error so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.path().join("log"));
        log.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Stops it cleanly, as an operator does; takes about eleven seconds. A store that [`start`](Self::start)
    /// made goes too.
    pub fn stop(mut self) -> std::io::Result<()> {
        if let Some(mut input) = self.input.take() {
            input.write_all(b"stop\n")?;
        }
        match harness::wait(&mut self.child, STOPPED_WITHIN) {
            Some(status) if status.success() => Ok(()),
            status => {
                Err(std::io::Error::other(format!("Apache's broker ended with {status:?}: {}", self.log())))
            }
        }
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone already
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of Apache's broker, store {} ---\n{}---", self.store.display(), self.log());
        }
    }
}
