//! `gantry serve`: runs the broker until it is told to stop.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::broker::Broker;
use crate::config::{Config, Loaded, ServeArgs};
use crate::store::disk::{Disk as _, RealDisk};

/// Runs `gantry serve`.
pub fn run(args: &ServeArgs) -> ExitCode {
    let Loaded { config, ignored } = match crate::config::load(args, |name| std::env::var_os(name)) {
        Ok(loaded) => loaded,
        Err(error) => return super::fail(2, &error),
    };
    settle_allocator();
    super::log_to_stderr("info");
    for key in ignored {
        tracing::info!("{key}");
    }
    raise_open_files();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(1, &error),
    };
    match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(1, error.as_ref()),
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let node = config.node.clone();
    if !node.bind.is_loopback() {
        tracing::warn!(
            "listening on {}, beyond this machine, without authentication: anyone who reaches the ports can read and \
             write every message. Bind to a loopback or private address unless a firewall stands before it",
            node.bind
        );
    }
    let broker = Broker::start(config).await?;
    let ready = format!("ready name-server={} broker={}", broker.name_address(), broker.broker_address());
    println!("{ready}");
    io::stdout().flush()?;
    if let Some(file) = &node.ready_file {
        RealDisk.replace(file, format!("{ready}\n").as_bytes())?;
    }
    either(&mut terminate, &mut interrupt).await;
    tracing::info!("stopping: answering what is under way; a second signal ends at once");
    tokio::select! {
        stopped = broker.stop() => stopped?,
        () = either(&mut terminate, &mut interrupt) => std::process::exit(1),
    }
    tracing::info!("stopped");
    Ok(())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What the C library's allocator is told: large blocks go back to the system when they are freed, and so does the
/// end of the heap. By default it learns from large blocks that were freed to keep the next ones, until many times
/// what is in use is kept.
const ALLOCATOR: &str =
    "glibc.malloc.mmap_threshold=262144:glibc.malloc.trim_threshold=524288:glibc.malloc.arena_max=4";

/// The allocator reads its settings only when a process begins: begins this one again, once, under the same number.
/// Settings that were there already are left as they are; where it does not work the broker only takes more memory.
fn settle_allocator() {
    const VARIABLE: &str = "GLIBC_TUNABLES";
    if cfg!(not(target_env = "gnu")) || std::env::var_os(VARIABLE).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut arguments = std::env::args_os();
        let mut again = Command::new(program);
        again.arg0(arguments.next().unwrap_or_default()).args(arguments).env(VARIABLE, ALLOCATOR);
        let _ = again.exec(); // it returns only when it did not work
    }
}

/// Each connection and each queue in use is an open file; the usual soft limit of 1024 is soon reached.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
