//! Plots as SVG: lines over axes, nothing else.

use std::fmt::Write as _;

use super::table::{escaped, short};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// Room for the axes: left, top, right, bottom.
const ROOM: (f64, f64, f64, f64) = (58.0, 14.0, 12.0, 40.0);
/// Colours of lines that can be told apart, also without red and green.
const COLOURS: [&str; 8] =
    ["#0060c0", "#d97706", "#8c4a00", "#1a8a5a", "#8a3fbf", "#c02050", "#557788", "#6b7000"];

/// The colour of a line, by its place.
pub fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

/// A line of a plot.
pub struct Line {
    /// Which colour: the place of what it shows among all that are shown anywhere.
    pub place: usize,
    /// What it shows.
    pub name: String,
    /// Points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Where a value lies on an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    Linear { low: f64, high: f64 },
    Logarithmic { low: f64, high: f64 },
}

impl Scale {
    /// From 0 to 1 between its ends.
    fn at(self, value: f64) -> f64 {
        match self {
            Self::Linear { low, high } => (value - low) / (high - low),
            Self::Logarithmic { low, high } => (value.max(low) / low).log10() / (high / low).log10(),
        }
    }

    /// Whole powers of ten around these values.
    fn decades(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self::Logarithmic { low: 1.0, high: 10.0 };
        }
        let low = 10_f64.powf(low.log10().floor());
        Self::Logarithmic { low, high: 10_f64.powf(high.log10().ceil()).max(low * 10.0) }
    }

    /// From zero to above the largest of these values.
    fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0_f64, f64::max);
        Self::Linear { low: 0.0, high: if most > 0.0 { most * 1.05 } else { 1.0 } }
    }

    /// Where lines and numbers are.
    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { low, high } => {
                let step = round_step((high - low) / 5.0);
                std::iter::successors(Some(low), |tick| Some(tick + step))
                    .take_while(|tick| *tick <= high)
                    .collect()
            }
            Self::Logarithmic { low, high } => {
                let decades = |tick: &f64| Some(tick * 10.0);
                // A little more: ten times a tenth is not one.
                std::iter::successors(Some(low), decades).take_while(|tick| *tick <= high * 1.001).collect()
            }
        }
    }
}

/// A round number close to a step: 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| times * power >= step);
    power * times.unwrap_or(10.0)
}

/// Latency by percentile. The axis of percentiles is logarithmic in what is left: as much room for the step from
/// 99 to 99.9 % as for that from 90 to 99 %. Points are (operations that took longer, as a share; milliseconds).
pub fn percentiles(lines: &[Line]) -> String {
    let across = Scale::Logarithmic { low: 1.0, high: 1e5 };
    let up = Scale::decades(lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)));
    let ticks: Vec<_> =
        [("0", 1.0), ("90", 10.0), ("99", 100.0), ("99.9", 1e3), ("99.99", 1e4), ("99.999", 1e5)]
            .map(|(name, at)| (name.to_owned(), at))
            .into();
    let points = |line: &Line| line.points.iter().map(|(left, y)| (1.0 / left.max(1e-5), *y)).collect();
    drawn(lines, points, (across, &ticks, "percentile"), (up, "latency, ms"))
}

/// Throughput over time. Points are (seconds; messages a second).
pub fn over_time(lines: &[Line]) -> String {
    let end = lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x)).fold(0.1, f64::max);
    let across = Scale::Linear { low: 0.0, high: end };
    let up = Scale::from_zero(lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)));
    let ticks: Vec<_> = across
        .ticks()
        .into_iter()
        .map(|tick| (format!("{}", (tick * 100.0).round() / 100.0), tick))
        .collect();
    drawn(lines, |line| line.points.clone(), (across, &ticks, "seconds"), (up, "messages/s"))
}

type Across<'a> = (Scale, &'a [(String, f64)], &'a str);

fn drawn(
    lines: &[Line],
    points: impl Fn(&Line) -> Vec<(f64, f64)>,
    (across, ticks, x_name): Across<'_>,
    (up, y_name): (Scale, &str),
) -> String {
    let (left, top, right, bottom) = ROOM;
    let x = |value: f64| left + across.at(value) * (WIDTH - left - right);
    let y = |value: f64| HEIGHT - bottom - up.at(value) * (HEIGHT - top - bottom);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n"
    );
    let (end, floor) = (WIDTH - right, HEIGHT - bottom);
    // Writing to a string does not fail, here and below.
    for tick in up.ticks() {
        let at = y(tick);
        let _ = writeln!(svg, "<path class=\"g\" d=\"M{left:.1} {at:.1}H{end:.1}\"/>");
        let (text, at) = (axis_number(tick), at + 4.0);
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"end\">{text}</text>", left - 6.0);
    }
    for (name, tick) in ticks {
        let at = x(*tick);
        let _ = writeln!(svg, "<path class=\"g\" d=\"M{at:.1} {top:.1}V{floor:.1}\"/>");
        let under = floor + 16.0;
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{under:.1}\" text-anchor=\"middle\">{}</text>",
            escaped(name)
        );
    }
    let (middle, below) = (f64::midpoint(left, end), HEIGHT - 6.0);
    let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{x_name}</text>");
    let half = f64::midpoint(top, floor);
    let _ = writeln!(
        svg,
        "<text transform=\"translate(12 {half:.1}) rotate(-90)\" text-anchor=\"middle\">{y_name}</text>"
    );
    for line in lines {
        let points = points(line);
        // A line of no length is a dot.
        let dot = if points.len() == 1 { "h0" } else { "" };
        let path = points.into_iter().fold(String::new(), |mut path, (at, value)| {
            let step = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{step}{:.1} {:.1}", x(at), y(value));
            path
        });
        let (name, colour) = (escaped(&line.name), colour(line.place));
        let _ = writeln!(
            svg,
            "<path class=\"l\" stroke=\"{colour}\" d=\"{path}{dot}\"><title>{name}</title></path>"
        );
    }
    svg + "</svg>\n"
}

fn axis_number(value: f64) -> String {
    match value.abs() {
        1e6.. => format!("{}M", trimmed(short(value / 1e6))),
        1e3..1e6 => format!("{}k", trimmed(short(value / 1e3))),
        0.0..1.0 => format!("{}", (value * 1e6).round() / 1e6),
        _ => trimmed(short(value)),
    }
}

/// Without zeroes behind the point.
fn trimmed(number: String) -> String {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.').to_owned() } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(
            Scale::decades([0.03, 7.0, 0.0].into_iter())
                .ticks()
                .iter()
                .map(|tick| axis_number(*tick))
                .collect::<Vec<_>>(),
            ["0.01", "0.1", "1", "10"]
        );
        let linear = Scale::from_zero([120_000.0, 218_000.0].into_iter());
        assert_eq!(
            linear.ticks().iter().map(|tick| axis_number(*tick)).collect::<Vec<_>>(),
            ["0", "50k", "100k", "150k", "200k"]
        );
        assert_eq!(axis_number(1_500_000.0), "1.5M");
    }

    #[test]
    fn each_step_to_the_next_nine_is_as_wide() {
        let line =
            Line { place: 0, name: "a & b".to_owned(), points: vec![(1.0, 0.1), (0.1, 1.0), (0.01, 10.0)] };
        let svg = percentiles(&[line]);
        let path = svg.lines().find(|line| line.contains("class=\"l\"")).unwrap();
        // A hundredth of the room is 4.9 units: the points are a fifth of 490 apart.
        assert!(path.contains("M58.0 260.0L156.0 137.0L254.0 14.0") && path.contains("a &amp; b"), "{path}");
    }

    #[test]
    fn nothing_to_show_is_an_empty_plot() {
        assert!(percentiles(&[]).contains("</svg>") && over_time(&[]).contains("</svg>"));
    }
}
