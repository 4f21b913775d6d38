use clap::Parser as _;
use gantry_benches::load::{Latency, Load, Series, Used};

use super::*;
use crate::alone::names;
use crate::options::Part;

fn run(broker: Kind, round: u32, messages_per_second: f64, cpu: f64) -> Run {
    let measured = Measured {
        messages: 1,
        errors: 0,
        first_error: None,
        seconds: 1.0,
        messages_per_second,
        latency_ms: Latency { p50: 1.0, p90: 1.5, p99: 2.0, p99_9: 3.0, p99_99: 4.0, max: 5.0 },
        histogram_us: vec![(1000.0, 90), (2000.0, 9), (5000.0, 1)],
        series: Some(Series { interval_ms: 100, messages: vec![10, 20, 3] }),
        broker: Some(Used { cpu_seconds: 1.0, cpu_seconds_per_million: Some(cpu), rss_anon_peak_mib: 10.0 }),
        client: None,
    };
    let (shape, load) = ("send, 64 in flight".to_owned(), Load::produce("send"));
    Run { part: Part::Send, shape, policy: Policy::Disk, broker, round, load, measured }
}

fn report() -> Report {
    let mut report = Report::new(&Options::parse_from(["compare"]));
    report.machine =
        Machine { cores: 2, processor: "P".to_owned(), memory_gib: 4, kernel: "6.1.0".to_owned() };
    report.broker(Kind::Gantry, String::new());
    report.broker(Kind::Apache, "JVM with -Xmx1g".to_owned());
    for (round, gantry) in [(1, 600.0), (2, 100.0), (3, 500.0)] {
        report.run(run(Kind::Gantry, round, gantry, 2.0));
        report.run(run(Kind::Apache, round, 100.0, 20.0));
    }
    report.figure(names::START, "ms", Some(50.0), Kind::Gantry, 120.0);
    report.figure(names::START, "ms", Some(50.0), Kind::Apache, 8000.0);
    report.figure(names::IDLE_CPU, "% of a core", Some(0.5), Kind::Gantry, 0.1);
    report.failed(Kind::Apache, "recovery", &Failure::Peer("no <java>".to_owned())).unwrap();
    report
}

#[test]
fn tables_show_medians_ratios_and_what_is_missing() {
    let text = report().markdown();
    for line in [
        "2 cores (P), 4 GiB, Linux 6.1.0. Medians of 3 round(s), of shapes without a target of 1, each 3.0 s long; 0 minutes in all.",
        "Apache 5.5.0: JVM with -Xmx1g.",
        "NOT MEASURED: Apache 5.5.0, recovery: no <java>; to leave a broker out: --peers",
        "| disk | send, 64 in flight | 0.10 | 5.00 | 1.00 | 1.00 |",
        "| send, 64 in flight | Gantry | 500 | 1.000 | 2.000 | 3.000 | 4.000 | 5.000 | 2.00 | 10.0 | 0 |",
        "|  | Apache 5.5.0 | 100 | 1.000 | 2.000 | 3.000 | 4.000 | 5.000 | 20.00 | 10.0 | 0 |",
        "| start to first send, empty store (Gantry ≤ 50) | ms | 120 (missed) | 8000 |",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis missing in\n{text}");
    }
    assert!(!text.contains("Policy memory"), "{text}");
}

#[test]
fn targets_are_judged_by_the_run() {
    let text = report().markdown();
    for line in [
        "| the same, disk | ≤ 1/8 of Apache | 2.00 | 20.0 | – | – | met |",
        "| throughput, disk, 64 in flight | ≥ 5 × Apache | 500/s | 100/s | – | – | met |",
        "| idle CPU after a load, % of a core | ≤ 0.5 (beside Apache 5.5.0) | 0.100 | – | – | – | met |",
        "| start to first send, empty / large store after SIGKILL, s | ≤ 0.05 / ≤ 0.3 | – | – | – | – | not measured |",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis missing in\n{text}");
    }
    assert_eq!(text.lines().filter(|line| line.ends_with(" | not measured |")).count(), 12, "{text}");
}

#[test]
fn the_page_has_plots_and_needs_nothing_else() {
    let page = report().html();
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("class=\"l\"").count(), 4);
    assert!(page.contains("no &lt;java&gt;") && !page.contains("http"), "{page}");
}

#[test]
fn points_of_plots_come_from_all_rounds() {
    let report = report();
    let runs = report.runs_of("send, 64 in flight", Policy::Disk, Kind::Gantry);
    let points: Vec<_> =
        html::left_after(&runs).into_iter().map(|(left, millis)| format!("{left:.2} {millis}")).collect();
    assert_eq!(points, ["1.00 1", "0.10 2", "0.01 5"]);
    let rates: Vec<_> = runs.first().map(|run| html::rates(run)).unwrap_or_default();
    assert_eq!(rates.len(), 2);
}

#[test]
fn an_open_loop_that_a_broker_cannot_hold_is_a_line_of_the_report() {
    let mut report = report();
    let load = Load { rate: Some(200), ..Load::produce("open-loop") };
    let shape = Shape { part: Part::OpenLoop, name: "open loop".to_owned(), load, rounds: 1 };
    assert!(
        report.holds(&shape, Policy::Disk, Kind::Gantry)
            && report.holds(&shape, Policy::Memory, Kind::Apache)
    );
    assert!(
        !report.holds(&shape, Policy::Disk, Kind::Apache)
            && !report.holds(&shape, Policy::Disk, Kind::Apache)
    );
    let line = "NOT MEASURED: Apache 5.5.0, open loop, policy disk: it sends 100/s without a timetable";
    assert_eq!(report.markdown().lines().filter(|found| *found == line).count(), 1);
}
