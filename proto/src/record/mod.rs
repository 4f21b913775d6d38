//! One message as the log stores it and as answers carry it: the record.
//!
//! ```text
//!   0 TOTALSIZE      i32   whole record, this field included
//!   4 MAGICCODE      u32   V1 0xDAA320A7, V2 0xDAA320AB, blank 0xCBD43194
//!   8 BODYCRC        i32   CRC-32 of the stored body, sign bit cleared
//!  12 QUEUEID        i32
//!  16 FLAG           i32   the user's
//!  20 QUEUEOFFSET    i64
//!  28 PHYSICALOFFSET i64   position of this record in the log
//!  36 SYSFLAG        i32   see sysflag.rs
//!  40 BORNTIMESTAMP  i64
//!  48 BORNHOST             4 or 16 bytes (IPv6) of address, i32 port
//!     STORETIMESTAMP i64   at 56, or 68 after an IPv6 born host
//!     STOREHOST            4 or 16 bytes of address, i32 port
//!     RECONSUMETIMES i32
//!     PREPAREDOFFSET i64   log position of the half message of a committed copy, else 0
//!     BODY           i32 length, bytes
//!     TOPIC          V1: u8 length, V2: u16 length, bytes
//!     PROPERTIES     i16 length, bytes; may end in the checksum of the record
//! ```
//!
//! **Checksum property** `__CRC32#` \x01 ten digits \x02: CRC-32 (sign bit cleared) of all record
//! bytes before it; least significant digit first.
//!
//! **Blank record**: length and magic only, then anything; fills a log file up to its end.
//!
//! After a crash a record may be torn anywhere, or stand where zeroes were expected: recovery takes
//! it only if lengths, body CRC and checksum property agree. Zero length and zero magic are the
//! preallocated rest of a file: the end of the log.

mod batch;
mod encode;
mod msg_id;
mod properties;
mod recall;
mod sysflag;
mod tag_hash;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use batch::{BatchItem, BatchItems};
pub use encode::{EncodeError, RecordDraft, SHORT_BYTES_MAX, blank, seal};
pub use msg_id::{ID_DIGITS_MAX, OffsetMsgId, UniqKeys};
pub use properties::{HotProperties, Properties, PropertiesBuf, Text, keys, split_keys};
pub use recall::RecallHandle;
pub use sysflag::{Compression, SysFlag, TransactionFlag};
pub use tag_hash::{JavaHash, TagExpression, TagExpressionError, java_hash, tags_code};

use crate::error::DecodeError;
use crate::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use properties::{CRC_HEAD, CRC_HOLE, CRC_PROPERTY_BYTES, VALUE_END};

/// Magic of a record whose topic length is one byte.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Magic of a record whose topic length is two bytes.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;
/// Magic of the blank record at the end of a log file.
pub const MAGIC_BLANK: u32 = 0xCBD4_3194;
/// Smallest record: V1, IPv4 hosts, nothing in it. In bytes.
pub const RECORD_BYTES_MIN: u32 = 91;
/// Bytes of a blank record's header, and so the least that must remain behind a record in its file.
pub const BLANK_BYTES_MIN: u32 = 8;

const BODY_CRC_AT: usize = 8;
const QUEUE_ID_AT: usize = 12;
const FLAG_AT: usize = 16;
const QUEUE_OFFSET_AT: usize = 20;
const PHY_OFFSET_AT: usize = 28;
const SYS_FLAG_AT: usize = 36;
const BORN_AT_AT: usize = 40;
const BORN_HOST_AT: usize = 48;

/// Clears the sign bit, as the record keeps its checksums.
const fn positive(crc: u32) -> u32 {
    crc & 0x7fff_ffff
}

/// Bytes of a host on the wire.
const fn host_bytes(v6: bool) -> usize {
    if v6 { 20 } else { 8 }
}

/// The `N` bytes at `at`. Callers have checked that they are there; zeroes if not.
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(chunk(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(chunk(bytes, at))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(chunk(bytes, at))
}

/// A host; a port that cannot be one reads as 0.
fn host_at(bytes: &[u8], at: usize, v6: bool) -> SocketAddr {
    let (ip, port_at) = if v6 {
        (IpAddr::V6(Ipv6Addr::from(chunk::<16>(bytes, at))), at + 16)
    } else {
        (IpAddr::V4(Ipv4Addr::from(chunk::<4>(bytes, at))), at + 4)
    };
    SocketAddr::new(ip, u16::try_from(i32_at(bytes, port_at)).unwrap_or(0))
}

/// Bytes in which the end of a record may differ from the right checksum property and still have been one.
const CRC_DAMAGE_MAX: usize = 4;

/// The two digits of every number below 100, the lower one first, as the checksum property has them.
const DIGIT_PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut number: u8 = 0;
    while number < 100 {
        pairs[number as usize] = [b'0' + number % 10, b'0' + number / 10];
        number += 1;
    }
    pairs
};

/// The checksum property that says `crc`.
#[inline]
fn crc_property(crc: u32) -> [u8; CRC_PROPERTY_BYTES] {
    let mut property = *CRC_HOLE;
    let mut rest = crc;
    for pair in property[CRC_HEAD.len()..].as_chunks_mut::<2>().0.iter_mut().take(5) {
        *pair = DIGIT_PAIRS[(rest % 100) as usize];
        rest /= 100;
    }
    property
}

/// Whether `bytes` are a record that lies at `at` and is, byte for byte, what its checksum was made of. `false` only
/// says that a closer look is needed: [`RecordView::check`] tells what is wrong, or that there is no checksum.
#[inline]
pub fn is_sealed(bytes: &[u8], at: PhyOffset) -> bool {
    let Some((covered, property)) = bytes.split_last_chunk::<CRC_PROPERTY_BYTES>() else { return false };
    bytes.len() >= RECORD_BYTES_MIN as usize
        && u32_at(bytes, 0) as usize == bytes.len()
        && matches!(u32_at(bytes, 4), MAGIC_V1 | MAGIC_V2)
        && i64_at(bytes, PHY_OFFSET_AT) == at.to_wire()
        && *property == crc_property(positive(crc32fast::hash(covered)))
}

/// Whether a record that [is sealed](is_sealed) is message `offset` of a queue.
#[inline]
pub fn is_message_of(bytes: &[u8], topic: &str, queue: QueueId, offset: QueueOffset) -> bool {
    let found = part::<4>(bytes, body_length_at(bytes)).and_then(|(_, at)| match u32_at(bytes, 4) {
        MAGIC_V1 => part::<1>(bytes, at),
        _ => part::<2>(bytes, at),
    });
    i32_at(bytes, QUEUE_ID_AT) == queue.to_wire()
        && i64_at(bytes, QUEUE_OFFSET_AT) == offset.to_wire()
        && found.is_some_and(|(found, _)| found == topic.as_bytes())
}

/// Where the length of the body stands.
#[inline]
fn body_length_at(bytes: &[u8]) -> usize {
    let flags = SysFlag::new(i32_at(bytes, SYS_FLAG_AT));
    BORN_HOST_AT + host_bytes(flags.born_v6()) + 8 + host_bytes(flags.store_v6()) + 4 + 8
}

/// What the checksum property of a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordCrc {
    /// There is none: a broker without it wrote the record.
    Absent,
    /// It is there, and right.
    Matches,
}

/// A record whose lengths have been checked; its fields are read where they lie.
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    bytes: &'a [u8],
    body: &'a [u8],
    topic: &'a str,
    properties: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Looks at the record at the start of `buf`, which may be longer.
    ///
    /// Checks size, magic, that the parts fill the size exactly, that the offsets are not negative,
    /// and the topic's text. Fails also when `buf` ends before the record does. The checksums are
    /// left to [`check_body_crc`](Self::check_body_crc) and
    /// [`check_record_crc`](Self::check_record_crc).
    #[inline]
    pub fn parse(buf: &'a [u8]) -> Result<Self, DecodeError> {
        let size = u32_at(buf, 0);
        let bytes = usize::try_from(size)
            .ok()
            .filter(|_| (RECORD_BYTES_MIN..=i32::MAX.cast_unsigned()).contains(&size))
            .and_then(|size| buf.get(..size))
            .ok_or_else(|| bad_size(buf))?;
        let topic_length_bytes = match u32_at(bytes, 4) {
            MAGIC_V1 => 1,
            MAGIC_V2 => 2,
            magic => return Err(bad_magic(magic)),
        };
        let signs =
            i32_at(bytes, QUEUE_ID_AT) | i32_at(bytes, QUEUE_OFFSET_AT) | i32_at(bytes, PHY_OFFSET_AT);
        if signs < 0 {
            return Err(DecodeError::new(
                QUEUE_ID_AT,
                "queue id, queue offset and physical offset of 0 or more",
            ));
        }
        let body_length_at = body_length_at(bytes);
        let (body, topic_at) =
            part::<4>(bytes, body_length_at).ok_or_else(|| bad_part("body", body_length_at))?;
        let (topic, properties_at) =
            if topic_length_bytes == 1 { part::<1>(bytes, topic_at) } else { part::<2>(bytes, topic_at) }
                .ok_or_else(|| bad_part("topic", topic_at))?;
        let (properties, end) =
            part::<2>(bytes, properties_at).ok_or_else(|| bad_part("properties", properties_at))?;
        if end != bytes.len() {
            return Err(DecodeError::new(end, format!("the end of the record, whose size is {size}")));
        }
        let topic = std::str::from_utf8(topic).map_err(|_| DecodeError::new(topic_at, "a topic in UTF-8"))?;
        Ok(Self { bytes, body, topic, properties })
    }

    /// Size of the record, in bytes.
    pub fn total_size(&self) -> u32 {
        u32_at(self.bytes, 0)
    }

    /// The whole record, as it is stored and sent.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// CRC-32 of the stored body, sign bit cleared, as the record claims it.
    pub fn body_crc(&self) -> u32 {
        u32_at(self.bytes, BODY_CRC_AT)
    }

    /// The queue of its topic.
    pub fn queue_id(&self) -> QueueId {
        QueueId::from_wire(i32_at(self.bytes, QUEUE_ID_AT)).unwrap_or_default()
    }

    /// The user's flag.
    pub fn flag(&self) -> i32 {
        i32_at(self.bytes, FLAG_AT)
    }

    /// Number in its queue; 0 when the record is not in one.
    pub fn queue_offset(&self) -> QueueOffset {
        QueueOffset::from_wire(i64_at(self.bytes, QUEUE_OFFSET_AT)).unwrap_or_default()
    }

    /// Position in the log, as the record claims it.
    pub fn phy_offset(&self) -> PhyOffset {
        PhyOffset::from_wire(i64_at(self.bytes, PHY_OFFSET_AT)).unwrap_or_default()
    }

    /// The system flag.
    pub fn sys_flag(&self) -> SysFlag {
        SysFlag::new(i32_at(self.bytes, SYS_FLAG_AT))
    }

    /// When the producer made the message.
    pub fn born_at(&self) -> Millis {
        Millis::new(i64_at(self.bytes, BORN_AT_AT))
    }

    /// The producer's address; the port is 0 when the record names an impossible one.
    pub fn born_host(&self) -> SocketAddr {
        host_at(self.bytes, BORN_HOST_AT, self.sys_flag().born_v6())
    }

    fn store_at_at(&self) -> usize {
        BORN_HOST_AT + host_bytes(self.sys_flag().born_v6())
    }

    /// When the broker appended the record.
    pub fn store_at(&self) -> Millis {
        Millis::new(i64_at(self.bytes, self.store_at_at()))
    }

    /// The address of the broker that appended the record.
    pub fn store_host(&self) -> SocketAddr {
        host_at(self.bytes, self.store_at_at() + 8, self.sys_flag().store_v6())
    }

    fn reconsume_times_at(&self) -> usize {
        self.store_at_at() + 8 + host_bytes(self.sys_flag().store_v6())
    }

    /// How often consumers refused the message.
    pub fn reconsume_times(&self) -> i32 {
        i32_at(self.bytes, self.reconsume_times_at())
    }

    /// Log position of the half message of a committed copy; 0 for other records.
    pub fn prepared_offset(&self) -> PhyOffset {
        PhyOffset::from_wire(i64_at(self.bytes, self.reconsume_times_at() + 4)).unwrap_or_default()
    }

    /// The body as it is stored: compressed if the system flag says so.
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The topic.
    pub const fn topic(&self) -> &'a str {
        self.topic
    }

    /// The properties, the checksum among them.
    pub const fn properties(&self) -> Properties<'a> {
        Properties::new(self.properties)
    }

    /// Compares the body with its CRC.
    pub fn check_body_crc(&self) -> Result<(), DecodeError> {
        let actual = positive(crc32fast::hash(self.body));
        if actual == self.body_crc() {
            return Ok(());
        }
        let claimed = self.body_crc();
        Err(DecodeError::new(BODY_CRC_AT, format!("body CRC {claimed:#010x}, the body has {actual:#010x}")))
    }

    /// Whether the record ends in a checksum property.
    pub fn has_crc(&self) -> bool {
        self.properties().without_crc().raw().len() < self.properties.len()
    }

    /// Compares the whole record with its checksum property.
    ///
    /// A checksum that is there but damaged must not pass for one that never was: an end with zero bytes in it (a
    /// torn write), or one that lacks a few bits to be the right checksum, is an error too.
    pub fn check_record_crc(&self) -> Result<RecordCrc, DecodeError> {
        let at = self.bytes.len().saturating_sub(CRC_PROPERTY_BYTES);
        let (covered, property) = self.bytes.split_at_checked(at).unwrap_or_default();
        let actual = positive(crc32fast::hash(covered));
        let expected = crc_property(actual);
        if property == expected {
            return Ok(RecordCrc::Matches);
        }
        let fits = self.properties.len() >= CRC_PROPERTY_BYTES;
        let torn = fits && property.contains(&0);
        // The separator before the property may lack a bit as well; any other byte there belongs to a longer name.
        let separated = covered.last().is_some_and(|before| (before ^ VALUE_END).count_ones() <= 1);
        let named = self.has_crc() || fits && separated && property.starts_with(CRC_HEAD);
        let differing = property.iter().zip(expected).filter(|(found, expected)| *found != expected).count();
        if !named && !torn && differing > CRC_DAMAGE_MAX {
            return Ok(RecordCrc::Absent);
        }
        Err(DecodeError::new(at, format!("the record's checksum, which is {actual:#010x}")))
    }

    /// Checks the record's content: by the checksum over all of it, or that of its body where there is none.
    pub fn check(&self) -> Result<(), DecodeError> {
        match self.check_record_crc()? {
            RecordCrc::Matches => Ok(()),
            RecordCrc::Absent => self.check_body_crc(),
        }
    }
}

impl std::fmt::Debug for RecordView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordView")
            .field("topic", &self.topic)
            .field("queue_id", &self.queue_id().get())
            .field("queue_offset", &self.queue_offset().get())
            .field("phy_offset", &self.phy_offset().get())
            .field("total_size", &self.total_size())
            .field("sys_flag", &self.sys_flag())
            .field("properties", &self.properties())
            .finish_non_exhaustive()
    }
}

/// The bytes behind the `N`-byte length at `at`, and where they end. A topic or property string is
/// at most 32767 bytes by its writers; longer lengths do no harm here, the record bounds them.
#[inline]
fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let start = at + N;
    let length = bytes.get(at..start)?.iter().fold(0_u32, |length, byte| length << 8 | u32::from(*byte));
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    Some((bytes.get(start..end)?, end))
}

#[cold]
fn bad_size(buf: &[u8]) -> DecodeError {
    let (size, there) = (i32_at(buf, 0), buf.len());
    DecodeError::new(
        0,
        format!("a record of {RECORD_BYTES_MIN} to {there} bytes (there are no more), it says {size}"),
    )
}

#[cold]
fn bad_magic(magic: u32) -> DecodeError {
    DecodeError::new(4, format!("magic {MAGIC_V1:#010x} or {MAGIC_V2:#010x}, found {magic:#010x}"))
}

#[cold]
fn bad_part(what: &str, at: usize) -> DecodeError {
    DecodeError::new(at, format!("a {what} that ends within the record"))
}

/// What stands at a place of the log.
#[derive(Clone, Copy, Debug)]
pub enum Slot<'a> {
    /// A record.
    Record(RecordView<'a>),
    /// Nothing more in this file.
    Blank {
        /// Bytes up to the end of the file, as the blank record claims: at least
        /// [`BLANK_BYTES_MIN`]; compare it with the file.
        len: u32,
    },
    /// Nothing was ever written here.
    End,
}

impl<'a> Slot<'a> {
    /// Reads what stands at the start of `buf`: the rest of the log file, or of the part of it that
    /// was written.
    #[inline]
    pub fn read(buf: &'a [u8]) -> Result<Self, DecodeError> {
        let Some(head) = buf.first_chunk::<8>() else {
            return if buf.iter().all(|byte| *byte == 0) {
                Ok(Self::End)
            } else {
                Err(DecodeError::new(0, format!("a record or zeroes, only {} bytes are left", buf.len())))
            };
        };
        match (u32_at(head, 0), u32_at(head, 4)) {
            (0, 0) => Ok(Self::End),
            (BLANK_BYTES_MIN..=0x7fff_ffff, MAGIC_BLANK) => Ok(Self::Blank { len: u32_at(head, 0) }),
            _ => RecordView::parse(buf).map(Self::Record),
        }
    }
}

#[cfg(test)]
mod tests;
