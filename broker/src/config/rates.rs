//! How much may pass: messages and bytes a second, and for how long that may come at once.

use std::collections::BTreeMap;

use super::{RateLimits, units};

/// The highest rate that means something: what is beyond it is a slip.
const RATE_MAX: u64 = 1 << 40;

/// What a topic or group says itself about its rates, by attributes. What it does not say the broker's defaults say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnRates {
    messages: Option<u64>,
    bytes: Option<u64>,
    burst_ms: Option<u32>,
}

impl OwnRates {
    /// What the attributes `PREFIX`, `PREFIX.bytes` and `PREFIX.burst` say. A value that cannot be read says nothing:
    /// it was stored by somebody who does not know them, and the broker refuses it.
    pub fn read(attributes: &BTreeMap<String, String>, prefix: &str) -> Self {
        if attributes.is_empty() {
            return Self::default();
        }
        let named = |suffix: &str| attributes.get(format!("{prefix}{suffix}").as_str());
        Self {
            messages: named("").and_then(|text| messages(text).ok()),
            bytes: named(".bytes").and_then(|text| bytes(text).ok()),
            burst_ms: named(".burst").and_then(|text| burst(text).ok()),
        }
    }

    /// Says the messages a second, like `100`; `None` when that cannot be read.
    pub fn set_messages(&mut self, text: &str) -> Option<()> {
        self.messages = Some(messages(text).ok()?);
        Some(())
    }

    /// Says the bytes a second, like `10MiB`; `None` when that cannot be read.
    pub fn set_bytes(&mut self, text: &str) -> Option<()> {
        self.bytes = Some(bytes(text).ok()?);
        Some(())
    }

    /// Says how much may come at once, like `500ms`; `None` when that cannot be read.
    pub fn set_burst(&mut self, text: &str) -> Option<()> {
        self.burst_ms = Some(burst(text).ok()?);
        Some(())
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, and `defaults` where they say nothing.
    pub fn over(&self, defaults: &RateLimits) -> RateLimits {
        RateLimits {
            messages: self.messages.unwrap_or(defaults.messages),
            bytes: self.bytes.unwrap_or(defaults.bytes),
            burst_ms: self.burst_ms.unwrap_or(defaults.burst_ms),
        }
    }
}

/// Reads messages a second, like `100` or `100/s`; 0 is no limit.
pub fn messages(text: &str) -> Result<u64, String> {
    let number = text.trim();
    let number = number.strip_suffix("/s").unwrap_or(number).trim_end();
    number
        .parse()
        .ok()
        .filter(|rate| *rate <= RATE_MAX)
        .ok_or_else(|| format!("{text:?} is no rate: write messages a second, like 100, or 0 for no limit"))
}

/// Reads bytes a second, like `10MiB` or `10MiB/s`; 0 is no limit.
pub fn bytes(text: &str) -> Result<u64, String> {
    let size = text.trim();
    let size = size.strip_suffix("/s").unwrap_or(size).trim_end();
    units::bytes(size)
        .ok()
        .filter(|rate| *rate <= RATE_MAX)
        .ok_or_else(|| format!("{text:?} is no rate: write bytes a second, like 10MiB, or 0 for no limit"))
}

/// Reads how much may come at once, as the time in which the rate lets it pass: 1 ms to 1 h.
pub fn burst(text: &str) -> Result<u32, String> {
    let time = units::duration(text).ok().and_then(|time| u32::try_from(time.as_millis()).ok());
    time.filter(|ms| (1..=3_600_000).contains(ms)).ok_or_else(|| {
        format!("{text:?} is no burst: write the time whose messages may come at once, 1ms to 1h")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units_and_bounds() {
        assert_eq!((messages("100"), messages(" 100/s "), messages("0")), (Ok(100), Ok(100), Ok(0)));
        assert_eq!((bytes("10MiB/s"), bytes("512")), (Ok(10 << 20), Ok(512)));
        assert_eq!((burst("500ms"), burst("1h")), (Ok(500), Ok(3_600_000)));
        for wrong in ["", "-1", "1.5", "ten", "18446744073709551615", "5/m"] {
            assert!(messages(wrong).is_err() && bytes(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0s", "2h", "5"] {
            assert!(burst(wrong).is_err_and(|error| error.contains("1ms to 1h")), "{wrong}");
        }
    }

    #[test]
    fn what_attributes_do_not_say_is_as_by_default() {
        let defaults = RateLimits { messages: 10, bytes: 20, burst_ms: 30 };
        let of = |pairs: &[(&str, &str)]| {
            let attributes = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            OwnRates::read(&attributes.collect(), "gantry.rate")
        };
        assert!(of(&[("gantry.dedup", "true"), ("gantry.rate", "many")]).is_empty());
        assert_eq!(of(&[]).over(&defaults), defaults);
        let own = of(&[("gantry.rate", "0"), ("gantry.rate.bytes", "1KiB")]);
        assert_eq!(own.over(&defaults), RateLimits { messages: 0, bytes: 1024, burst_ms: 30 });
    }
}
