//! Ctrl-C: what runs is given up at the next look, so that every guard stops what it started.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// How often somebody who waits looks whether to stop.
const LOOK: Duration = Duration::from_millis(20);

static ASKED: AtomicBool = AtomicBool::new(false);

/// Catches SIGINT and SIGTERM from now on. A second one ends this process at once.
pub fn listen() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(either(&mut interrupt, &mut terminate));
        eprintln!("stopping");
        ASKED.store(true, Ordering::Relaxed);
        runtime.block_on(either(&mut interrupt, &mut terminate));
        exit(130);
    });
    Ok(())
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// An error once this process was asked to stop.
pub fn check() -> Result<(), Failure> {
    if ASKED.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Sleeps, or fails when this process is asked to stop.
pub fn sleep(time: Duration) -> Result<(), Failure> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(LOOK));
    }
}
