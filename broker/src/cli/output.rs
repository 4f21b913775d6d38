//! What commands print: data on standard output, everything else on standard error.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};
use std::process::ExitCode;

use gantry_client::ErrorKind;
use gantry_proto::ids::Millis;
use serde::Serialize;
use serde_json::json;

use super::args::{Format, Printing};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// It cannot be asked like that: exit code 2. The text ends with what to try.
    Usage(String),
    /// It was refused, or something was not found: exit code 1. The text ends with what to try.
    Refused(String),
    /// Nobody reads what it prints any more: it stops, and that is fine.
    Unread,
}

impl Failure {
    /// Reports it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let (code, text) = match self {
            Self::Usage(text) => (2, text),
            Self::Refused(text) => (1, text),
            Self::Unread => return ExitCode::SUCCESS,
        };
        eprintln!("error: {text}");
        ExitCode::from(code)
    }
}

impl From<gantry_client::Error> for Failure {
    fn from(error: gantry_client::Error) -> Self {
        match error.kind() {
            ErrorKind::Invalid => Self::Usage(text(&error)),
            _ => Self::Refused(text(&error)),
        }
    }
}

/// An error and, in brackets behind it, the causes that it does not name itself.
pub fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            let _ = write!(text, " ({why})"); // writing to a string does not fail
        }
        cause = error.source();
    }
    text
}

/// A failure to print.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Refused(format!("writing to standard output failed: {error}; check where it goes")),
        }
    }
}

/// Standard output.
#[derive(Debug)]
pub struct Output {
    to: BufWriter<Stdout>,
    format: Format,
    terminal: bool,
}

impl Output {
    /// Standard output in this format.
    pub fn new(format: Format) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { to: BufWriter::new(stdout), format, terminal }
    }

    /// The format.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// One JSON value on one line.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.to, value).map_err(io::Error::from)?;
        self.to.write_all(b"\n")?;
        Ok(())
    }

    /// A table: aligned under its headings on a terminal, tab-separated without them in a pipe.
    pub fn table(&mut self, headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let text = if self.terminal { aligned(headings, rows, bold()) } else { tabbed(rows) };
        self.to.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Names and values, one a line.
    pub fn fields(&mut self, fields: &[(&str, String)]) -> Result<(), Failure> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in fields {
            if self.terminal {
                writeln!(self.to, "{name:width$}  {value}")?;
            } else {
                writeln!(self.to, "{name}\t{value}")?;
            }
        }
        Ok(())
    }

    /// Bytes on a line of their own; line breaks in them are written `\n` and `\r`.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            match piece.split_last() {
                Some((b'\n', text)) => self.to.write_all(text).and_then(|()| self.to.write_all(b"\\n"))?,
                Some((b'\r', text)) => self.to.write_all(text).and_then(|()| self.to.write_all(b"\\r"))?,
                _ => self.to.write_all(piece)?,
            }
        }
        self.to.write_all(b"\n")?;
        Ok(())
    }

    /// Hands everything to whoever reads.
    pub fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.to.flush()?)
    }
}

fn bold() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn tabbed(rows: &[Vec<String>]) -> String {
    rows.iter().fold(String::new(), |text, row| text + &row.join("\t") + "\n")
}

fn aligned(headings: &[&str], rows: &[Vec<String>], bold: bool) -> String {
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(column, heading)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).chain([heading.len()]).max().unwrap_or_default()
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(line, "{cell:width$}  "); // writing to a string does not fail
        }
        line.trim_end().to_owned()
    };
    let heading = line(&mut headings.iter().copied());
    let mut text = if bold { format!("\x1b[1m{heading}\x1b[0m\n") } else { heading + "\n" };
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
        text.push('\n');
    }
    text
}

/// A time in UTC, like `2026-01-31T23:59:59.000Z`; `-` for a time that is not known (0 or less).
pub fn time(at: Millis) -> String {
    if at.get() <= 0 {
        return "-".to_owned();
    }
    let (seconds, millis) = (at.get() / 1000, at.get() % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March: the leap day is their last one, and 400 of them have 146 097 days.
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Reads what [`time`] writes, with or without milliseconds. `None` for anything else.
pub fn parse_time(text: &str) -> Option<Millis> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, millis) = match clock.split_once('.') {
        Some((clock, digits)) if digits.len() == 3 => (clock, digits.parse::<u16>().ok()?),
        Some(_) => return None,
        None => (clock, 0),
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let fits = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (year, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Millis::new(seconds * 1000 + i64::from(millis)))
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator).map(|part| part.parse::<u16>().ok().map(i64::from));
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

/// Says what became of the `kind` called `name`: on standard error for people, as JSON on request.
pub fn done(printing: Printing, kind: &str, name: &str, outcome: &str) -> Result<(), Failure> {
    match printing.output {
        Format::Text => eprintln!("{kind} {name} {outcome}"),
        Format::Json => {
            let mut output = Output::new(printing.output);
            output.json(&json!({kind: name, "outcome": outcome}))?;
            output.flush()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(time(Millis::new(951_782_400_001)), "2000-02-29T00:00:00.001Z");
        assert_eq!(time(Millis::new(1_767_225_599_999)), "2025-12-31T23:59:59.999Z");
        assert_eq!(time(Millis::ZERO), "-");
        assert_eq!(parse_time("2000-02-29T00:00:00Z"), Some(Millis::new(951_782_400_000)));
        for wrong in
            ["", "2000-02-29", "2000-13-01T00:00:00Z", "2000-01-01T24:00:00Z", "2000-01-01T00:00:00.1Z"]
        {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        let inner = io::Error::other("the disk is gone");
        assert_eq!(text(&io::Error::other(inner)), "the disk is gone");
        let time = "x".parse::<u8>().expect_err("no number");
        assert_eq!(text(&time), time.to_string());
    }

    #[test]
    fn tables_are_for_people_and_tabs_for_programs() {
        let rows = vec![vec!["a".to_owned(), "10".to_owned()], vec!["longer".to_owned(), "2".to_owned()]];
        assert_eq!(tabbed(&rows), "a\t10\nlonger\t2\n");
        assert_eq!(aligned(&["NAME", "N"], &rows, false), "NAME    N\na       10\nlonger  2\n");
        assert!(aligned(&["NAME", "N"], &rows, true).starts_with("\x1b[1mNAME"));
    }

    proptest! {
        #[test]
        fn times_round_trip(ms in 1_i64..253_402_300_799_999) {
            prop_assert_eq!(parse_time(&time(Millis::new(ms))), Some(Millis::new(ms)));
        }

        #[test]
        fn any_text_is_a_time_or_none(text in ".*") {
            let _ = parse_time(&text);
        }
    }
}
