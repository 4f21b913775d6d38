//! The system flag of a record: one bit set for the formats of the record and the state of its
//! transaction.
//!
//! ```text
//!  bit 0      1  body compressed
//!  bit 1      2  multi-tags
//!  bits 2-3      transaction: 0 none, 4 prepared, 8 commit, 12 rollback
//!  bit 4     16  born host is IPv6
//!  bit 5     32  store host is IPv6
//!  bit 6     64  consumers must unwrap the inner batch
//!  bit 7    128  inner batch
//!  bits 8-10     compression: 0 and 0x300 ZLIB, 0x100 LZ4, 0x200 ZSTD
//! ```

use std::fmt;

const COMPRESSED: i32 = 1;
const MULTI_TAGS: i32 = 1 << 1;
const TRANSACTION: i32 = 3 << 2;
const BORN_V6: i32 = 1 << 4;
const STORE_V6: i32 = 1 << 5;
const NEED_UNWRAP: i32 = 1 << 6;
const INNER_BATCH: i32 = 1 << 7;
const COMPRESSION: i32 = 7 << 8;

/// What a record is to its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum TransactionFlag {
    /// Not part of one, or a half message as it is stored (the flag is cleared there).
    None = 0,
    /// Half message on its way to the broker.
    Prepared = 4,
    /// The visible copy of a committed half message.
    Commit = 8,
    /// Rolled back; never visible.
    Rollback = 12,
}

impl TransactionFlag {
    /// Reads the number that END_TRANSACTION and the system flag carry; only 0, 4, 8 and 12 exist.
    pub const fn from_wire(raw: i32) -> Option<Self> {
        match raw {
            0 => Some(Self::None),
            4 => Some(Self::Prepared),
            8 => Some(Self::Commit),
            12 => Some(Self::Rollback),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> i32 {
        self as i32
    }
}

/// How a compressed body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Deflate with the zlib header (RFC 1950); also what clients before 5.0 mean by no type at all.
    Zlib,
    /// LZ4 frame format.
    Lz4,
    /// Zstandard frame.
    Zstd,
    /// A type of a later protocol version, as numbered in the flag (4 to 7).
    Other(u8),
}

/// The flag word; see the module for its bits. Unknown bits are carried along.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SysFlag(i32);

impl SysFlag {
    /// No bit set: a plain message between IPv4 hosts.
    pub const NONE: Self = Self(0);

    /// The flag word `raw`.
    pub const fn new(raw: i32) -> Self {
        Self(raw)
    }

    /// The plain number.
    pub const fn get(self) -> i32 {
        self.0
    }

    const fn has(self, bit: i32) -> bool {
        self.0 & bit != 0
    }

    const fn with(self, bits: i32, on: bool) -> Self {
        if on { Self(self.0 | bits) } else { Self(self.0 & !bits) }
    }

    /// Whether the body is stored compressed.
    pub const fn is_compressed(self) -> bool {
        self.has(COMPRESSED)
    }

    /// How the body is compressed; `None` when it is not.
    pub const fn compression(self) -> Option<Compression> {
        if !self.is_compressed() {
            return None;
        }
        Some(match (self.0 & COMPRESSION) >> 8 {
            0 | 3 => Compression::Zlib,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            4 => Compression::Other(4),
            5 => Compression::Other(5),
            6 => Compression::Other(6),
            _ => Compression::Other(7),
        })
    }

    /// The flag of a body that is compressed so, or not at all.
    #[must_use]
    pub const fn with_compression(self, how: Option<Compression>) -> Self {
        let plain = self.0 & !(COMPRESSED | COMPRESSION);
        Self(match how {
            None => plain,
            Some(Compression::Lz4) => plain | COMPRESSED | 0x100,
            Some(Compression::Zstd) => plain | COMPRESSED | 0x200,
            Some(Compression::Zlib) => plain | COMPRESSED | 0x300,
            Some(Compression::Other(number)) => plain | COMPRESSED | ((number as i32 & 7) << 8),
        })
    }

    /// Whether the topic's messages carry several tags each.
    pub const fn has_multi_tags(self) -> bool {
        self.has(MULTI_TAGS)
    }

    /// The flag with or without the multi-tags bit.
    #[must_use]
    pub const fn with_multi_tags(self, on: bool) -> Self {
        self.with(MULTI_TAGS, on)
    }

    /// What the record is to its transaction.
    pub const fn transaction(self) -> TransactionFlag {
        match self.0 & TRANSACTION {
            0 => TransactionFlag::None,
            4 => TransactionFlag::Prepared,
            8 => TransactionFlag::Commit,
            _ => TransactionFlag::Rollback,
        }
    }

    /// The flag with this transaction state.
    #[must_use]
    pub const fn with_transaction(self, state: TransactionFlag) -> Self {
        Self(self.0 & !TRANSACTION | state.to_wire())
    }

    /// Whether a record with this flag is an entry of its consume queue: prepared and rolled back
    /// ones are not.
    pub const fn is_queued(self) -> bool {
        matches!(self.transaction(), TransactionFlag::None | TransactionFlag::Commit)
    }

    /// Whether the born host takes 20 bytes.
    pub const fn born_v6(self) -> bool {
        self.has(BORN_V6)
    }

    /// Whether the store host takes 20 bytes.
    pub const fn store_v6(self) -> bool {
        self.has(STORE_V6)
    }

    /// The flag for hosts of these families.
    #[must_use]
    pub const fn with_hosts(self, born_v6: bool, store_v6: bool) -> Self {
        self.with(BORN_V6, born_v6).with(STORE_V6, store_v6)
    }

    /// Whether the body is a batch that is stored as one record.
    pub const fn is_inner_batch(self) -> bool {
        self.has(INNER_BATCH)
    }

    /// Whether consumers must take the body apart.
    pub const fn needs_unwrap(self) -> bool {
        self.has(NEED_UNWRAP)
    }

    /// The flag of a batch that is stored as one record.
    #[must_use]
    pub const fn with_inner_batch(self) -> Self {
        Self(self.0 | INNER_BATCH | NEED_UNWRAP)
    }
}

impl fmt::Debug for SysFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SysFlag({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_bits_are_read_and_replaced() {
        let flag = SysFlag::new(16 | 4);
        assert_eq!(flag.transaction(), TransactionFlag::Prepared);
        assert!(!flag.is_queued());
        let committed = flag.with_transaction(TransactionFlag::Commit);
        assert_eq!(committed.get(), 16 | 8);
        assert!(committed.is_queued());
        assert_eq!(TransactionFlag::from_wire(12), Some(TransactionFlag::Rollback));
        assert_eq!(TransactionFlag::from_wire(5), None);
    }

    #[test]
    fn no_compression_type_means_zlib() {
        assert_eq!(SysFlag::new(1).compression(), Some(Compression::Zlib));
        assert_eq!(SysFlag::new(0x301).compression(), Some(Compression::Zlib));
        assert_eq!(SysFlag::new(0x300).compression(), None);
        for how in [Compression::Zlib, Compression::Lz4, Compression::Zstd, Compression::Other(5)] {
            let flag = SysFlag::new(8).with_compression(Some(how));
            assert_eq!(flag.compression(), Some(how));
            assert_eq!(flag.with_compression(None), SysFlag::new(8));
        }
    }

    #[test]
    fn host_and_batch_bits_do_not_touch_each_other() {
        let flag = SysFlag::NONE.with_hosts(true, false).with_inner_batch().with_multi_tags(true);
        assert!(flag.born_v6() && !flag.store_v6());
        assert!(flag.is_inner_batch() && flag.needs_unwrap() && flag.has_multi_tags());
        assert_eq!(flag.with_hosts(false, true).get(), 32 | 64 | 128 | 2);
    }
}
