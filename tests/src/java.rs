//! The official clients: builds the Maven modules in `clients/java` and runs their programs.
//!
//! A machine without a JDK or Maven runs the other tests: [`module`] then says what is missing, and
//! [`skip`] shows it in one line that the test runner does not swallow.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

/// The version of Apache's broker that is built with the suites, as `clients/java/pom.xml` has it.
pub const APACHE: &str = "5.5.0";
/// What is built together.
const ALL: [Module; 3] = [Module::Peer, Module::Suite5, Module::Suite4];

/// A Maven module of `clients/java`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Apache's name server and broker.
    Peer,
    /// The client suite and the store exchange with client 5.5.0.
    Suite5,
    /// The client suite with client 4.9.8.
    Suite4,
}

impl Module {
    const fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Suite5 => "suite5",
            Self::Suite4 => "suite4",
        }
    }
}

/// Directory of a module, built. `Err` says what is missing on this machine.
pub fn module(module: Module) -> Result<PathBuf, String> {
    static BUILT: Mutex<Option<Result<(), String>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.get_or_insert_with(build).clone()?;
    Ok(root().join(module.name()))
}

/// Directory with `classes` and `lib` of the module `peer` for a version of Apache's broker, built. `Err` says what
/// is missing on this machine.
pub fn apache(version: &str) -> Result<PathBuf, String> {
    if version == APACHE {
        return Ok(module(Module::Peer)?.join("target"));
    }
    let relative = format!("target/apache-{version}");
    let target = root().join(Module::Peer.name()).join(&relative);
    let lock = lock()?;
    if !target.join("lib").is_dir() || fs::metadata(target.join("built")).is_err() {
        package("peer", &[&format!("-Drocketmq5.version={version}"), &format!("-Dpeer.target={relative}")])?;
        fs::write(target.join("built"), "").map_err(|error| format!("{}: {error}", target.display()))?;
    }
    drop(lock);
    Ok(target)
}

/// Says in one line, once for all tests of a process, that Java's tests are left out.
pub fn skip(why: &str) {
    static SAID: Once = Once::new();
    // Not `eprintln`: that is shown for failing tests only.
    SAID.call_once(|| {
        let _ =
            writeln!(io::stderr(), "SKIPPED, the tests with Apache RocketMQ's own clients and broker: {why}");
    });
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join("java")
}

fn build() -> Result<(), String> {
    let root = root();
    let stamp = root.join("target").join("built");
    let io = |error: io::Error| format!("{}: {error}", root.display());
    let lock = lock()?;
    let built = fs::metadata(&stamp).and_then(|stamp| stamp.modified()).ok();
    let complete = ALL.iter().all(|module| root.join(module.name()).join("target").join("lib").is_dir());
    if complete && built > newest_source(&root).map_err(io)? {
        return Ok(());
    }
    package("peer,suite5,suite4", &[])?;
    fs::write(stamp, "").map_err(io)?;
    drop(lock);
    Ok(())
}

/// One build at a time, also among test processes: until the file is closed.
fn lock() -> Result<File, String> {
    for (program, argument) in [("java", "-version"), ("mvn", "-v")] {
        if !succeeds(Command::new(program).arg(argument)) {
            return Err(format!("{program} is missing; JDK 17 and Maven 3.8 are needed"));
        }
    }
    let target = root().join("target");
    let io = |error: io::Error| format!("{}: {error}", target.display());
    fs::create_dir_all(&target).map_err(io)?;
    let lock = File::create(target.join("lock")).map_err(io)?;
    lock.lock().map_err(io)?;
    Ok(lock)
}

/// Builds modules: from what was downloaded before, if that is enough.
fn package(modules: &str, properties: &[&str]) -> Result<(), String> {
    let maven = |options: &[&str]| {
        let mut command = Command::new("mvn");
        command.current_dir(root()).args(["-q", "-B"]).args(options).args(properties);
        command.args(["-pl", modules, "package"]);
        command
    };
    if succeeds(&mut maven(&["-o"])) {
        return Ok(());
    }
    let output = maven(&[]).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let first = said.lines().find(|line| line.contains("ERROR")).unwrap_or("no reason given");
    Err(format!("mvn package failed in tests/clients/java: {first}"))
}

/// When the newest of the files below `dir` was written, without those that a build made in a `target`.
pub fn newest_source(dir: &Path) -> io::Result<Option<SystemTime>> {
    let mut newest = None;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let time = if !entry.file_type()?.is_dir() {
            Some(entry.metadata()?.modified()?)
        } else if entry.file_name() == "target" {
            None
        } else {
            newest_source(&entry.path())?
        };
        newest = newest.max(time);
    }
    Ok(newest)
}

fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What a program's line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Nothing,
    /// This line on its standard input.
    Line(&'static str),
}

/// How a program ended.
#[derive(Debug)]
pub struct Output {
    /// Exit code; `None` when it was killed at the deadline or by a signal.
    pub code: Option<i32>,
    /// Its lines on standard output.
    pub lines: Vec<String>,
    /// Its standard error.
    pub stderr: String,
}

/// A flag that has a JVM make its temporary files in `dir`, which its owner removes: netty's keys and native libraries
/// of 15 MB stay behind where it is killed, and some where it is not. Made here: a JVM needs it from its start on.
pub fn temporary_files_in(dir: &Path) -> io::Result<String> {
    fs::create_dir_all(dir)?;
    Ok(format!("-Djava.io.tmpdir={}", dir.display()))
}

/// Runs the class `main` of the module in `dir`; `on_line` sees each line of its output as it comes. It is
/// killed when it has not ended after `within`.
pub fn run(
    dir: &Path,
    main: &str,
    arguments: &[&str],
    within: Duration,
    mut on_line: impl FnMut(&str) -> Answer,
) -> io::Result<Output> {
    let scratch = tempfile::tempdir()?;
    let stderr = scratch.path().join("stderr");
    let mut program = Running {
        child: Command::new("java")
            .current_dir(dir)
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(temporary_files_in(&scratch.path().join("tmp"))?)
            .args(["-cp", "target/classes:target/lib/*", main])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr)?)
            .spawn()?,
    };
    let mut input = program.child.stdin.take();
    let incoming = lines_of(&mut program.child);
    let deadline = Instant::now() + within;
    let mut lines = Vec::new();
    let in_time = loop {
        match incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Answer::Line(answer) = on_line(&line) {
                    write_line(input.as_mut(), answer)?;
                }
                lines.push(line);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break false,
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
        }
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let code = if in_time { crate::harness::wait(&mut program.child, left) } else { None };
    drop(program);
    Ok(Output {
        code: code.and_then(|status| status.code()),
        lines,
        stderr: String::from_utf8_lossy(&fs::read(&stderr)?).into_owned(),
    })
}

/// A process that dies with its handle.
#[derive(Debug)]
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone already
        let _ = self.child.wait();
    }
}

fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let output = child.stdout.take();
    std::thread::spawn(move || {
        let Some(output) = output else { return };
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn write_line(input: Option<&mut ChildStdin>, line: &str) -> io::Result<()> {
    let input = input.ok_or(io::ErrorKind::BrokenPipe)?;
    input.write_all(line.as_bytes())?;
    input.write_all(b"\n")?;
    input.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_makes_is_no_source() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("target")).unwrap();
        fs::write(dir.path().join("target/built"), "").unwrap();
        assert_eq!(newest_source(dir.path()).unwrap(), None);
        fs::create_dir(dir.path().join("src")).unwrap();
        fs::write(dir.path().join("src/A.java"), "").unwrap();
        assert!(newest_source(dir.path()).unwrap().is_some());
    }
}
