//! The real `gantry` binary: started on a fresh store and free ports, restarted, killed.
//!
//! Whatever goes wrong here panics with what was expected and found: these are tests. A broker dies with its
//! handle; what it said goes to standard error when the test fails.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::faults::Faults;
use crate::ports::{self, Ports};

/// How long a broker may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a clean stop may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
/// Lines of a broker's log that a failing test shows.
const LOG_TAIL: usize = 100;

/// Flags for small files: a minute's load meets the ends of each kind.
pub const SMALL_FILES: &[&str] = &[
    "--segment-bytes",
    "1MiB",
    "--max-message-size",
    "64KiB",
    "--queue-file-bytes",
    "20000",
    "--index-slots",
    "500",
    "--index-entries",
    "2000",
];

/// A broker process. Dropping it kills the process.
#[derive(Debug)]
pub struct Gantry {
    /// `None` while it is stopped.
    child: Option<Child>,
    /// Holds what nobody keeps.
    _scratch: Option<TempDir>,
    store: PathBuf,
    log: PathBuf,
    flags: Vec<OsString>,
    /// A command that runs the broker, if not the system itself.
    through: Vec<OsString>,
    /// What happens to its disk and clock.
    faults: Option<Faults>,
    ports: Ports,
}

impl Gantry {
    /// Starts a broker with `flags` of `gantry serve` on a fresh store.
    pub fn start(flags: &[&str]) -> Self {
        let dir = scratch();
        let store = dir.path().join("store");
        Self::new(dir, store, flags, &[], None).started()
    }

    /// Starts a broker on a directory that the caller keeps.
    pub fn start_on(store: &Path, flags: &[&str]) -> Self {
        Self::new(scratch(), store.to_owned(), flags, &[], None).started()
    }

    /// Starts a broker on the store of `faults`, which happen to it from its first step on, in every start.
    pub fn start_with(faults: &Faults, flags: &[&str]) -> Self {
        Self::new(scratch(), faults.store().to_owned(), flags, &[], Some(faults)).started()
    }

    /// As [`start_with`](Self::start_with), for a broker that may be killed before it is ready; see
    /// [`try_restart`](Self::try_restart).
    pub fn try_start_with(faults: &Faults, flags: &[&str]) -> (Self, bool) {
        let mut gantry = Self::new(scratch(), faults.store().to_owned(), flags, &[], Some(faults));
        let ready = gantry.try_restart();
        (gantry, ready)
    }

    /// Starts a broker through another command, which must replace itself by what its last arguments say.
    pub fn start_through(through: &[&str], store: &Path, flags: &[&str]) -> Self {
        Self::new(scratch(), store.to_owned(), flags, through, None).started()
    }

    /// A broker that is not started yet, with its store in `dir/store` and what it says in `dir/log`: both
    /// stay. `faults`, if any, must be on that store.
    pub fn kept(dir: &Path, flags: &[&str], faults: Option<&Faults>) -> Self {
        Self::stopped(None, dir.join("store"), dir.join("log"), flags, &[], faults)
    }

    fn new(dir: TempDir, store: PathBuf, flags: &[&str], through: &[&str], faults: Option<&Faults>) -> Self {
        let log = dir.path().join("log");
        Self::stopped(Some(dir), store, log, flags, through, faults)
    }

    fn started(mut self) -> Self {
        self.restart();
        self
    }

    fn stopped(
        scratch: Option<TempDir>,
        store: PathBuf,
        log: PathBuf,
        flags: &[&str],
        through: &[&str],
        faults: Option<&Faults>,
    ) -> Self {
        let ports = ports::free().expect("free ports");
        let [flags, through] = [flags, through].map(|all| all.iter().map(OsString::from).collect());
        Self { child: None, _scratch: scratch, store, log, flags, through, faults: faults.cloned(), ports }
    }

    /// Starts it again on the same ports and store, after [`kill9`](Self::kill9) or
    /// [`terminate`](Self::terminate). When it returns, the broker is ready.
    pub fn restart(&mut self) {
        let output = self.spawn();
        match first_line(output, READY_WITHIN) {
            Some(line) if line.starts_with("ready ") => {}
            other => panic!("expected `ready …` within {READY_WITHIN:?}, found {other:?}"),
        }
    }

    /// Starts it as [`restart`](Self::restart) does, but kills it `after` so long: most likely while it recovers.
    pub fn restart_and_kill9(&mut self, after: Duration) {
        let output = self.spawn();
        std::thread::sleep(after);
        self.kill9();
        drop(output); // open until now, so that its `ready` line finds a reader
    }

    /// Starts it as [`restart`](Self::restart) does; `false` when it ended before it was ready, by a signal
    /// or by itself. Then it is stopped, and can be started again.
    pub fn try_restart(&mut self) -> bool {
        let output = self.spawn();
        if first_line(output, READY_WITHIN).is_some_and(|line| line.starts_with("ready ")) {
            return true;
        }
        let child = self.child.as_mut().expect("it was started");
        assert!(
            wait(child, STOPPED_WITHIN).is_some(),
            "expected a broker that is ready or has ended within {READY_WITHIN:?}"
        );
        self.child = None;
        false
    }

    /// Starts it and sends SIGTERM `after` so long: it may be ready by then, or still recover, or not even listen
    /// to signals yet. It must end soon.
    pub fn restart_and_stop(&mut self, after: Duration) {
        let output = self.spawn();
        std::thread::sleep(after);
        self.signal(Signal::TERM);
        assert!(
            self.ended_within(STOPPED_WITHIN),
            "expected an end within {STOPPED_WITHIN:?} of SIGTERM {after:?} after its start"
        );
        drop(output);
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the broker runs");
        kill_process(pid(child), signal).expect("a signal can be sent");
    }

    /// Whether it ends within so long, by itself or by a signal. If so it is stopped, and can be started again.
    pub fn ended_within(&mut self, within: Duration) -> bool {
        let ended = self.child.as_mut().is_none_or(|child| wait(child, within).is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    /// From its next start on, it has these flags instead of those before.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(OsString::from).collect();
    }

    /// From its next start on, these faults happen to it instead of those before; they must be on its store.
    pub fn set_faults(&mut self, faults: &Faults) {
        self.faults = Some(faults.clone());
    }

    /// Waits until it was killed by SIGKILL: by a rule of its [`Faults`].
    pub fn wait_killed(&mut self) {
        let child = self.child.as_mut().expect("the broker runs");
        let status = wait(child, STOPPED_WITHIN);
        assert!(
            status.is_some_and(|status| status.signal() == Some(Signal::KILL.as_raw())),
            "expected SIGKILL within {STOPPED_WITHIN:?}, found {status:?}"
        );
        self.child = None;
    }

    /// Whether it runs: `false` once it was stopped, killed by a rule of its [`Faults`], or ended by itself.
    pub fn is_running(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        child.try_wait().expect("the child can be asked").is_none()
    }

    fn spawn(&mut self) -> ChildStdout {
        assert!(self.child.is_none(), "the broker still runs: stop it first");
        if let Some(faults) = &self.faults {
            faults.settle();
        }
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut child = serve(&self.through, &self.store)
            .envs(self.faults.iter().flat_map(Faults::environment))
            .args(["--name-port", &self.ports.name.to_string()])
            .args(["--broker-port", &self.ports.broker.to_string()])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the gantry binary starts");
        let output = child.stdout.take().expect("standard output is piped");
        self.child = Some(child);
        output
    }

    /// Kills it on the spot, as `kill -9` does.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the broker runs");
        child.kill().expect("SIGKILL can be sent");
        child.wait().expect("the broker ends");
    }

    /// Stops it as an operator does, with SIGTERM, and expects exit code 0.
    pub fn terminate(&mut self) {
        let child = self.child.as_mut().expect("the broker runs");
        kill_process(pid(child), Signal::TERM).expect("SIGTERM can be sent");
        let status = wait(child, STOPPED_WITHIN);
        assert!(
            status.is_some_and(|status| status.success()),
            "expected exit code 0 within {STOPPED_WITHIN:?} of SIGTERM, found {status:?}"
        );
        self.child = None;
    }

    /// Address of the name service.
    pub fn name_server(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.name))
    }

    /// Address of the broker.
    pub fn broker(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.broker))
    }

    /// Directory of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Id of the process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the broker runs").id()
    }

    /// What it said on standard error so far, of all its starts.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Gantry {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill(); // it may be gone already
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
            let tail = lines.get(lines.len().saturating_sub(LOG_TAIL)..).unwrap_or_default().join("\n");
            eprintln!("--- end of the broker's log, store {} ---\n{tail}\n---", self.store.display());
        }
    }
}

/// How a `gantry` that was not expected to keep running ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `gantry` with `arguments` until it ends by itself.
pub fn run(arguments: &[&str]) -> Ended {
    finish(Command::new(binary()).args(arguments))
}

/// Runs `gantry serve` on free ports, expecting that it refuses `store`.
pub fn serve_refusing(store: &Path, flags: &[&str]) -> Ended {
    finish(serve(&[], store).args(["--name-port", "0", "--broker-port", "0"]).args(flags))
}

fn finish(command: &mut Command) -> Ended {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the gantry binary starts");
    let readers = [
        child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
    ];
    let [stdout, stderr] = readers.map(|pipe| {
        let mut pipe = pipe.expect("it is piped");
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text); // what came before an error is shown
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let status = wait(&mut child, READY_WITHIN);
    if status.is_none() {
        child.kill().expect("SIGKILL can be sent");
        child.wait().expect("it ends");
    }
    let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().expect("the reader ends"));
    let Some(status) = status else {
        panic!("expected gantry to end within {READY_WITHIN:?}, found it running:\n{stdout}{stderr}");
    };
    Ended { code: status.code(), stdout, stderr }
}

fn serve(through: &[OsString], store: &Path) -> Command {
    let mut words = through.iter().map(OsString::as_os_str).chain([binary().as_os_str()]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    // How full the machine's disk is decides no test.
    for limit in ["GANTRY_RETENTION_FORCE_PERCENT", "GANTRY_RETENTION_REFUSE_PERCENT"] {
        command.env(limit, "100");
    }
    command.arg("serve").arg("--store").arg(store).env_remove("RUST_LOG");
    command
}

/// Waits until `condition` gives a value; panics with what `condition` last said at the deadline.
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(found) if Instant::now() >= deadline => {
                panic!("expected {what} within {within:?}, found {found}");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The `gantry` binary of the build that these tests belong to; built once if need be.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // The whole workspace's choice of features: what the tests themselves were built with.
        let built = build(&["--workspace", "--bin", "gantry"], "gantry");
        built.unwrap_or_else(|why| panic!("the gantry binary cannot be built: {why}"))
    })
}

/// Builds `what`, which makes a file called `name`, in the profile of these tests. Test executables lie in
/// `TARGET/PROFILE/deps`; binaries and preloaded libraries, this one among them, in `TARGET/PROFILE`.
pub(crate) fn build(what: &[&str], name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut dirs = own.ancestors().skip(1).skip_while(|dir| dir.ends_with("deps"));
    let profile_dir = dirs.next().ok_or("this executable lies in no target directory")?;
    let profile = profile_dir.file_name().and_then(|name| name.to_str()).ok_or("no profile directory")?;
    let target = profile_dir.parent().ok_or("no target directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["build", "--quiet"])
        .args(what)
        .args(["--profile", if profile == "debug" { "dev" } else { profile }])
        .arg("--target-dir")
        .arg(target)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    if !output.status.success() {
        let mut why = format!("{}\n", output.status);
        let _ = write!(why, "{}", String::from_utf8_lossy(&output.stderr)); // writing to a string does not fail
        return Err(why);
    }
    Ok(profile_dir.join(name))
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("gantry-test-").tempdir().expect("a temporary directory")
}

/// The first line of `output`; what follows is read and dropped, so that the writer never blocks.
pub(crate) fn first_line(output: impl Read + Send + 'static, within: Duration) -> Option<String> {
    let (sender, line) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut first = String::new();
        let _ = output.read_line(&mut first); // an error is the end of the output
        let _ = sender.send(first); // nobody waits any more: too late
        let _ = std::io::copy(&mut output, &mut std::io::sink());
    });
    line.recv_timeout(within).ok().filter(|line| !line.is_empty())
}

pub(crate) fn pid(child: &Child) -> Pid {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id is a positive number")
}

/// Waits until the child ends; `None` when it has not by then.
pub(crate) fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().expect("the child can be asked") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
