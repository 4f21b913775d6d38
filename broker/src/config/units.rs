//! Values with units, as they are written in flags, environment and file.

use std::time::Duration;

/// Reads `500ms`, `6s`, `10m`, `72h` or `3d`. A number alone is refused: peers disagree on the unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: write a whole number with ms, s, m, h or d, like 6s");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    // A time beyond the signed range could not be added to a timestamp.
    let millis = millis.filter(|ms| i64::try_from(*ms).is_ok()).ok_or_else(wrong)?;
    Ok(Duration::from_millis(millis))
}

/// Reads a number of bytes: `4194304`, `64KiB`, `4MiB`, `1GiB` or `1TiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write bytes, or a number with KiB, MiB, GiB or TiB");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2 h"), Ok(Duration::from_secs(7200)));
        for wrong in
            ["", "6", "s", "-1s", "1.5s", "6 weeks", "18446744073709551615d", "9223372036854775808ms"]
        {
            assert!(duration(wrong).is_err_and(|error| error.contains("like 6s")), "{wrong}");
        }
    }

    #[test]
    fn sizes_count_in_powers_of_two() {
        assert_eq!(bytes("4MiB"), Ok(4_194_304));
        assert_eq!(bytes("17"), Ok(17));
        for wrong in ["", "4MB", "MiB", "-4", "18446744073709551615KiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
