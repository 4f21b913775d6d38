//! Arguments that several commands share, and how their values are read.

use std::time::Duration;

use clap::{Args, ValueEnum};
use gantry_client::{Client, ClientOptions};
use gantry_proto::ids::Millis;

use super::output::{Failure, parse_time};
use crate::config::units;

/// Where the cluster is.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Name server to ask; several are separated by `;`.
    #[arg(long, value_name = "HOST:PORT", env = "GANTRY_NAME_SERVER", default_value = "127.0.0.1:9876")]
    pub name_server: String,
}

impl Target {
    /// Connects to the name server.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(ClientOptions::new(&*self.name_server)).await?)
    }
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables on a terminal, tab-separated lines in a pipe.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// The choice of a format.
#[derive(Clone, Copy, Debug, Args)]
pub struct Printing {
    /// How data is printed on standard output.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Consent to what cannot be undone.
#[derive(Clone, Copy, Debug, Args)]
pub struct Consent {
    /// Do it: this cannot be undone.
    #[arg(long)]
    pub yes: bool,
}

impl Consent {
    /// Fails unless it was given; `what` says what would be lost.
    pub fn require(self, what: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        Err(Failure::Usage(format!("{what}: nothing was done; add --yes if that is what you want")))
    }
}

/// Reads `name=value`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as name=value".to_owned()),
    }
}

/// Reads `100` or `100/s`: events per second, more than none.
pub fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err("write a number of messages per second above 0, like 100/s".to_owned()),
    }
}

/// Reads seconds, or a time with its unit like `500ms` or `2m`.
pub fn span(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => units::duration(text),
    }
}

/// How long messages wait: so long, or spread evenly over two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// The shortest.
    pub from: Duration,
    /// The longest.
    pub to: Duration,
}

impl Delays {
    /// The delay of the message with this number. Any run of numbers is spread over all of it.
    pub fn of(self, number: u64) -> Duration {
        // Multiples of the golden ratio, without their whole part, leave no large gap.
        const RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
        let micros = u64::try_from(self.to.saturating_sub(self.from).as_micros()).unwrap_or(u64::MAX);
        let part = (u128::from(micros) * u128::from(number.wrapping_mul(RATIO))) >> 64;
        self.from + Duration::from_micros(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

/// Reads a time like `10s`, or two like `10m..40d`.
pub fn delays(text: &str) -> Result<Delays, String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let (from, to) = (span(from)?, span(to)?);
    if from > to {
        return Err("write the shorter time first, like 10m..40d".to_owned());
    }
    Ok(Delays { from, to })
}

/// Reads milliseconds since the epoch or a time like `2026-01-31T23:59:59Z`.
pub fn instant(text: &str) -> Result<Millis, String> {
    let ms = text.parse().ok().filter(|ms| *ms >= 0).map(Millis::new);
    ms.or_else(|| parse_time(text))
        .ok_or_else(|| "write milliseconds since 1970, or a time like 2026-01-31T23:59:59Z".to_owned())
}

/// Reads a number of bytes, like `128` or `4KiB`.
pub fn size(text: &str) -> Result<usize, String> {
    let bytes = units::bytes(text)?;
    usize::try_from(bytes).map_err(|_| format!("{bytes} bytes do not fit into memory"))
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The first message there is.
    First,
    /// Behind the last message there is.
    Last,
    /// The first message stored at or after this time.
    Time(Millis),
}

/// Reads `first`, `last`, milliseconds since the epoch or a time like `2026-01-31T23:59:59Z`.
pub fn from(text: &str) -> Result<From, String> {
    match text {
        "first" => Ok(From::First),
        "last" => Ok(From::Last),
        _ => {
            text.parse().ok().filter(|ms| *ms >= 0).map(Millis::new).or_else(|| parse_time(text)).map_or_else(
                || {
                    Err("write first, last, milliseconds since 1970, or a time like 2026-01-31T23:59:59Z"
                        .to_owned())
                },
                |time| Ok(From::Time(time)),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("a").is_err());
        assert_eq!(rate("2.5/s"), Ok(2.5));
        assert_eq!(rate("100"), Ok(100.0));
        assert!(rate("0").is_err() && rate("-1").is_err() && rate("NaN").is_err() && rate("many").is_err());
        assert_eq!(span("3"), Ok(Duration::from_secs(3)));
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert!(span("soon").is_err());
        assert_eq!(size("4KiB"), Ok(4096));
    }

    #[test]
    fn delays_are_spread_over_their_range() {
        let day = Duration::from_secs(86_400);
        let range = delays("10m..40d").unwrap();
        assert_eq!((range.from, range.to), (Duration::from_secs(600), 40 * day));
        assert_eq!(delays("5s").map(|range| range.of(77)), Ok(Duration::from_secs(5)));
        let mut days = [0; 40];
        for delay in (5_000..9_000).map(|number| range.of(number)) {
            assert!((range.from..=range.to).contains(&delay));
            days[usize::try_from(delay.as_secs() / 86_400).unwrap().min(39)] += 1;
        }
        assert!(days.iter().all(|count| (95..=105).contains(count)), "{days:?}");
        assert!(delays("2s..1s").is_err() && delays("1s..").is_err() && delays("soon").is_err());
    }

    #[test]
    fn starts_are_words_or_times() {
        assert_eq!(from("first"), Ok(From::First));
        assert_eq!(from("last"), Ok(From::Last));
        assert_eq!(from("1000"), Ok(From::Time(Millis::new(1000))));
        assert_eq!(from("1970-01-01T00:00:01Z"), Ok(From::Time(Millis::new(1000))));
        assert!(from("yesterday").is_err() && from("-5").is_err());
    }
}
