//! The command header: who asks or answers what.
//!
//! JSON form: one object with the keys `code extFields flag language opaque remark version`. Binary form:
//!
//! ```text
//!  code i16 | language u8 | version i16 | opaque i32 | flag i32
//!  remark length i32 | remark
//!  ext length i32    | { name length i16 | name | value length i32 | value } …
//! ```
//!
//! The binary code is what is left of the code after cutting it to 16 bits: it is handed on as it came.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use crate::error::DecodeError;
use crate::json;
use crate::reader::Reader;

use super::codes::{Language, V5_5_0};
use super::frame::{Frame, Serialize};
use super::request::{Header, HeaderError};

pub use super::encode::{EncodeError, FLAG_ONEWAY, FLAG_REPLY, Head, encode_frame};
pub use super::ext::{EXT_FIELDS_MAX, ExtFields, ExtWrite, ExtWriter};

/// A decoded command header; texts are borrowed from the frame where they held no escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command<'a> {
    /// Request or response code; 0 when missing.
    pub code: i32,
    /// What the peer is written in.
    pub language: Language,
    /// The peer's version; 0 when missing.
    pub version: i32,
    /// Number that pairs a reply with its request.
    pub opaque: i32,
    /// Bits: 1 reply, 2 oneway.
    pub flag: i32,
    /// Text for people.
    pub remark: Option<Cow<'a, str>>,
    /// The fields of this code's header, and any others the peer sent.
    pub ext: ExtFields<'a>,
}

impl<'a> Command<'a> {
    /// Decodes the header of a frame.
    pub fn decode(serialize: Serialize, header: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode_reusing(serialize, header, ExtFields::with_capacity(16))
    }

    /// [`decode`](Self::decode) with the memory of an earlier command's [`ExtFields::recycle`].
    pub fn decode_reusing(
        serialize: Serialize,
        header: &'a [u8],
        storage: ExtFields<'static>,
    ) -> Result<Self, DecodeError> {
        let mut command = Self { ext: storage, ..Self::default() };
        match serialize {
            Serialize::RocketMq => command.read_binary(header)?,
            Serialize::Json => {
                let quick = std::str::from_utf8(header)
                    .ok()
                    .and_then(|text| Scanner { text, at: 0 }.command(&mut command));
                if quick.is_none() {
                    return Self::from_value(&json::parse(header)?);
                }
            }
        }
        Ok(command)
    }

    /// Whether this is a reply to a request of ours.
    pub const fn is_reply(&self) -> bool {
        self.flag & FLAG_REPLY != 0
    }

    /// Whether the peer wants no reply, not even an error.
    pub const fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    fn read_binary(&mut self, header: &'a [u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(header);
        self.code = i32::from(reader.i16("code")?);
        self.language = Language::from_code(reader.u8("language")?);
        self.version = i32::from(reader.i16("version")?);
        self.opaque = reader.i32("opaque")?;
        self.flag = reader.i32("flag")?;
        let remark = text(&mut reader, "remark")?;
        self.remark = Some(remark).filter(|remark| !remark.is_empty()).map(Cow::Borrowed);
        let ext_len = length(&mut reader, "length of the ext fields")?;
        let start = reader.position() + ext_len;
        if ext_len > reader.remaining() {
            return Err(reader.expected(format!("{ext_len} bytes of ext fields")));
        }
        if self.read_fields_at_once(header.get(reader.position()..start).unwrap_or_default()).is_some() {
            return Ok(());
        }
        self.ext.clear();
        while reader.position() < start {
            let name_len = usize::from(reader.u16("length of a field name")?);
            let name = reader.text(name_len, "field name")?;
            let value = text(&mut reader, "field value")?;
            if self.ext.len() >= EXT_FIELDS_MAX {
                return Err(reader.expected(format!("at most {EXT_FIELDS_MAX} ext fields")));
            }
            if !name.is_empty() {
                self.ext.push(name, value);
            }
        }
        Ok(())
    }

    /// Reads the fields, as fast as that goes; `None` where something is wrong with them.
    fn read_fields_at_once(&mut self, fields: &'a [u8]) -> Option<()> {
        let mut fields = FieldText::new(fields);
        while !fields.is_done() {
            let (name, value) = fields.next()?;
            if self.ext.len() >= EXT_FIELDS_MAX {
                return None;
            }
            if !name.is_empty() {
                self.ext.push(name, value);
            }
        }
        Some(())
    }

    /// Takes a header from any JSON object that Java would take.
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let Value::Object(map) = value else { return Err(DecodeError::new(0, "a JSON object")) };
        let number = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(0),
            Some(Value::Number(number)) => number.as_i64().ok_or(()),
            Some(Value::String(text)) => text.trim().parse().map_err(|_| ()),
            Some(_) => Err(()),
        };
        let number = |key: &str| {
            let number = number(key).ok().and_then(|number| i32::try_from(number).ok());
            number.ok_or_else(|| DecodeError::new(0, format!("a 32 bit number as `{key}`")))
        };
        let language = match map.get("language") {
            Some(Value::String(name)) => Language::from_name(name),
            Some(Value::Number(code)) => code
                .as_u64()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(Language::Other, Language::from_code),
            _ => Language::Java,
        };
        let mut ext = ExtFields::new();
        match map.get("extFields") {
            None | Some(Value::Null) => {}
            Some(Value::Object(fields)) if fields.len() <= EXT_FIELDS_MAX => {
                for (name, value) in fields {
                    if let Some(value) = plain_text(value) {
                        ext.push(name.clone(), value);
                    }
                }
            }
            Some(_) => {
                return Err(DecodeError::new(
                    0,
                    format!("an object of at most {EXT_FIELDS_MAX} `extFields`"),
                ));
            }
        }
        Ok(Self {
            code: number("code")?,
            language,
            version: number("version")?,
            opaque: number("opaque")?,
            flag: number("flag")?,
            remark: map.get("remark").and_then(plain_text).map(Cow::Owned),
            ext,
        })
    }
}

/// The binary ext fields. Where they are text with all their lengths, which are then below 128, they are checked at
/// once: for many short texts that is most of the work.
pub(super) struct FieldText<'a> {
    bytes: &'a [u8],
    text: Option<&'a str>,
    at: usize,
}

impl<'a> FieldText<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, text: std::str::from_utf8(bytes).ok(), at: 0 }
    }

    /// Whether all were read.
    pub(super) const fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The next name and value; `None` when they are not whole or no text.
    #[inline]
    pub(super) fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let name_len = u16::from_be_bytes(*self.bytes.get(self.at..)?.first_chunk()?);
        let name = self.take(2, usize::from(name_len))?;
        let value_len = i32::from_be_bytes(*self.bytes.get(self.at..)?.first_chunk()?);
        let value = self.take(4, usize::try_from(value_len).ok()?)?;
        Some((name, value))
    }

    #[inline]
    fn take(&mut self, skip: usize, len: usize) -> Option<&'a str> {
        let from = self.at + skip;
        let to = from.checked_add(len)?;
        self.at = to;
        match self.text {
            Some(text) => text.get(from..to),
            None => std::str::from_utf8(self.bytes.get(from..to)?).ok(),
        }
    }
}

/// A value as the text it would be in a field; null is no field.
fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn length(reader: &mut Reader<'_>, what: &str) -> Result<usize, DecodeError> {
    let len = reader.i32(what)?;
    usize::try_from(len).map_err(|_| reader.expected(format!("{what}, not {len}")))
}

fn text<'a>(reader: &mut Reader<'a>, what: &str) -> Result<&'a str, DecodeError> {
    let len = length(reader, what)?;
    reader.text(len, what)
}

/// Single pass over the JSON that peers really send. Every method gives `None` when it meets anything
/// else; the whole header then goes through the tolerant reader.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn command(mut self, command: &mut Command<'a>) -> Option<()> {
        let mut more = self.open()?;
        while more {
            let key = self.key()?;
            match key.as_ref() {
                "code" => command.code = self.number()?,
                "version" => command.version = self.number()?,
                "opaque" => command.opaque = self.number()?,
                "flag" => command.flag = self.number()?,
                "language" => command.language = Language::from_name(&self.string()?),
                "remark" => command.remark = self.string_or_null().ok()?,
                "extFields" => self.fields(&mut command.ext)?,
                "serializeTypeCurrentRPC" => drop(self.string()?),
                _ => return None,
            }
            more = self.more()?;
        }
        self.skip_space();
        (self.at == self.text.len()).then_some(())
    }

    fn fields(&mut self, ext: &mut ExtFields<'a>) -> Option<()> {
        if self.peek()? == b'n' {
            return self.null();
        }
        let mut more = self.open()?;
        while more {
            if ext.len() >= EXT_FIELDS_MAX {
                return None;
            }
            let name = self.key()?;
            if let Some(value) = self.string_or_null().ok()? {
                ext.push(name, value);
            }
            more = self.more()?;
        }
        Some(())
    }

    #[inline]
    fn skip_space(&mut self) {
        while self.text.as_bytes().get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// The next byte that is not space.
    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Takes `{`; whether a key follows.
    fn open(&mut self) -> Option<bool> {
        self.eat(b'{')?;
        Some(self.eat(b'}').is_none())
    }

    /// Takes `,` or `}`; whether another key follows.
    fn more(&mut self) -> Option<bool> {
        let comma = match self.peek()? {
            b',' => true,
            b'}' => false,
            _ => return None,
        };
        self.at += 1;
        Some(comma)
    }

    fn key(&mut self) -> Option<Cow<'a, str>> {
        let key = self.string()?;
        self.eat(b':')?;
        Some(key)
    }

    fn number(&mut self) -> Option<i32> {
        self.skip_space();
        let rest = self.text.get(self.at..)?;
        let len = rest.bytes().position(|byte| !byte.is_ascii_digit() && byte != b'-')?;
        self.at += len;
        rest.get(..len)?.parse().ok()
    }

    fn null(&mut self) -> Option<()> {
        self.text.get(self.at..)?.strip_prefix("null")?;
        self.at += 4;
        Some(())
    }

    fn string_or_null(&mut self) -> Result<Option<Cow<'a, str>>, Unusual> {
        if self.peek() == Some(b'n') {
            return self.null().map(|()| None).ok_or(Unusual);
        }
        self.string().map(Some).ok_or(Unusual)
    }

    #[inline]
    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.eat(b'"')?;
        let start = self.at;
        match self.run()? {
            b'"' => {
                let text = self.text.get(start..self.at)?;
                self.at += 1;
                Some(Cow::Borrowed(text))
            }
            _ => self.escaped(start).map(Cow::Owned),
        }
    }

    /// Moves to the next quote or backslash and says which it is.
    #[inline]
    fn run(&mut self) -> Option<u8> {
        let mut rest = self.text.as_bytes().get(self.at..)?;
        while let Some((word, after)) = rest.split_first_chunk::<8>() {
            let word = u64::from_le_bytes(*word);
            let found = zero_bytes(word ^ (EVERY_BYTE * 0x22)) | zero_bytes(word ^ (EVERY_BYTE * 0x5c));
            if found != 0 {
                // At most 64 zeroes, so at most 8 bytes.
                self.at += (found.trailing_zeros() / 8) as usize;
                return self.text.as_bytes().get(self.at).copied();
            }
            self.at += 8;
            rest = after;
        }
        let len = rest.iter().position(|byte| *byte == b'"' || *byte == b'\\')?;
        self.at += len;
        rest.get(len).copied()
    }

    /// The rest of a string in which `self.at` is the first backslash.
    fn escaped(&mut self, start: usize) -> Option<String> {
        let mut out = String::with_capacity((self.at - start + 128).min(self.text.len()));
        out.push_str(self.text.get(start..self.at)?);
        loop {
            let bytes = self.text.as_bytes();
            if *bytes.get(self.at)? == b'"' {
                self.at += 1;
                return Some(out);
            }
            let letter = *bytes.get(self.at + 1)?;
            self.at += 2;
            out.push(match letter {
                b'"' | b'\\' | b'/' => char::from(letter),
                b'n' => '\n',
                b't' => '\t',
                b'r' => '\r',
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'u' => {
                    let digits = bytes.get(self.at..self.at + 4)?;
                    self.at += 4;
                    hex(digits)?
                }
                _ => return None,
            });
            let run = self.at;
            self.run()?;
            out.push_str(self.text.get(run..self.at)?);
        }
    }
}

/// 1 in each byte of a word.
const EVERY_BYTE: u64 = 0x0101_0101_0101_0101;

/// The high bit of each zero byte of `word`; bits above the lowest such byte may be wrong.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(EVERY_BYTE) & !word & (EVERY_BYTE << 7)
}

/// Something that only the tolerant reader takes, if any.
struct Unusual;

/// Four hexadecimal digits as a character; `None` for half a surrogate pair.
fn hex(digits: &[u8]) -> Option<char> {
    let mut code = 0;
    for digit in digits {
        code = code << 4 | char::from(*digit).to_digit(16)?;
    }
    char::from_u32(code)
}

/// A whole command that borrows nothing: for clients, tools and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedCommand {
    /// Request or response code.
    pub code: i32,
    /// What the writer is written in.
    pub language: Language,
    /// The writer's version.
    pub version: i32,
    /// Number that pairs a reply with its request.
    pub opaque: i32,
    /// Bits: 1 reply, 2 oneway.
    pub flag: i32,
    /// Text for people.
    pub remark: Option<String>,
    /// The header fields.
    pub ext: ExtFields<'static>,
    /// The body; empty when there is none.
    pub body: Bytes,
}

impl OwnedCommand {
    /// A request with the fields of `header`. The connection numbers it (`opaque`).
    pub fn request(code: impl Into<i32>, header: &impl ExtWrite) -> Self {
        let mut ext = ExtFields::new();
        collect(header, &mut ext);
        Self { code: code.into(), version: V5_5_0, ext, ..Self::default() }
    }

    /// A reply to the request numbered `opaque`.
    pub fn reply(code: impl Into<i32>, opaque: i32, header: &impl ExtWrite) -> Self {
        Self { opaque, flag: FLAG_REPLY, ..Self::request(code, header) }
    }

    /// The same with a body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// Decodes a frame and copies what it holds.
    pub fn decode(frame: &Frame<'_>) -> Result<Self, DecodeError> {
        let command = Command::decode(frame.serialize, frame.header)?;
        Ok(Self {
            code: command.code,
            language: command.language,
            version: command.version,
            opaque: command.opaque,
            flag: command.flag,
            remark: command.remark.map(Cow::into_owned),
            ext: command.ext.into_owned(),
            body: Bytes::copy_from_slice(frame.body),
        })
    }

    /// The typed header.
    pub fn header<'a, H: Header<'a>>(&'a self) -> Result<H, HeaderError> {
        H::decode(&self.ext)
    }

    /// Everything but fields and body.
    pub fn head(&self) -> Head<'_> {
        Head {
            code: self.code,
            language: self.language,
            version: self.version,
            opaque: self.opaque,
            flag: self.flag,
            remark: self.remark.as_deref(),
        }
    }

    /// Appends the whole frame, body included.
    pub fn encode(&self, out: &mut Vec<u8>, serialize: Serialize) -> Result<(), EncodeError> {
        encode_frame(out, serialize, &self.head(), &self.ext, self.body.len())?;
        out.extend_from_slice(&self.body);
        Ok(())
    }
}

/// Copies the fields that `header` writes, by way of the binary form, which needs no escapes.
fn collect(header: &impl ExtWrite, ext: &mut ExtFields<'static>) {
    let mut bytes = Vec::new();
    header.write(&mut ExtWriter::new(&mut bytes, Serialize::RocketMq));
    let mut reader = Reader::new(&bytes);
    while reader.remaining() > 0 {
        let Ok(name) = reader.u16("name").and_then(|len| reader.text(usize::from(len), "name")) else {
            return;
        };
        let Ok(value) = text(&mut reader, "value") else { return };
        ext.push(name.to_owned(), value.to_owned());
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
