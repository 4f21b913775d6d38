//! The text of a Java properties file, as `java.util.Properties` reads it.
//!
//! ```text
//! # a comment, as is ! at the front of a line
//! key = value      separated by `=`, `:` or blanks; blanks around the separator do not count
//! list = a,\       a line that ends in an odd number of backslashes goes on in the next
//!        b
//! path = C\:\\x    \t \n \r \f and \uXXXX stand for what they do in Java, any other \c for c
//! ```
//!
//! Bytes are characters of ISO 8859-1.

/// One pair, with the line that it begins in, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The line.
    pub line: usize,
    /// The name.
    pub key: String,
    /// The value, without blanks at its ends.
    pub value: String,
}

/// What cannot be read: the line, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to write.
    pub what: &'static str,
}

/// The pairs of a file, in order.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Pair>, Wrong> {
    let text: String = bytes.iter().copied().map(char::from).collect();
    let mut pairs = Vec::new();
    let unified = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines = unified.split('\n').enumerate();
    while let Some((number, first)) = lines.next() {
        let line = number + 1;
        let first = first.trim_start_matches(is_blank);
        if first.is_empty() || first.starts_with(['#', '!']) {
            continue;
        }
        let mut whole = first.to_owned();
        while goes_on(&whole) {
            whole.pop();
            let Some((_, next)) = lines.next() else { break };
            whole.push_str(next.trim_start_matches(is_blank));
        }
        let (key, value) = divide(&whole);
        let read = |text: &str| unescape(text).map_err(|what| Wrong { line, what });
        pairs.push(Pair { line, key: read(key)?, value: read(value)?.trim().to_owned() });
    }
    Ok(pairs)
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0c')
}

fn goes_on(line: &str) -> bool {
    line.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1
}

/// Key and value, with their escapes.
fn divide(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let ends = |(_, c): &(usize, char)| {
        let end = !escaped && (is_blank(*c) || matches!(c, '=' | ':'));
        escaped = *c == '\\' && !escaped;
        end
    };
    let end = line.char_indices().find(ends).map_or(line.len(), |(at, _)| at);
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start_matches(is_blank);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, rest.trim_start_matches(is_blank))
}

fn unescape(text: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\x0c'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4);
                out.push(code.and_then(char::from_u32).ok_or(
                    "\\u is not followed by four hexadecimal digits of a character: write \\\\u for the two characters",
                )?);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Ok(out)
}

/// Writes a value so that [`parse`] gives it back.
#[cfg(test)]
fn escape(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.chars().map(|c| if plain(c) { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(usize, String, String)> {
        let all = parse(text.as_bytes()).expect("it can be read");
        all.into_iter().map(|pair| (pair.line, pair.key, pair.value)).collect()
    }

    #[test]
    fn the_forms_of_java_are_read() {
        let text =
            "# c\n! c\n\n  a=1\r\nb : two words \rc\tthree\nd\ne=x,\\\n   y\nf\\=g=h\nh=\\u0041\\t\\\\\\q\n";
        let found = pairs(text);
        let expected = [
            (4, "a", "1"),
            (5, "b", "two words"),
            (6, "c", "three"),
            (7, "d", ""),
            (8, "e", "x,y"),
            (10, "f=g", "h"),
            (11, "h", "A\t\\q"),
        ];
        assert_eq!(found, expected.map(|(line, key, value)| (line, key.to_owned(), value.to_owned())));
    }

    #[test]
    fn the_end_of_the_file_ends_everything() {
        assert_eq!(pairs("a=b\\"), [(1, "a".to_owned(), "b".to_owned())]);
        assert_eq!(pairs(""), []);
        assert_eq!(parse(b"x=1\ny=\\u12").expect_err("too short").line, 2);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(key in "[a-zA-Z]{1,9}", value in "[!-~]([ -~]{0,20}[!-~])?") {
            let text = format!("{key}={}\n", escape(&value));
            prop_assert_eq!(pairs(&text), [(1, key, value)]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
