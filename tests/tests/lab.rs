//! Every fault of the lab once, briefly. Long runs: `tests/README.md`.

use std::time::Duration;

use gantry_tests::lab::{self, Choice, Fault, Options, Pace};

fn once(fault: Fault) {
    let seed = fastrand::u64(..);
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    let options = Options {
        choice: Choice { seed, faults: vec![fault], policy: None, pace: Pace::Brief },
        duration: Duration::from_secs(3600),
        only_round: Some(0),
        dir: dir.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let run = lab::run(&options, std::future::pending(), |line| println!("{line}"));
    let report = runtime.expect("a runtime").block_on(run).expect("a directory that can be used");
    assert!(report.is_clean(), "expected no contradiction, found\n{}", report.markdown());
    std::fs::remove_dir_all(dir).expect("the directory goes");
}

macro_rules! faults {
    ($($name:ident: $fault:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            once(Fault::$fault);
        })+

        #[test]
        fn every_fault_has_a_test() {
            assert_eq!([$(Fault::$fault),+], Fault::ALL);
        }
    };
}

faults! {
    a_kill_breaks_no_promise: Kill,
    a_storm_of_restarts_breaks_no_promise: Restarts,
    a_frozen_process_breaks_no_promise: Freeze,
    a_kill_at_a_certain_operation_breaks_no_promise: Point,
    a_power_cut_breaks_no_promise: Power,
    a_full_disk_breaks_no_promise: Full,
    writes_that_fail_break_no_promise: EioWrite,
    syncs_that_fail_break_no_promise: EioSync,
    a_slow_disk_breaks_no_promise: SlowDisk,
    a_clock_that_jumps_breaks_no_promise: Clock,
    half_open_connections_break_no_promise: HalfOpen,
    slow_readers_break_no_promise: SlowReader,
    clients_that_come_and_go_break_no_promise: Reconnect,
}
