//! The real Apache name server and broker, in a JVM of their own.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running broker on a fresh store. Killed when dropped.
#[derive(Debug)]
pub struct Apache {
    child: Child,
    /// The broker stops when this end closes.
    input: Option<ChildStdin>,
    name_server: String,
    store: TempDir,
}

impl Apache {
    /// Starts it with `settings` of its `broker.conf` (`key=value`). `Err` says why it cannot be used here:
    /// print it and go on.
    pub fn start(settings: &[&str]) -> Result<Self, String> {
        let peer = built_peer()?;
        let store = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let (name_port, broker_port) = free_ports()?;
        let mut command = Command::new("java");
        command
            .current_dir(peer)
            .args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC"])
            .args(["--add-opens", "java.base/java.nio=ALL-UNNAMED"])
            .args(["--add-opens", "java.base/sun.nio.ch=ALL-UNNAMED"])
            .args(["--add-exports", "java.base/jdk.internal.ref=ALL-UNNAMED"])
            .args(["-cp", "target/classes:target/lib/*", "gantry.peer.ApachePeer"])
            .args(["--namesrv-port", &name_port.to_string(), "--broker-port", &broker_port.to_string()])
            .arg("--store")
            .arg(store.path().join("store"))
            .args(["--set", "mappedFileSizeCommitLog=67108864"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("java cannot be started: {error}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take();
        let apache = Self { child, input, name_server: format!("127.0.0.1:{name_port}"), store };
        let (ready, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            if let Some(output) = output {
                // An error is the end of the output: no line.
                let _ = BufReader::new(output).read_line(&mut line);
            }
            let _ = ready.send(line); // nobody waits any more: too late
        });
        match wait.recv_timeout(READY_WITHIN) {
            Ok(line) if line.trim() == "ready" => Ok(apache),
            Ok(line) => Err(format!("Apache's broker did not start: it said {line:?}")),
            Err(_) => Err(format!("Apache's broker was not ready within {READY_WITHIN:?}")),
        }
    }

    /// Address of the name server.
    pub fn name_server(&self) -> &str {
        &self.name_server
    }

    /// Directory of the store.
    pub fn store(&self) -> PathBuf {
        self.store.path().join("store")
    }

    /// Stops it cleanly, as an operator does; takes about ten seconds. Gives the store's directory.
    pub fn stop(mut self) -> std::io::Result<TempDir> {
        if let Some(mut input) = self.input.take() {
            input.write_all(b"stop\n")?;
        }
        self.child.wait()?;
        let empty = tempfile::tempdir()?;
        Ok(std::mem::replace(&mut self.store, empty))
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directory of the peer, built if need be.
fn built_peer() -> Result<PathBuf, String> {
    let java = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/java"));
    let peer = java.join("peer");
    let runs = |program: &str, argument: &str| {
        let status = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !runs("java", "-version") {
        return Err("java is missing".to_owned());
    }
    if peer.join("target/classes/gantry/peer/ApachePeer.class").exists() && peer.join("target/lib").exists() {
        return Ok(peer);
    }
    if !runs("mvn", "-v") {
        return Err("mvn is missing".to_owned());
    }
    let built = Command::new("mvn")
        .current_dir(&java)
        .args(["-q", "-B", "-pl", "peer", "package"])
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("mvn cannot be started: {error}"))?;
    if built.success() { Ok(peer) } else { Err("mvn could not build tests/clients/java/peer".to_owned()) }
}

/// Free ports for the name server and the broker, which also takes the ports minus 2 and plus 1.
fn free_ports() -> Result<(u16, u16), String> {
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
    for _ in 0..100 {
        let base = fastrand::u16(20_000..30_000);
        let all: Result<Vec<_>, _> = [base, base + 2, base + 4, base + 5].into_iter().map(bind).collect();
        if all.is_ok() {
            return Ok((base, base + 4));
        }
    }
    Err("no free ports between 20000 and 30000".to_owned())
}
