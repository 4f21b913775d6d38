//! The words of an expression, one after the other.

use std::fmt;

use super::SqlError;

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    End,
    Name(&'a str),
    Key(Keyword),
    /// Between the quotes; a quote inside is still doubled.
    Text(&'a str),
    /// Digits alone.
    Whole(&'a str),
    Decimal(&'a str),
    Sign(&'static str),
}

/// The words that are no names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Not,
    And,
    Or,
    Between,
    In,
    Is,
    True,
    False,
    Null,
    Contains,
    StartsWith,
    EndsWith,
}

const KEYWORDS: [(&str, Keyword); 12] = [
    ("NOT", Keyword::Not),
    ("AND", Keyword::And),
    ("OR", Keyword::Or),
    ("BETWEEN", Keyword::Between),
    ("IN", Keyword::In),
    ("IS", Keyword::Is),
    ("TRUE", Keyword::True),
    ("FALSE", Keyword::False),
    ("NULL", Keyword::Null),
    ("CONTAINS", Keyword::Contains),
    ("STARTSWITH", Keyword::StartsWith),
    ("ENDSWITH", Keyword::EndsWith),
];

/// The longer ones first.
const SIGNS: [&str; 11] = ["<>", ">=", "<=", "=", ">", "<", "(", ")", ",", "+", "-"];

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shortened = |text: &str| match text.char_indices().nth(40) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text.to_owned(),
        };
        match self {
            Self::End => f.write_str("the end"),
            Self::Name(text) | Self::Whole(text) | Self::Decimal(text) => {
                write!(f, "`{}`", shortened(text))
            }
            Self::Text(text) => write!(f, "the text '{}'", shortened(text)),
            Self::Sign(sign) => write!(f, "`{sign}`"),
            Self::Key(keyword) => {
                let name = KEYWORDS.iter().find(|(_, listed)| listed == keyword).map_or("", |(name, _)| name);
                f.write_str(name)
            }
        }
    }
}

/// Reads words off a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Behind the last line: only before it does `--` begin a comment.
    last_line_end: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let last_line_end = text.rfind(['\n', '\r']).unwrap_or(0);
        Self { text, at: 0, last_line_end }
    }

    /// An error that was noticed at byte `at`.
    pub(super) fn wrong(&self, at: usize, what: impl Into<String>) -> SqlError {
        SqlError::Wrong { at: self.character(at), what: what.into() }
    }

    /// Number of the character at byte `at`, from 1.
    pub(super) fn character(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or(self.text).chars().count() + 1
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next word and the byte at which it begins.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize), SqlError> {
        self.skip()?;
        let (start, rest) = (self.at, self.rest());
        let Some(first) = rest.chars().next() else { return Ok((Token::End, start)) };
        let (token, length) = if first == '\'' {
            self.quoted(rest)?
        } else if is_name_start(first) {
            let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let name = rest.get(..length).unwrap_or_default();
            let keyword = KEYWORDS.iter().find(|(keyword, _)| keyword.eq_ignore_ascii_case(name));
            (keyword.map_or(Token::Name(name), |(_, keyword)| Token::Key(*keyword)), length)
        } else if let Some(number) = number(rest) {
            number
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            let hint = match first {
                '"' => ": a text stands between single quotes",
                '!' => ": unequal is <>",
                '&' => ": write AND",
                '|' => ": write OR",
                ';' => ": a filter is one expression, without an end sign",
                _ => "",
            };
            let shown = if first.is_control() { first.escape_unicode().collect() } else { first.to_string() };
            return Err(self.wrong(start, format!("`{shown}` means nothing here{hint}")));
        };
        self.at += length;
        Ok((token, start))
    }

    /// Passes over blanks and comments.
    fn skip(&mut self) -> Result<(), SqlError> {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']).len();
            self.at += blank;
            let rest = self.rest();
            if rest.starts_with("--") && self.at < self.last_line_end {
                self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let end = comment
                    .find("*/")
                    .ok_or_else(|| self.wrong(self.at, "the comment does not end: write */ where it does"))?;
                self.at += end + "/**/".len();
            } else {
                return Ok(());
            }
        }
    }

    /// A text between quotes, and how long it is with them.
    fn quoted(&self, rest: &'a str) -> Result<(Token<'a>, usize), SqlError> {
        let bytes = rest.as_bytes();
        let mut end = 1;
        loop {
            match (bytes.get(end), bytes.get(end + 1)) {
                (Some(b'\''), Some(b'\'')) => end += 2,
                (Some(b'\''), _) => return Ok((Token::Text(rest.get(1..end).unwrap_or_default()), end + 1)),
                (Some(_), _) => end += 1,
                (None, _) => {
                    return Err(self.wrong(self.at, "the text does not end: write ' where it does"));
                }
            }
        }
    }
}

const fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == '$'
}

const fn is_name(c: char) -> bool {
    is_name_start(c) || c.is_ascii_digit()
}

/// The number at the start, and how long it is. A whole number with digits behind a leading zero ends after it.
fn number(rest: &str) -> Option<(Token<'_>, usize)> {
    let bytes = rest.as_bytes();
    let digits_from = |from: usize| {
        let behind = bytes.get(from..).unwrap_or_default();
        behind.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let whole = digits_from(0);
    let point = bytes.get(whole) == Some(&b'.');
    let fraction = if point { digits_from(whole + 1) } else { 0 };
    if whole + fraction == 0 {
        return None;
    }
    let mut end = whole + usize::from(point) + fraction;
    let mut exponent = 0;
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let digits = digits_from(end + 1 + sign);
        exponent = if digits == 0 { 0 } else { 1 + sign + digits };
    }
    end += exponent;
    if point || exponent > 0 {
        return Some((Token::Decimal(rest.get(..end)?), end));
    }
    if bytes.first() == Some(&b'0') {
        return Some((Token::Whole(rest.get(..1)?), 1));
    }
    let suffix = usize::from(matches!(bytes.get(end), Some(b'l' | b'L')));
    Some((Token::Whole(rest.get(..end)?), end + suffix))
}
