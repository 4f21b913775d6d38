//! The load generators in `drivers/`, one directory each: built at their first use, from what was downloaded
//! before if that is enough, and again when a source is newer.
//!
//! Each takes a [`Load`] as one JSON document, and prints what [`crate::load`] says.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_tests::java::{newest_source, temporary_files_in};

use crate::failure::Failure;
use crate::load::Load;

/// A directory below `drivers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Kafka's client; its broker is among the libraries.
    Kafka,
    /// NATS's client.
    Nats,
    /// The benchmark classes of Apache RocketMQ.
    RocketMq,
}

impl Driver {
    /// Where it is, built or not.
    pub fn dir(self) -> PathBuf {
        let name = match self {
            Self::Kafka => "kafka",
            Self::Nats => "nats",
            Self::RocketMq => "rocketmq",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers").join(name)
    }

    /// Builds it, if need be. Errors say what is missing on this machine.
    pub fn build(self) -> Result<(), Failure> {
        match self {
            Self::Nats => needs("go", "version", "Go 1.26 is needed")?,
            Self::Kafka | Self::RocketMq => {
                needs("java", "-version", "JDK 17 and Maven 3.8 are needed")?;
                needs("mvn", "-v", "JDK 17 and Maven 3.8 are needed")?;
            }
        }
        let dir = self.dir();
        let io = |error: io::Error| Failure::Peer(format!("{}: {error}", dir.display()));
        let target = dir.join("target");
        fs::create_dir_all(&target).map_err(io)?;
        // One build at a time, until the file is closed.
        let lock = File::create(target.join("lock")).map_err(io)?;
        lock.lock().map_err(io)?;
        let stamp = target.join("built");
        let built = fs::metadata(&stamp).and_then(|stamp| stamp.modified()).ok();
        if built <= newest_source(&dir).map_err(io)? {
            match self {
                Self::Nats => go(&dir, &["build", "-o", "target/driver", "."])?,
                Self::Kafka | Self::RocketMq => maven(&dir)?,
            }
            fs::write(stamp, "").map_err(io)?;
        }
        drop(lock);
        Ok(())
    }

    /// A program of a Java driver, in a JVM with these flags. Its temporary files lie beside `store`, and go with the
    /// directory that both are in.
    pub fn java(self, store: &Path, flags: &[&str], main: &str) -> Result<Command, Failure> {
        let target = self.dir().join("target");
        let temporary = temporary_files_in(&store.with_extension("tmp"));
        let temporary = temporary.map_err(Failure::system("making a directory for temporary files"))?;
        let mut command = Command::new("java");
        command.args(flags).arg(temporary).arg("-cp");
        command.arg(format!("{0}/classes:{0}/lib/*", target.display())).arg(main);
        Ok(command)
    }
}

/// A load as drivers read it.
pub fn document(load: &Load) -> Result<String, Failure> {
    serde_json::to_string(load).map_err(|error| Failure::system("writing JSON")(error.into()))
}

fn needs(program: &str, argument: &str, why: &str) -> Result<(), Failure> {
    let mut command = Command::new(program);
    let status =
        command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if status.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(Failure::Peer(format!("{program} is missing; {why}")))
    }
}

/// Runs `go` in a directory, with the toolchain that is there.
pub fn go(dir: &Path, arguments: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new("go");
    command.current_dir(dir).args(arguments);
    finished(command.env("GOTOOLCHAIN", "local").env("GOBIN", dir.join("target")))
}

fn maven(dir: &Path) -> Result<(), Failure> {
    let package = |options: &[&str]| {
        let mut command = Command::new("mvn");
        finished(command.current_dir(dir).args(["-q", "-B"]).args(options).arg("package"))
    };
    package(&["-o"]).or_else(|_| package(&[]))
}

fn finished(command: &mut Command) -> Result<(), Failure> {
    let output =
        command.stdin(Stdio::null()).output().map_err(Failure::system("building a load generator"))?;
    if output.status.success() {
        return Ok(());
    }
    // Maven tells its errors on standard output, Go on the other.
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let first = said.lines().find(|line| line.contains("ERROR")).or(said.lines().last());
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    Err(Failure::Peer(format!("`{}` failed: {}", words.join(" "), first.unwrap_or("no reason given"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_of_a_program_go_with_its_store() {
        let dir = tempfile::tempdir().unwrap();
        let command = Driver::Kafka.java(&dir.path().join("store"), &[], "Main").unwrap();
        let temporary = dir.path().join("store.tmp");
        let flag = format!("-Djava.io.tmpdir={}", temporary.display());
        assert!(temporary.is_dir() && command.get_args().any(|word| word == flag.as_str()), "{command:?}");
    }

    #[test]
    fn what_is_missing_or_fails_is_named() {
        let missing = needs("no-such-program", "-v", "it is needed").unwrap_err().to_string();
        assert!(missing.contains("no-such-program is missing; it is needed"), "{missing}");
        let mut command = Command::new("sh");
        let failed =
            finished(command.args(["-c", "echo one; echo [ERROR] two; exit 1"])).unwrap_err().to_string();
        assert!(failed.contains("failed: [ERROR] two"), "{failed}");
    }
}
