//! The body of a client's batch (request 320): several messages of one topic, back to back.
//!
//! ```text
//!  0 TOTALSIZE  i32   whole item, this field included
//!  4 MAGICCODE  i32   0, ignored
//!  8 BODYCRC    i32   0, ignored
//! 12 FLAG       i32   the user's
//! 16 BODY       i32 length, bytes
//!    PROPERTIES i16 length, bytes: the item's own UNIQ_KEY, KEYS, TAGS …
//! ```
//!
//! The broker stores one record an item; the request's header gives what the items share.

use super::encode::{EncodeError, SHORT_BYTES_MAX};
use super::properties::Properties;
use crate::error::DecodeError;
use crate::reader::Reader;

/// Bytes of an item that has neither body nor properties.
const ITEM_BYTES_MIN: usize = 22;

/// One message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchItem<'a> {
    /// The user's flag.
    pub flag: i32,
    /// The body; batches are never compressed.
    pub body: &'a [u8],
    /// The item's own properties.
    pub properties: Properties<'a>,
}

impl<'a> BatchItem<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = reader.position();
        let size = reader.u32("size of a batch item")?;
        reader.bytes(8, "magic and CRC of a batch item")?;
        let flag = reader.u32("flag of a batch item")?.cast_signed();
        let body_len = reader.u32("body length of a batch item")?;
        let body = reader.bytes(to_usize(body_len), "body of a batch item")?;
        let properties_len = reader.u16("property length of a batch item")?;
        let properties = reader.bytes(properties_len.into(), "properties of a batch item")?;
        let read = reader.position() - start;
        if to_usize(size) != read {
            return Err(DecodeError::new(start, format!("a batch item of {read} bytes, it says {size}")));
        }
        Ok(Self { flag, body, properties: Properties::new(properties) })
    }

    /// Appends the item to the body of a batch. On an error nothing is written.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let properties = self.properties.raw();
        let len = ITEM_BYTES_MIN + self.body.len() + properties.len();
        let properties_len = u16::try_from(properties.len())
            .ok()
            .filter(|len| usize::from(*len) <= SHORT_BYTES_MAX)
            .ok_or(EncodeError::Properties { len: properties.len(), max: SHORT_BYTES_MAX })?;
        let too_long = EncodeError::Body { len, max: i32::MAX as usize };
        let size = i32::try_from(len).map_err(|_| too_long)?;
        let body_len = i32::try_from(self.body.len()).map_err(|_| too_long)?;
        out.reserve(len);
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&[0; 8]); // magic, CRC
        out.extend_from_slice(&self.flag.to_be_bytes());
        out.extend_from_slice(&body_len.to_be_bytes());
        out.extend_from_slice(self.body);
        out.extend_from_slice(&properties_len.to_be_bytes());
        out.extend_from_slice(properties);
        Ok(())
    }
}

/// A length that no slice reaches where it does not fit.
fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The messages of a batch body, in order. The first damaged one is the last that is given.
#[derive(Clone, Debug)]
pub struct BatchItems<'a> {
    reader: Reader<'a>,
}

impl<'a> BatchItems<'a> {
    /// Reads the body of a batch.
    pub const fn new(body: &'a [u8]) -> Self {
        Self { reader: Reader::new(body) }
    }
}

impl<'a> Iterator for BatchItems<'a> {
    type Item = Result<BatchItem<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.remaining() == 0 {
            return None;
        }
        let item = BatchItem::read(&mut self.reader);
        if item.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::tests::{Decoded, assert_is, unhex};
    use super::super::{RecordDraft, RecordView, seal};
    use super::*;

    fn vectors() -> Vec<Value> {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/batches.json"));
        serde_json::from_str(text).unwrap()
    }

    fn items(body: &[u8]) -> Vec<BatchItem<'_>> {
        BatchItems::new(body).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_java_clients_batch_is_read_and_written() {
        let vector = &vectors()[0];
        let bytes = unhex(vector["hex"].as_str().unwrap());
        let items = items(&bytes);
        let expected = vector["decoded"].as_array().unwrap();
        assert_eq!(items.len(), expected.len());
        let mut written = Vec::new();
        for (item, expected) in items.iter().zip(expected) {
            assert_eq!(Some(i64::from(item.flag)), expected["flag"].as_i64());
            assert_eq!(item.body, unhex(expected["body_hex"].as_str().unwrap()));
            let properties = expected["properties"].as_object().unwrap();
            assert_eq!(item.properties.iter().count(), properties.len());
            for (name, value) in properties {
                assert_eq!(item.properties.get(name), value.as_str());
            }
            item.encode_into(&mut written).unwrap();
        }
        assert_eq!(written, bytes);
    }

    #[test]
    fn a_batch_becomes_the_records_that_the_java_broker_makes_of_it() {
        let vectors = vectors();
        let body = unhex(vectors[0]["hex"].as_str().unwrap());
        let stored = unhex(vectors[1]["hex"].as_str().unwrap());
        let expected: Vec<Decoded> = serde_json::from_value(vectors[1]["decoded"].clone()).unwrap();
        let (mut at, mut written) = (0, Vec::new());
        for (item, expected) in items(&body).iter().zip(&expected) {
            let record = RecordView::parse(&stored[at..]).unwrap();
            assert_is(&record, expected, "batch");
            let draft = RecordDraft {
                flag: item.flag,
                body: item.body,
                ..RecordDraft::from_view(&record, item.properties.raw())
            };
            let start = written.len();
            draft.encode_into(&mut written).unwrap();
            seal(&mut written[start..], record.queue_offset(), record.phy_offset(), record.store_at());
            at += record.as_bytes().len();
        }
        assert_eq!(written, stored);
    }

    #[test]
    fn reading_stops_at_the_first_damaged_item() {
        let mut bytes = unhex(vectors()[0]["hex"].as_str().unwrap());
        bytes[3] += 1;
        let all: Vec<_> = BatchItems::new(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].as_ref().unwrap_err().at, 0);
        bytes[3] -= 1;
        bytes.pop();
        assert!(BatchItems::new(&bytes).last().unwrap().is_err());
    }

    #[test]
    fn an_item_that_does_not_fit_is_refused() {
        let properties = vec![b'x'; 32_768];
        let item = BatchItem { flag: 0, body: b"", properties: Properties::new(&properties) };
        let refused = EncodeError::Properties { len: 32_768, max: 32_767 };
        assert_eq!(item.encode_into(&mut Vec::new()), Err(refused));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            parts in prop::collection::vec(
                (any::<i32>(), prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..40)),
                0..5,
            ),
        ) {
            let expected: Vec<_> = parts
                .iter()
                .map(|(flag, body, raw)| BatchItem { flag: *flag, body, properties: Properties::new(raw) })
                .collect();
            let mut bytes = Vec::new();
            for item in &expected {
                item.encode_into(&mut bytes).unwrap();
            }
            prop_assert_eq!(items(&bytes), expected);
        }

        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(BatchItems::new(&bytes).count() <= 1 + bytes.len() / ITEM_BYTES_MIN);
        }
    }
}
