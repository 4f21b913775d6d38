//! The two ids of a message.
//!
//! **Offset message id**: where the message is. **UNIQ_KEY**: which message it is, made by its
//! producer and kept over retries. Both are upper-case hex of big-endian fields:
//!
//! ```text
//!  offset id   address 4 or 16 | port i32 | log position i64                  32 or 56 digits
//!  UNIQ_KEY    address 4 or 16 | pid u16 | process u32 | ms u32 | counter u16 32 or 56 digits
//! ```
//!
//! `ms` counts from the first of the month (UTC here; to everyone else the id is opaque).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::DecodeError;
use crate::ids::{Millis, PhyOffset};

const MS_PER_DAY: i64 = 86_400_000;
/// Digits of an id whose address is IPv6: the longest.
pub const ID_DIGITS_MAX: usize = 56;

/// Digits of a log position.
const OFFSET_DIGITS: usize = 16;

/// The two digits of each byte.
#[rustfmt::skip]
const HEX: [&str; 256] = [
    "00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "0A", "0B", "0C", "0D", "0E", "0F",
    "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "1A", "1B", "1C", "1D", "1E", "1F",
    "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "2A", "2B", "2C", "2D", "2E", "2F",
    "30", "31", "32", "33", "34", "35", "36", "37", "38", "39", "3A", "3B", "3C", "3D", "3E", "3F",
    "40", "41", "42", "43", "44", "45", "46", "47", "48", "49", "4A", "4B", "4C", "4D", "4E", "4F",
    "50", "51", "52", "53", "54", "55", "56", "57", "58", "59", "5A", "5B", "5C", "5D", "5E", "5F",
    "60", "61", "62", "63", "64", "65", "66", "67", "68", "69", "6A", "6B", "6C", "6D", "6E", "6F",
    "70", "71", "72", "73", "74", "75", "76", "77", "78", "79", "7A", "7B", "7C", "7D", "7E", "7F",
    "80", "81", "82", "83", "84", "85", "86", "87", "88", "89", "8A", "8B", "8C", "8D", "8E", "8F",
    "90", "91", "92", "93", "94", "95", "96", "97", "98", "99", "9A", "9B", "9C", "9D", "9E", "9F",
    "A0", "A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "A9", "AA", "AB", "AC", "AD", "AE", "AF",
    "B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "BA", "BB", "BC", "BD", "BE", "BF",
    "C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "CA", "CB", "CC", "CD", "CE", "CF",
    "D0", "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "DA", "DB", "DC", "DD", "DE", "DF",
    "E0", "E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "EA", "EB", "EC", "ED", "EE", "EF",
    "F0", "F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "FA", "FB", "FC", "FD", "FE", "FF",
];

fn push_hex(bytes: &[u8], out: &mut String) {
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push_str(HEX[usize::from(*byte)]);
    }
}

fn push_ip(ip: IpAddr, out: &mut String) {
    match ip {
        IpAddr::V4(ip) => push_hex(&ip.octets(), out),
        IpAddr::V6(ip) => push_hex(&ip.octets(), out),
    }
}

/// Where a message is: the broker that stores it, and the position in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetMsgId {
    /// Address of the broker, as its records carry it.
    pub store_host: SocketAddr,
    /// Position of the record in that broker's log.
    pub offset: PhyOffset,
}

impl OffsetMsgId {
    /// The id of the record at `offset` of the broker at `store_host`.
    pub const fn new(store_host: SocketAddr, offset: PhyOffset) -> Self {
        Self { store_host, offset }
    }

    /// Appends the id's digits, at most [`ID_DIGITS_MAX`].
    pub fn push_to(&self, out: &mut String) {
        push_ip(self.store_host.ip(), out);
        push_hex(&u32::from(self.store_host.port()).to_be_bytes(), out);
        push_hex(&self.offset.to_wire().to_be_bytes(), out);
    }

    /// Appends the ids of several messages of one broker, separated by commas: what a batch is answered with.
    pub fn push_all(store_host: SocketAddr, offsets: impl IntoIterator<Item = PhyOffset>, out: &mut String) {
        let mut head = None;
        for offset in offsets {
            let Some((from, to)) = head else {
                let from = out.len();
                Self { store_host, offset }.push_to(out);
                head = Some((from, out.len() - OFFSET_DIGITS));
                continue;
            };
            out.push(',');
            out.extend_from_within(from..to);
            push_hex(&offset.to_wire().to_be_bytes(), out);
        }
    }
}

impl fmt::Display for OffsetMsgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = String::with_capacity(ID_DIGITS_MAX);
        self.push_to(&mut digits);
        f.pad(&digits)
    }
}

impl FromStr for OffsetMsgId {
    type Err = DecodeError;

    /// Reads 32 or 56 hex digits of either case.
    fn from_str(digits: &str) -> Result<Self, DecodeError> {
        let (ip, rest): (IpAddr, _) = match digits.len() {
            32 => {
                let (ip, rest) = hex_word(digits, 0, 8)?;
                (IpAddr::V4((u32::try_from(ip).unwrap_or_default()).into()), rest)
            }
            56 => {
                let (high, rest) = hex_word(digits, 0, 16)?;
                let (low, rest) = hex_word(digits, rest, 16)?;
                (IpAddr::V6((u128::from(high) << 64 | u128::from(low)).into()), rest)
            }
            len => return Err(DecodeError::new(len, "an offset message id of 32 or 56 hex digits")),
        };
        let (port, offset_at) = hex_word(digits, rest, 8)?;
        let port = u16::try_from(port).map_err(|_| DecodeError::new(rest, "a port of at most 65535"))?;
        let (offset, _) = hex_word(digits, offset_at, 16)?;
        let offset = PhyOffset::from_wire(offset.cast_signed())
            .ok_or_else(|| DecodeError::new(offset_at, "a log position of 0 or more"))?;
        Ok(Self { store_host: SocketAddr::new(ip, port), offset })
    }
}

/// The number in the `len` (at most 16) hex digits at `at`, and where they end.
fn hex_word(digits: &str, at: usize, len: usize) -> Result<(u64, usize), DecodeError> {
    let end = at + len;
    digits
        .get(at..end)
        // A sign is no digit, though the parser would take it.
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|word| u64::from_str_radix(word, 16).ok())
        .map(|word| (word, end))
        .ok_or_else(|| DecodeError::new(at, format!("{len} hex digits")))
}

/// Makes the UNIQ_KEYs of one process; all threads may share it.
#[derive(Debug)]
pub struct UniqKeys {
    /// Digits of address and pid.
    head: String,
    /// Tells two lives of the same pid apart.
    process: u32,
    /// Milliseconds and counter (lowest 16 bits) of the last id. It only grows, so an id is never
    /// made twice: not when the clock goes back, and not when the counter runs over.
    last: AtomicU64,
}

impl UniqKeys {
    /// A source of ids for the process `pid` on the host `ip`. `process` is a number that differs
    /// between two processes that could share a pid, such as two lives of one container.
    pub fn new(ip: IpAddr, pid: u32, process: u32) -> Self {
        let mut head = String::with_capacity(ID_DIGITS_MAX);
        push_ip(ip, &mut head);
        let [_, _, high, low] = pid.to_be_bytes();
        push_hex(&[high, low], &mut head);
        Self { head, process, last: AtomicU64::new(0) }
    }

    /// Appends a new id to `out`: 32 digits, or 56 on an IPv6 host.
    pub fn next_into(&self, now: Millis, out: &mut String) {
        let floor = now.get().clamp(0, i64::MAX >> 16).cast_unsigned() << 16;
        let step = |last: u64| last.saturating_add(1).max(floor);
        // Relaxed: only the number itself must be unique.
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(step(last)))
            .unwrap_or_else(|last| last);
        let [ms @ .., counter_high, counter_low] = step(last).to_be_bytes();
        let ms = ms.iter().fold(0_i64, |ms, byte| ms << 8 | i64::from(*byte));
        let (month, month_start) = month_of(ms);
        // The months' milliseconds overlap; mixing in the month keeps their ids apart.
        let process = self.process ^ month;
        let ms_of_month = u32::try_from(ms - month_start).unwrap_or_default();
        out.push_str(&self.head);
        push_hex(&process.to_be_bytes(), out);
        push_hex(&ms_of_month.to_be_bytes(), out);
        push_hex(&[counter_high, counter_low], out);
    }
}

/// The running number of the month of `ms`, and its first millisecond, both since 1970 in UTC.
///
/// Counts days from the first of March of a year divisible by 400: February, the odd one, is then
/// the last month, and the months from March on are 30.6 days long on average.
fn month_of(ms: i64) -> (u32, i64) {
    const DAYS_TO_1970: i64 = 719_468;
    const DAYS_OF_400_YEARS: i64 = 146_097;
    let days = ms.div_euclid(MS_PER_DAY);
    let shifted = days + DAYS_TO_1970;
    let day_of_era = shifted.rem_euclid(DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5;
    let era = shifted.div_euclid(DAYS_OF_400_YEARS);
    let month = (era * 400 + year_of_era - 1970) * 12 + month_from_march + 2;
    (u32::try_from(month).unwrap_or_default(), (days - day_of_month) * MS_PER_DAY)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn vectors(kind: &str) -> Vec<Value> {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/message_ids.json"));
        let mut all: Vec<Value> = serde_json::from_str(text).unwrap();
        all.retain(|vector| vector["kind"] == kind);
        assert!(!all.is_empty());
        all
    }

    fn next(keys: &UniqKeys, now: i64) -> String {
        let mut id = String::new();
        keys.next_into(Millis::new(now), &mut id);
        id
    }

    #[test]
    fn offset_ids_are_those_of_the_java_classes() {
        for vector in vectors("offsetMsgId") {
            let ip: IpAddr = vector["ip"].as_str().unwrap().parse().unwrap();
            let port = u16::try_from(vector["port"].as_u64().unwrap()).unwrap();
            let id = OffsetMsgId::new(
                SocketAddr::new(ip, port),
                PhyOffset::new(vector["offset"].as_u64().unwrap()),
            );
            let digits = vector["msgId"].as_str().unwrap();
            assert_eq!(id.to_string(), digits);
            assert_eq!(digits.parse(), Ok(id));
            assert_eq!(digits.to_lowercase().parse(), Ok(id));
        }
    }

    #[test]
    fn what_is_no_offset_id_is_refused() {
        for (digits, at) in [
            ("", 0),
            ("7F00000100002A9F000000000000000", 31),
            ("+F00000100002A9F0000000000000000", 0),
            ("7F00000100012A9F0000000000000000", 8),
            ("7F00000100002A9F8000000000000000", 16),
            ("\u{4e3b}00000100002A9F000000000000000", 0),
        ] {
            assert_eq!(digits.parse::<OffsetMsgId>().unwrap_err().at, at, "{digits}");
        }
    }

    #[test]
    fn uniq_keys_have_the_layout_of_the_java_clients() {
        for vector in vectors("UNIQ_KEY") {
            let ip: IpAddr = vector["ip"].as_str().unwrap().parse().unwrap();
            let pid = u32::try_from(vector["pid"].as_u64().unwrap()).unwrap();
            let java = vector["id"].as_str().unwrap();
            let ours = next(&UniqKeys::new(ip, pid, 0), 1_700_000_000_000);
            assert_eq!(ours.len(), java.len());
            let head = java.len() - 20;
            assert_eq!(ours[..head], java[..head]);
        }
    }

    #[test]
    fn uniq_keys_differ_though_the_clock_goes_back_or_stands() {
        let keys = UniqKeys::new([127, 0, 0, 1].into(), 1, 7);
        let mut seen = HashSet::new();
        for now in [5_000, 5_000, 3_000, 0, -1, 5_001] {
            assert!(seen.insert(next(&keys, now)), "at {now}");
        }
        // More in one millisecond than the counter holds.
        for _ in 0..70_000 {
            assert!(seen.insert(next(&keys, 5_001)));
        }
    }

    #[test]
    fn uniq_keys_of_two_months_differ_at_the_same_millisecond() {
        let january = next(&UniqKeys::new([127, 0, 0, 1].into(), 1, 7), 1_704_067_200_000);
        let february = next(&UniqKeys::new([127, 0, 0, 1].into(), 1, 7), 1_706_745_600_000);
        assert_eq!(january[20..], february[20..]);
        assert_ne!(january, february);
    }

    #[test]
    fn months_start_where_the_calendar_says() {
        for (at, month, start) in [
            (0, 0, 0),
            (1_709_251_199_999, 649, 1_706_745_600_000), // last of February 2024, a leap year
            (1_709_251_200_000, 650, 1_709_251_200_000), // 1 March 2024
            (1_735_689_599_999, 659, 1_733_011_200_000), // last of December 2024
            (1_735_689_600_000, 660, 1_735_689_600_000), // 1 January 2025
        ] {
            assert_eq!(month_of(at), (month, start), "{at}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(v6 in any::<bool>(), ip in any::<u128>(), port in any::<u16>(), raw in 0..=i64::MAX) {
            let low = u32::try_from(ip >> 96).unwrap();
            let ip = if v6 { IpAddr::V6(ip.into()) } else { IpAddr::V4(low.into()) };
            let id = OffsetMsgId::new(SocketAddr::new(ip, port), PhyOffset::from_wire(raw).unwrap());
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_judged(text in "\\PC{0,60}", digits in "[0-9A-G]{56}") {
            let _ = (text.parse::<OffsetMsgId>(), digits.parse::<OffsetMsgId>());
        }

        #[test]
        fn any_time_is_within_its_month(ms in 0_i64..=(i64::MAX >> 16)) {
            let (_, start) = month_of(ms);
            prop_assert!((0..31 * MS_PER_DAY).contains(&(ms - start)));
        }
    }
}
