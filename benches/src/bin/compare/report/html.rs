//! The report as one HTML page that needs nothing else.

use std::fmt::Write as _;

use gantry_benches::load::Measured;
use gantry_benches::peer::{Kind, Policy};

use super::plot::{self, Line, colour};
use super::table::escaped;
use super::{Report, Section};

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 1240px;
  margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #d5dce3; }
h3 { font-size: 1.05em; margin: 1.4em 0 .3em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #e4e9ee; text-align: left; white-space: nowrap; }
th { background: #f3f6f9; } .n { text-align: right; }
.good { color: #14713f; font-weight: 600; } .bad { color: #b3261e; font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1em; }
svg { max-width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #4a5866; }
.g { stroke: #e4e9ee; fill: none; } .l { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.key { display: inline-block; margin-right: 1.2em; font-size: 13px; }
.key i { display: inline-block; width: 1.6em; height: 3px; vertical-align: middle; margin-right: .4em; }
";

impl Report {
    /// The report as HTML.
    pub fn html(&self) -> String {
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>Gantry and its peers</title>\n\
             <style>{STYLE}</style>\n<h1>Gantry and its peers</h1>\n"
        );
        for paragraph in self.introduction() {
            // Writing to a string does not fail, here and below.
            let _ = writeln!(text, "<p>{}</p>", escaped(&paragraph));
        }
        for Section { heading, text: remark, table } in self.sections() {
            let _ = writeln!(text, "<h2>{}</h2>", escaped(&heading));
            if !remark.is_empty() {
                let _ = writeln!(text, "<p>{}</p>", escaped(&remark));
            }
            let _ = writeln!(text, "<div class=\"scroll\">{}</div>", table.html());
        }
        for policy in Policy::ALL {
            let shapes = self.shapes(policy);
            if shapes.is_empty() {
                continue;
            }
            let _ = writeln!(text, "<h2>Plots, policy {}</h2>\n<p>{}</p>", policy.name(), self.key());
            let _ = writeln!(
                text,
                "<p>Latency of all rounds together by percentile; throughput of the median round over time.</p>"
            );
            for shape in shapes {
                let (latency, throughput) = (self.latencies(shape, policy), self.throughputs(shape, policy));
                let _ = writeln!(
                    text,
                    "<h3>{}</h3>\n<div class=\"plots\">\n{}{}</div>",
                    escaped(shape),
                    plot::percentiles(&latency),
                    plot::over_time(&throughput)
                );
            }
        }
        text + "</html>\n"
    }

    /// Which colour is whose.
    fn key(&self) -> String {
        self.kinds().enumerate().fold(String::new(), |mut text, (place, kind)| {
            let (colour, name) = (colour(place), escaped(kind.name()));
            let _ = write!(text, "<span class=\"key\"><i style=\"background:{colour}\"></i>{name}</span>");
            text
        })
    }

    fn lines(&self, points: impl Fn(Kind) -> Vec<(f64, f64)>) -> Vec<Line> {
        let line =
            |(place, kind): (usize, Kind)| Line { place, name: kind.name().to_owned(), points: points(kind) };
        self.kinds().enumerate().map(line).filter(|line| !line.points.is_empty()).collect()
    }

    fn latencies(&self, shape: &str, policy: Policy) -> Vec<Line> {
        self.lines(|kind| left_after(&self.runs_of(shape, policy, kind)))
    }

    fn throughputs(&self, shape: &str, policy: Policy) -> Vec<Line> {
        self.lines(|kind| {
            let mut runs = self.runs_of(shape, policy, kind);
            runs.sort_by(|one, other| one.messages_per_second.total_cmp(&other.messages_per_second));
            runs.get(runs.len() / 2).map(|run| rates(run)).unwrap_or_default()
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

/// For each latency of all runs together, in milliseconds: which share took longer. Points closer than can be seen
/// are left out.
pub(super) fn left_after(runs: &[&Measured]) -> Vec<(f64, f64)> {
    let mut all: Vec<_> = runs.iter().flat_map(|run| &run.histogram_us).copied().collect();
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let total: u64 = all.iter().map(|(_, count)| count).sum();
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut before = 0;
    for (micros, count) in all {
        let (left, millis) = (float(total - before) / float(total), micros / 1000.0);
        if points.last().is_none_or(|(last, slower)| left < last * 0.98 && *slower < millis) {
            points.push((left, millis));
        }
        before += count;
    }
    points
}

/// Messages a second in each interval; the last one is shorter and left out.
pub(super) fn rates(run: &Measured) -> Vec<(f64, f64)> {
    let Some(series) = &run.series else { return Vec::new() };
    let seconds = float(series.interval_ms) / 1000.0;
    let whole = series.messages.len().saturating_sub(1).max(1);
    let point = |(at, messages): (u64, &u64)| ((float(at) + 0.5) * seconds, float(*messages) / seconds);
    (0..).zip(&series.messages).take(whole).map(point).collect()
}
