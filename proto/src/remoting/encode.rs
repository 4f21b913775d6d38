//! Writing frames: header first, with holes for the lengths that are filled in at the end.

use crate::json::write_string;

use super::codes::{Language, V5_5_0};
use super::ext::{ExtWrite, ExtWriter, decimal};
use super::frame::{PREFIX_LEN, Serialize};

/// Bit 0 of a command's flag: it is a reply.
pub const FLAG_REPLY: i32 = 1;
/// Bit 1 of a command's flag: no reply is wanted.
pub const FLAG_ONEWAY: i32 = 2;

/// Everything in a command header but its ext fields, ready to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Request or response code.
    pub code: i32,
    /// What the writer is written in.
    pub language: Language,
    /// The writer's version, see [`V5_5_0`].
    pub version: i32,
    /// Number that pairs a reply with its request.
    pub opaque: i32,
    /// Bits: 1 reply, 2 oneway.
    pub flag: i32,
    /// Text for people, in replies.
    pub remark: Option<&'a str>,
}

impl<'a> Head<'a> {
    /// A request that expects a reply.
    pub fn request(code: impl Into<i32>, opaque: i32) -> Self {
        Self { code: code.into(), language: Language::Java, version: V5_5_0, opaque, flag: 0, remark: None }
    }

    /// A reply to the request numbered `opaque`.
    pub fn reply(code: impl Into<i32>, opaque: i32) -> Self {
        Self { flag: FLAG_REPLY, ..Self::request(code, opaque) }
    }

    /// The same, as a request that must not be answered.
    #[must_use]
    pub const fn oneway(self) -> Self {
        Self { flag: self.flag | FLAG_ONEWAY, ..self }
    }

    /// The same, with a remark.
    #[must_use]
    pub const fn remark(self, remark: &'a str) -> Self {
        Self { remark: Some(remark), ..self }
    }

    /// The same, from a peer written in `language`.
    #[must_use]
    pub const fn language(self, language: Language) -> Self {
        Self { language, ..self }
    }
}

/// Why a command could not be written. The output is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The binary header has 16 bits for the code.
    #[error("code {code} does not fit a binary header: write a JSON header")]
    CodeTooLarge {
        /// The code.
        code: i32,
    },
    /// The binary header has 16 bits for the version.
    #[error("version {version} does not fit a binary header: write a JSON header")]
    VersionTooLarge {
        /// The version.
        version: i32,
    },
    /// A field name or value is longer than its length field can say.
    #[error("an ext field is too long for a binary header: write a JSON header")]
    FieldTooLong,
    /// Header or frame are longer than their length words can say.
    #[error("frame with a header of {header} bytes and a body of {body} cannot be framed: send less")]
    TooLarge {
        /// Header length, bytes.
        header: usize,
        /// Body length, bytes.
        body: usize,
    },
}

/// Appends length word, form and header to `out`. The caller then appends exactly `body_len` bytes of
/// body. `extFields` is written even when it is empty: a Java producer fails on a reply without it.
pub fn encode_frame<E: ExtWrite + ?Sized>(
    out: &mut Vec<u8>,
    serialize: Serialize,
    head: &Head<'_>,
    ext: &E,
    body_len: usize,
) -> Result<(), EncodeError> {
    let start = out.len();
    let written = write_frame(out, serialize, head, ext, body_len);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn write_frame<E: ExtWrite + ?Sized>(
    out: &mut Vec<u8>,
    serialize: Serialize,
    head: &Head<'_>,
    ext: &E,
    body_len: usize,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_LEN]);
    match serialize {
        Serialize::Json => json_header(out, head, ext),
        Serialize::RocketMq => binary_header(out, head, ext)?,
    }
    let header_len = out.len() - start - PREFIX_LEN;
    let too_large = EncodeError::TooLarge { header: header_len, body: body_len };
    let header_word = u32::try_from(header_len).ok().filter(|len| *len < 1 << 24).ok_or(too_large)?;
    let length = header_len.checked_add(body_len).and_then(|len| i32::try_from(len.checked_add(4)?).ok());
    let length = length.ok_or(too_large)?;
    patch(out, start, length.to_be_bytes());
    patch(out, start + 4, (header_word | u32::from(serialize as u8) << 24).to_be_bytes());
    Ok(())
}

fn patch(out: &mut [u8], at: usize, word: [u8; 4]) {
    if let Some(hole) = out.get_mut(at..at + 4) {
        hole.copy_from_slice(&word);
    }
}

/// Keys in alphabetical order, as Java writes them.
fn json_header<E: ExtWrite + ?Sized>(out: &mut Vec<u8>, head: &Head<'_>, ext: &E) {
    let mut digits = [0; 20];
    let mut number = |out: &mut Vec<u8>, key: &[u8], value: i32| {
        out.extend_from_slice(key);
        out.extend_from_slice(decimal(i64::from(value), &mut digits));
    };
    number(out, b"{\"code\":", head.code);
    out.extend_from_slice(b",\"extFields\":{");
    ext.write(&mut ExtWriter::new(out, Serialize::Json));
    number(out, b"},\"flag\":", head.flag);
    out.extend_from_slice(b",\"language\":\"");
    out.extend_from_slice(head.language.name().as_bytes());
    number(out, b"\",\"opaque\":", head.opaque);
    if let Some(remark) = head.remark {
        out.extend_from_slice(b",\"remark\":");
        write_string(out, remark);
    }
    number(out, b",\"version\":", head.version);
    out.push(b'}');
}

fn binary_header<E: ExtWrite + ?Sized>(
    out: &mut Vec<u8>,
    head: &Head<'_>,
    ext: &E,
) -> Result<(), EncodeError> {
    let code = i16::try_from(head.code).map_err(|_| EncodeError::CodeTooLarge { code: head.code })?;
    let version =
        i16::try_from(head.version).map_err(|_| EncodeError::VersionTooLarge { version: head.version })?;
    let remark = head.remark.unwrap_or_default();
    let remark_len = i32::try_from(remark.len()).map_err(|_| EncodeError::FieldTooLong)?;
    out.extend_from_slice(&code.to_be_bytes());
    out.push(head.language.code());
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(&head.opaque.to_be_bytes());
    out.extend_from_slice(&head.flag.to_be_bytes());
    out.extend_from_slice(&remark_len.to_be_bytes());
    out.extend_from_slice(remark.as_bytes());
    let hole = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut writer = ExtWriter::new(out, Serialize::RocketMq);
    ext.write(&mut writer);
    if !writer.fits() {
        return Err(EncodeError::FieldTooLong);
    }
    let ext_len = i32::try_from(out.len() - hole - 4).map_err(|_| EncodeError::FieldTooLong)?;
    patch(out, hole, ext_len.to_be_bytes());
    Ok(())
}
