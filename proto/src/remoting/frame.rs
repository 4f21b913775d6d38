//! Frames: how one command is told from the next on a connection.
//!
//! ```text
//!  0          4      5            8                8 + header         4 + length
//!  +----------+------+------------+----------------+------------------+
//!  | length   | form | header len | header         | body             |
//!  | i32      | u8   | u24        |                | (may be empty)   |
//!  +----------+------+------------+----------------+------------------+
//! ```
//!
//! `length` counts everything after itself. Any violation leaves the stream without a known next
//! frame: the connection must be closed.

/// Largest `length` accepted by default, in bytes: what the Java decoder accepts.
pub const FRAME_LIMIT: usize = 16 * 1024 * 1024;

/// Bytes before the header: length word, form, header length.
pub const PREFIX_LEN: usize = 8;

/// How the header of a frame is written. Every frame says so itself; a reply may differ from its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Serialize {
    /// A JSON object.
    #[default]
    Json = 0,
    /// The binary form, called `ROCKETMQ`.
    RocketMq = 1,
}

/// One complete frame, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The form of [`header`](Self::header).
    pub serialize: Serialize,
    /// The command header, still encoded.
    pub header: &'a [u8],
    /// The body; empty when there is none.
    pub body: &'a [u8],
    /// Bytes that the frame takes up in the buffer, length word included.
    pub len: usize,
}

/// Why the bytes cannot be a frame. The connection has lost its place and must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length word is above the limit.
    #[error("frame of {len} bytes, the limit is {limit}: send smaller messages or batches")]
    TooLarge {
        /// The length word.
        len: usize,
        /// The limit it was held against.
        limit: usize,
    },
    /// The header does not fit into the frame that holds it.
    #[error("header of {header} bytes in a frame of {len}: the peer does not speak this protocol")]
    HeaderLongerThanFrame {
        /// Header length, bytes.
        header: usize,
        /// The length word.
        len: usize,
    },
    /// The length word is negative.
    #[error("frame length {len} is negative: the peer does not speak this protocol")]
    NegativeLength {
        /// The length word.
        len: i32,
    },
    /// The header is in a form that is neither JSON nor ROCKETMQ.
    #[error("header form {form} is unknown, known are 0 (JSON) and 1 (ROCKETMQ)")]
    UnknownSerialize {
        /// The form byte.
        form: u8,
    },
}

/// What the first bytes of a frame announce.
struct Prefix {
    serialize: Serialize,
    header_len: usize,
    total_len: usize,
}

impl<'a> Frame<'a> {
    /// Cuts the frame at the front of `buf`; `None` when it is not complete yet. `limit` bounds the
    /// length word. Errors come as soon as the bytes that prove them are there.
    pub fn cut(buf: &'a [u8], limit: usize) -> Result<Option<Self>, FrameError> {
        let Some(prefix) = Prefix::read(buf, limit)? else { return Ok(None) };
        let Some(frame) = buf.get(PREFIX_LEN..prefix.total_len) else { return Ok(None) };
        let Some((header, body)) = frame.split_at_checked(prefix.header_len) else { return Ok(None) };
        Ok(Some(Self { serialize: prefix.serialize, header, body, len: prefix.total_len }))
    }

    /// How many bytes the reader must still receive before [`cut`](Self::cut) can succeed; 0 when a
    /// frame is complete. Until the prefix is there this is what the prefix lacks.
    pub fn missing(buf: &[u8], limit: usize) -> Result<usize, FrameError> {
        Ok(match Prefix::read(buf, limit)? {
            Some(prefix) => prefix.total_len.saturating_sub(buf.len()),
            None => PREFIX_LEN.saturating_sub(buf.len()),
        })
    }
}

impl Prefix {
    fn read(buf: &[u8], limit: usize) -> Result<Option<Self>, FrameError> {
        let Some((word, rest)) = buf.split_first_chunk::<4>() else { return Ok(None) };
        let word = i32::from_be_bytes(*word);
        let len = usize::try_from(word).map_err(|_| FrameError::NegativeLength { len: word })?;
        if len > limit {
            return Err(FrameError::TooLarge { len, limit });
        }
        if len < 4 {
            return Err(FrameError::HeaderLongerThanFrame { header: 0, len });
        }
        let Some(&[form, high, middle, low]) = rest.first_chunk::<4>() else { return Ok(None) };
        let serialize = match form {
            0 => Serialize::Json,
            1 => Serialize::RocketMq,
            form => return Err(FrameError::UnknownSerialize { form }),
        };
        let header_len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if header_len > len - 4 {
            return Err(FrameError::HeaderLongerThanFrame { header: header_len, len });
        }
        Ok(Some(Self { serialize, header_len, total_len: len + 4 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(header: &[u8], body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(4 + header.len() + body.len()).unwrap();
        let header_len = u32::try_from(header.len()).unwrap();
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend_from_slice(&header_len.to_be_bytes());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn cuts_the_first_of_two_frames() {
        let mut bytes = frame(b"{}", b"body");
        let first = bytes.len();
        bytes.extend_from_slice(&frame(b"{}", b""));
        let cut = Frame::cut(&bytes, FRAME_LIMIT).unwrap().unwrap();
        assert_eq!((cut.header, cut.body, cut.len), (&b"{}"[..], &b"body"[..], first));
        let second = Frame::cut(&bytes[first..], FRAME_LIMIT).unwrap().unwrap();
        assert_eq!(second.body, b"");
    }

    #[test]
    fn says_how_much_is_missing() {
        let bytes = frame(b"{}", b"body");
        assert_eq!(Frame::missing(&[], FRAME_LIMIT), Ok(8));
        assert_eq!(Frame::missing(&bytes[..5], FRAME_LIMIT), Ok(3));
        assert_eq!(Frame::missing(&bytes[..9], FRAME_LIMIT), Ok(5));
        assert_eq!(Frame::missing(&bytes, FRAME_LIMIT), Ok(0));
        assert_eq!(Frame::cut(&bytes[..13], FRAME_LIMIT), Ok(None));
    }

    #[test]
    fn refuses_what_cannot_be_a_frame() {
        let refused = |bytes: &[u8]| Frame::cut(bytes, 100).unwrap_err();
        assert_eq!(refused(&[0, 0, 0, 101]), FrameError::TooLarge { len: 101, limit: 100 });
        assert_eq!(refused(&[0xff; 4]), FrameError::NegativeLength { len: -1 });
        assert_eq!(refused(&[0, 0, 0, 3]), FrameError::HeaderLongerThanFrame { header: 0, len: 3 });
        assert_eq!(refused(&[0, 0, 0, 9, 2, 0, 0, 0]), FrameError::UnknownSerialize { form: 2 });
        assert_eq!(
            refused(&[0, 0, 0, 9, 0, 0, 0, 6]),
            FrameError::HeaderLongerThanFrame { header: 6, len: 9 }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_return(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::missing(&bytes, 1 << 20);
            if let Ok(Some(frame)) = Frame::cut(&bytes, 1 << 20) {
                prop_assert_eq!(frame.len, 8 + frame.header.len() + frame.body.len());
            }
        }
    }
}
