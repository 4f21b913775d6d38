//! The tolerant reader: from any of the dialects to a [`Value`].

use serde_json::{Map, Number, Value};

use crate::error::DecodeError;

/// Containers inside one another, at most.
const DEPTH_MAX: usize = 64;

/// Reads one document. Object keys become their compact JSON text; `$ref`s are resolved.
pub fn parse(input: &[u8]) -> Result<Value, DecodeError> {
    let text =
        std::str::from_utf8(input).map_err(|error| DecodeError::new(error.valid_up_to(), "JSON in UTF-8"))?;
    let mut parser = Parser { text, at: 0, in_key: false, references: false };
    let value = parser.value(0)?;
    parser.skip_space();
    if parser.at < text.len() {
        return Err(parser.expected("the end of the JSON text"));
    }
    if parser.references {
        // A document of references to references must not grow beyond what was sent by much.
        let mut budget = input.len().saturating_mul(16);
        return resolve(&value, &value, 0, &mut budget);
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Inside an object key. Keys in keys would be escaped once more at each level, which doubles their size.
    in_key: bool,
    references: bool,
}

impl Parser<'_> {
    fn expected(&self, what: impl Into<String>) -> DecodeError {
        DecodeError::new(self.at, what)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Skips space, then takes `byte` if it comes next.
    fn eat(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, DecodeError> {
        if depth > DEPTH_MAX {
            return Err(self.expected(format!("at most {DEPTH_MAX} nested containers")));
        }
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(Value::String),
            Some(b'-' | b'+' | b'0'..=b'9') => self.number(),
            _ => match self.token() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                "null" | "NaN" => Ok(Value::Null),
                _ => Err(self.expected("a JSON value")),
            },
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.at += 1;
        let mut map = Map::new();
        loop {
            if self.eat(b'}') {
                break;
            }
            let key = self.key(depth)?;
            if !self.eat(b':') {
                return Err(self.expected("`:` after a key"));
            }
            let value = self.value(depth + 1)?;
            self.references |= key == "$ref" && value.is_string();
            map.insert(key, value);
            if !self.eat(b',') {
                if self.eat(b'}') {
                    break;
                }
                return Err(self.expected("`,` or `}`"));
            }
        }
        Ok(Value::Object(map))
    }

    fn array(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            if self.eat(b']') {
                break;
            }
            items.push(self.value(depth + 1)?);
            if !self.eat(b',') {
                if self.eat(b']') {
                    break;
                }
                return Err(self.expected("`,` or `]`"));
            }
        }
        Ok(Value::Array(items))
    }

    fn key(&mut self, depth: usize) -> Result<String, DecodeError> {
        self.skip_space();
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => self.string(quote),
            Some(b'{' | b'[') if self.in_key => Err(self.expected("no container as a key inside a key")),
            Some(b'{' | b'[') => {
                self.in_key = true;
                let key = self.value(depth + 1)?;
                self.in_key = false;
                Ok(key.to_string())
            }
            _ => match self.token() {
                "" => Err(self.expected("a key")),
                token => Ok(token.to_owned()),
            },
        }
    }

    /// Takes the letters, digits and signs that stand here.
    fn token(&mut self) -> &str {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_$-+.".contains(&byte)) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn number(&mut self) -> Result<Value, DecodeError> {
        let start = self.at;
        let number = number_from(self.token());
        number.map(Value::Number).ok_or_else(|| DecodeError::new(start, "a number"))
    }

    fn string(&mut self, quote: u8) -> Result<String, DecodeError> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let run = self.at;
            while self.peek().is_some_and(|byte| byte != quote && byte != b'\\') {
                self.at += 1;
            }
            out.push_str(self.text.get(run..self.at).unwrap_or_default());
            match self.peek() {
                Some(b'\\') => {
                    self.at += 1;
                    self.escape(&mut out)?;
                }
                Some(_) => {
                    self.at += 1;
                    return Ok(out);
                }
                None => return Err(DecodeError::new(start, "a string that is closed")),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), DecodeError> {
        let Some(letter) = self.text.get(self.at..).and_then(|rest| rest.chars().next()) else {
            return Err(self.expected("an escaped character"));
        };
        self.at += letter.len_utf8();
        out.push(match letter {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' | 'F' => '\u{c}',
            'v' => '\u{b}',
            '0'..='7' => char::from(letter as u8 - b'0'),
            'x' => char::from_u32(self.hex(2)?).unwrap_or(char::REPLACEMENT_CHARACTER),
            'u' => self.unicode()?,
            other => other,
        });
        Ok(())
    }

    /// A `\u` escape, with its second half when it is a surrogate pair. Half a pair is replaced:
    /// Java strings may hold one, UTF-8 cannot.
    fn unicode(&mut self) -> Result<char, DecodeError> {
        let first = self.hex(4)?;
        if (0xd800..0xdc00).contains(&first) && self.text.as_bytes().get(self.at..self.at + 2) == Some(b"\\u")
        {
            let back = self.at;
            self.at += 2;
            let second = self.hex(4)?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self, digits: usize) -> Result<u32, DecodeError> {
        let text = self.text.get(self.at..self.at + digits);
        let code = text
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|text| u32::from_str_radix(text, 16).ok())
            .ok_or_else(|| self.expected(format!("{digits} hexadecimal digits")))?;
        self.at += digits;
        Ok(code)
    }
}

/// The number that `text` is, whole if it can be.
pub(super) fn number_from(text: &str) -> Option<Number> {
    let whole = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from));
    whole.ok().or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64))
}

/// A copy of `value` with every `{"$ref": path}` replaced by what the path names in `root`. A path that
/// names nothing becomes null. `budget` bounds the nodes of the copy.
fn resolve(value: &Value, root: &Value, depth: usize, budget: &mut usize) -> Result<Value, DecodeError> {
    if depth > DEPTH_MAX || *budget == 0 {
        return Err(DecodeError::new(0, "references that end and do not multiply the document"));
    }
    *budget -= 1;
    Ok(match value {
        Value::Object(map) => match map.get("$ref") {
            Some(Value::String(path)) if map.len() == 1 => match look_up(root, path) {
                Some(target) => resolve(target, root, depth + 1, budget)?,
                None => Value::Null,
            },
            _ => {
                let mut copy = Map::new();
                for (key, value) in map {
                    *budget = budget.saturating_sub(key.len() / 8);
                    copy.insert(key.clone(), resolve(value, root, depth + 1, budget)?);
                }
                Value::Object(copy)
            }
        },
        Value::Array(items) => Value::Array(
            items.iter().map(|item| resolve(item, root, depth + 1, budget)).collect::<Result<_, _>>()?,
        ),
        Value::String(text) => {
            *budget = budget.saturating_sub(text.len() / 8);
            value.clone()
        }
        other => other.clone(),
    })
}

/// Follows `$.name[0].name`. A name may be any key; fastjson escapes `.` and `[` in names with a backslash.
fn look_up<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    let mut rest = path.strip_prefix('$')?;
    let mut value = root;
    while !rest.is_empty() {
        if let Some(indexed) = rest.strip_prefix('[') {
            let (index, after) = indexed.split_once(']')?;
            value = match value {
                Value::Array(items) => items.get(index.parse::<usize>().ok()?)?,
                Value::Object(map) => map.get(index.trim_matches(['\'', '"']))?,
                _ => return None,
            };
            rest = after;
        } else {
            let mut name = String::new();
            let mut after = rest.strip_prefix('.')?;
            while let Some(next) = after.chars().next().filter(|next| !matches!(next, '.' | '[')) {
                after = after.get(next.len_utf8()..)?;
                match after.chars().next() {
                    Some(escaped) if next == '\\' => {
                        after = after.get(escaped.len_utf8()..)?;
                        name.push(escaped);
                    }
                    _ => name.push(next),
                }
            }
            value = value.get(&name)?;
            rest = after;
        }
    }
    Some(value)
}
