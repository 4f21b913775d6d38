//! Writing records. The layout is drawn in the module above.
//!
//! A record is written in two steps, so that the lock on the log's tail is held for the second one
//! only: [`RecordDraft::encode_into`] writes all but what the place in the log decides, [`seal`] fills
//! in queue offset, log position, store time and, last, the checksum over all of it.

use std::net::{IpAddr, SocketAddr};

use super::properties::{CRC_HEAD, CRC_HOLE, CRC_PROPERTY_BYTES};
use super::{
    BLANK_BYTES_MIN, BORN_HOST_AT, MAGIC_BLANK, MAGIC_V1, MAGIC_V2, PHY_OFFSET_AT, QUEUE_OFFSET_AT,
    RECORD_BYTES_MIN, RecordView, SYS_FLAG_AT, SysFlag, crc_property, host_bytes, positive,
};
use crate::ids::{Millis, PhyOffset, QueueId, QueueOffset};

/// Longest topic of a V1 record: Java reads the length byte as signed.
const TOPIC_BYTES_MAX_V1: usize = 127;
/// Longest topic and property string, in bytes: Java reads their lengths as signed 16 bit.
pub const SHORT_BYTES_MAX: usize = 32_767;
const VALUE_END: u8 = 2;

/// Why a message cannot become a record. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The record's size would not fit its field.
    #[error("the record would have {len} bytes, the format allows {max}: send a smaller body")]
    Body {
        /// Size of the record, in bytes.
        len: usize,
        /// Largest the format can say.
        max: usize,
    },
    /// The topic's length would not fit its field, or there is no topic.
    #[error("the topic has {len} bytes, the format allows 1 to {max}: choose another name")]
    Topic {
        /// Length of the topic, in bytes.
        len: usize,
        /// Longest the format can say.
        max: usize,
    },
    /// The property string's length would not fit its field.
    #[error("the properties have {len} bytes, the format allows {max}: send fewer or shorter ones")]
    Properties {
        /// Length of the string with all that the broker adds, in bytes.
        len: usize,
        /// Longest the format can say.
        max: usize,
    },
}

/// A record to be: everything but what its place in the log decides.
#[derive(Clone, Copy, Debug)]
pub struct RecordDraft<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The queue of the topic.
    pub queue_id: QueueId,
    /// The user's flag.
    pub flag: i32,
    /// The system flag; the bits for the hosts are set by the encoder.
    pub sys_flag: SysFlag,
    /// When the producer made the message.
    pub born_at: Millis,
    /// The producer's address.
    pub born_host: SocketAddr,
    /// The address of this broker.
    pub store_host: SocketAddr,
    /// How often consumers refused the message.
    pub reconsume_times: i32,
    /// Log position of the half message, for a committed copy; else zero.
    pub prepared_offset: PhyOffset,
    /// The body as it shall be stored.
    pub body: &'a [u8],
    /// The property string.
    pub properties: &'a [u8],
    /// Whether the record gets a checksum over all of it.
    pub append_crc: bool,
}

impl<'a> RecordDraft<'a> {
    /// A copy of `record` with other properties; change what else shall differ. For the same ones
    /// give `record.properties().without_crc().raw()`: the old checksum is not that of the copy.
    /// The copy gets a checksum if `record` has one.
    pub fn from_view(record: &RecordView<'a>, properties: &'a [u8]) -> Self {
        Self {
            topic: record.topic(),
            queue_id: record.queue_id(),
            flag: record.flag(),
            sys_flag: record.sys_flag(),
            born_at: record.born_at(),
            born_host: record.born_host(),
            store_host: record.store_host(),
            reconsume_times: record.reconsume_times(),
            prepared_offset: record.prepared_offset(),
            body: record.body(),
            properties,
            append_crc: record.has_crc(),
        }
    }

    fn is_v2(&self) -> bool {
        self.topic.len() > TOPIC_BYTES_MAX_V1
    }

    /// Whether the string must be ended before the checksum can follow.
    fn needs_separator(&self) -> bool {
        self.append_crc && self.properties.last().is_some_and(|last| *last != VALUE_END)
    }

    /// Length of the property string as it will be stored, in bytes.
    fn properties_len(&self) -> usize {
        let crc = if self.append_crc { CRC_PROPERTY_BYTES } else { 0 };
        self.properties.len() + usize::from(self.needs_separator()) + crc
    }

    /// Size of the record, in bytes.
    pub fn encoded_len(&self) -> usize {
        let extra_host_bytes = host_bytes(self.born_host.is_ipv6()) + host_bytes(self.store_host.is_ipv6())
            - 2 * host_bytes(false);
        RECORD_BYTES_MIN as usize
            + extra_host_bytes
            + usize::from(self.is_v2())
            + self.body.len()
            + self.topic.len()
            + self.properties_len()
    }

    /// Appends the record to `out` and tells its size. The places that [`seal`] fills are zero.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<usize, EncodeError> {
        let lengths = self.lengths()?;
        let size = lengths.total_bytes;
        out.reserve(size);
        let start = out.len();
        let sys_flag = self.sys_flag.with_hosts(self.born_host.is_ipv6(), self.store_host.is_ipv6());
        let magic = if self.is_v2() { MAGIC_V2 } else { MAGIC_V1 };
        out.extend_from_slice(&lengths.total.to_be_bytes());
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&positive(crc32fast::hash(self.body)).to_be_bytes());
        out.extend_from_slice(&self.queue_id.to_wire().to_be_bytes());
        out.extend_from_slice(&self.flag.to_be_bytes());
        out.extend_from_slice(&[0; 16]); // queue offset, physical offset
        out.extend_from_slice(&sys_flag.get().to_be_bytes());
        out.extend_from_slice(&self.born_at.get().to_be_bytes());
        put_host(self.born_host, out);
        out.extend_from_slice(&[0; 8]); // store time
        put_host(self.store_host, out);
        out.extend_from_slice(&self.reconsume_times.to_be_bytes());
        out.extend_from_slice(&self.prepared_offset.to_wire().to_be_bytes());
        out.extend_from_slice(&lengths.body.to_be_bytes());
        out.extend_from_slice(self.body);
        if self.is_v2() {
            out.extend_from_slice(&lengths.topic.to_be_bytes());
        } else {
            out.extend_from_slice(&lengths.topic.to_be_bytes()[1..]);
        }
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(&lengths.properties.to_be_bytes());
        out.extend_from_slice(self.properties);
        if self.needs_separator() {
            out.push(VALUE_END);
        }
        if self.append_crc {
            out.extend_from_slice(CRC_HOLE);
        }
        debug_assert_eq!(out.len() - start, size, "encoded_len counts what encode_into writes");
        Ok(size)
    }

    /// All lengths in the width of their fields.
    fn lengths(&self) -> Result<Lengths, EncodeError> {
        let short = |len: usize| u16::try_from(len).ok().filter(|_| len <= SHORT_BYTES_MAX);
        let (topic, properties, total) = (self.topic.len(), self.properties_len(), self.encoded_len());
        let max = i32::MAX as usize;
        Ok(Lengths {
            topic: short(topic)
                .filter(|len| *len > 0)
                .ok_or(EncodeError::Topic { len: topic, max: SHORT_BYTES_MAX })?,
            properties: short(properties)
                .ok_or(EncodeError::Properties { len: properties, max: SHORT_BYTES_MAX })?,
            total: i32::try_from(total).map_err(|_| EncodeError::Body { len: total, max })?,
            body: i32::try_from(self.body.len()).map_err(|_| EncodeError::Body { len: total, max })?,
            total_bytes: total,
        })
    }
}

struct Lengths {
    total_bytes: usize,
    total: i32,
    body: i32,
    topic: u16,
    properties: u16,
}

/// Appends an address as the wire has it: 4 or 16 bytes, and the port in 4.
fn put_host(host: SocketAddr, out: &mut Vec<u8>) {
    match host.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&u32::from(host.port()).to_be_bytes());
}

/// Overwrites the bytes at `at`.
fn patch<const N: usize>(record: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(hole) = record.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *hole = value;
    }
}

/// Fills in what the place in the log decides, and the checksum if the record has room for one.
///
/// `record` is exactly one encoded record. This runs under the lock of the log's tail: nothing is
/// parsed; the places follow from the system flag and from the last 20 bytes.
pub fn seal(record: &mut [u8], queue_offset: QueueOffset, phy_offset: PhyOffset, store_at: Millis) {
    debug_assert!(RecordView::parse(record).is_ok_and(|view| view.as_bytes().len() == record.len()));
    patch(record, QUEUE_OFFSET_AT, queue_offset.to_wire().to_be_bytes());
    patch(record, PHY_OFFSET_AT, phy_offset.to_wire().to_be_bytes());
    let born_v6 = SysFlag::new(super::i32_at(record, SYS_FLAG_AT)).born_v6();
    patch(record, BORN_HOST_AT + host_bytes(born_v6), store_at.get().to_be_bytes());

    let Some((covered, property)) = record.split_last_chunk_mut::<CRC_PROPERTY_BYTES>() else { return };
    // Before the property ends another one, or the length of the whole string, which is then 20.
    let follows = matches!(covered.last_chunk(), Some([_, VALUE_END] | [0, 20]));
    if follows && property.starts_with(CRC_HEAD) {
        *property = crc_property(positive(crc32fast::hash(covered)));
    }
}

/// Appends a blank record of `len` bytes: what remains of a log file. `len` is at least
/// [`BLANK_BYTES_MIN`], because records leave that much behind them.
pub fn blank(len: u32, out: &mut Vec<u8>) {
    assert!(len >= BLANK_BYTES_MIN, "a log file keeps room for a blank record");
    let end = out.len() + len as usize;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&MAGIC_BLANK.to_be_bytes());
    out.resize(end, 0);
}
