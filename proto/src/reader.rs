//! A bounds-checked, big-endian cursor: the only way this crate reads foreign bytes.

use crate::error::DecodeError;

/// Reads from the front of a byte slice; every read says what it expected when the bytes run out.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

macro_rules! number {
    ($($name:ident -> $type:ty),+ $(,)?) => {
        $(
            /// The next big-endian number; `what` names it in the error.
            pub fn $name(&mut self, what: &str) -> Result<$type, DecodeError> {
                self.array(what).map(<$type>::from_be_bytes)
            }
        )+
    };
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `input`.
    pub const fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Bytes read so far.
    pub const fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub const fn remaining(&self) -> usize {
        self.input.len() - self.at
    }

    /// The next `len` bytes, borrowed from the input.
    pub fn bytes(&mut self, len: usize, what: &str) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.input.len());
        let Some(end) = end else {
            return Err(self.expected(format!("{what} ({len} bytes, {} are left)", self.remaining())));
        };
        let taken = &self.input[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The next `len` bytes as UTF-8 text.
    pub fn text(&mut self, len: usize, what: &str) -> Result<&'a str, DecodeError> {
        let start = self.at;
        let bytes = self.bytes(len, what)?;
        std::str::from_utf8(bytes)
            .map_err(|error| DecodeError::new(start + error.valid_up_to(), format!("{what} in UTF-8")))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], DecodeError> {
        let bytes = self.bytes(N, what)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    number! {
        u8 -> u8, u16 -> u16, u32 -> u32, u64 -> u64, i16 -> i16, i32 -> i32, i64 -> i64,
    }

    /// An error at the current position.
    pub fn expected(&self, what: impl Into<String>) -> DecodeError {
        DecodeError::new(self.at, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_until_the_end_and_not_beyond() {
        let mut reader = Reader::new(&[0, 0, 1, 2, b'h', b'i']);
        assert_eq!(reader.u32("number"), Ok(258));
        assert_eq!(reader.text(2, "greeting"), Ok("hi"));
        let error = reader.u16("tail").unwrap_err();
        assert_eq!((error.at, error.expected.as_str()), (6, "tail (2 bytes, 0 are left)"));
    }

    #[test]
    fn a_length_that_overflows_is_refused() {
        assert!(Reader::new(&[1]).bytes(usize::MAX, "body").is_err());
    }
}
