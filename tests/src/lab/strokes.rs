//! Faults that strike a process: each function strikes once and leaves a broker that is ready again.

use std::time::Duration;

use rustix::process::Signal;

use super::plan::Pace;
use super::stage::{CLIENT_TIMEOUT, Stage};

/// Kills it at any moment, sometimes once more while it starts.
pub fn kill(stage: &mut Stage) -> u32 {
    let mut kills = 1;
    stage.kill9();
    while kills < 6 && stage.rng.u8(..) < 80 {
        stage.kill_start();
        kills += 1;
    }
    stage.restart();
    kills
}

/// Stops and kills it in quick succession: running, ready a moment ago, or still starting.
pub fn restarts(stage: &mut Stage, pace: Pace) -> u32 {
    let most = if pace == Pace::Brief { 4 } else { 10 };
    let ends = stage.rng.u32(3..=most);
    let mut runs = true;
    for _ in 0..ends {
        match (runs, stage.rng.bool()) {
            (true, true) => stage.terminate(),
            (true, false) => stage.kill9(),
            (false, true) => {
                let after = stage.within_a_start();
                tokio::task::block_in_place(|| stage.gantry.restart_and_stop(after));
            }
            (false, false) => stage.kill_start(),
        }
        runs = stage.rng.bool();
        if runs {
            stage.restart();
        }
    }
    if !runs {
        stage.restart();
    }
    ends
}

/// Stops its clock and everything else for longer than clients wait.
pub async fn freeze(stage: &mut Stage) -> u32 {
    let longer = Duration::from_millis(stage.rng.u64(200..1500));
    stage.checker.allow_delay(CLIENT_TIMEOUT + longer);
    stage.gantry.signal(Signal::STOP);
    tokio::time::sleep(CLIENT_TIMEOUT + longer).await;
    stage.gantry.signal(Signal::CONT);
    1
}
