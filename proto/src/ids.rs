//! Positions, numbers and times as types of their own, so that none is taken for another.
//!
//! All of them are written big-endian, as the peers write them; "none" is `-1` on the wire and
//! `Option::None` in the program.

use std::fmt;
use std::ops::{Add, AddAssign};

macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The first position.
            pub const ZERO: Self = Self(0);

            /// The position `raw` counted from the start.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Reads the wire's signed form; negative means "none".
            pub fn from_wire(raw: i64) -> Option<Self> {
                u64::try_from(raw).ok().map(Self)
            }

            /// The wire's signed form. Positions beyond `i64::MAX` cannot occur: the log would be
            /// eight exbibytes long.
            pub const fn to_wire(self) -> i64 {
                self.0.cast_signed()
            }

            /// How far `self` lies behind `earlier`; 0 when it does not.
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }

            /// `self - n`, at least zero.
            #[must_use]
            pub const fn back(self, n: u64) -> Self {
                Self(self.0.saturating_sub(n))
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, n: u64) -> Self {
                Self(self.0 + n)
            }
        }

        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, n: u64) {
                self.0 += n;
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

position! {
    /// Byte position in the commit log. Not a [`QueueOffset`], whatever the wire calls it.
    PhyOffset
}

position! {
    /// Number of a message in its queue, from 0; the n-th entry of the consume queue.
    QueueOffset
}

/// Number of a queue within its topic, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(u32);

impl QueueId {
    /// Queue 0: the only queue of most system topics.
    pub const ZERO: Self = Self(0);

    /// Queue number `raw`.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The plain number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Reads the wire's signed form; negative means "any" or "none".
    pub fn from_wire(raw: i32) -> Option<Self> {
        u32::try_from(raw).ok().map(Self)
    }

    /// The wire's signed form.
    pub const fn to_wire(self) -> i32 {
        self.0.cast_signed()
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time: milliseconds since 1970-01-01 00:00:00 UTC, as every timestamp of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(i64);

impl Millis {
    /// The epoch itself; the wire also uses it for "unknown".
    pub const ZERO: Self = Self(0);
    /// Later than every real time.
    pub const MAX: Self = Self(i64::MAX);

    /// The instant `raw` milliseconds after the epoch.
    pub const fn new(raw: i64) -> Self {
        Self(raw)
    }

    /// Milliseconds since the epoch.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Milliseconds from `earlier` to `self`; 0 when `self` is not later.
    pub const fn since(self, earlier: Self) -> u64 {
        let passed = self.0.saturating_sub(earlier.0);
        if passed > 0 { passed.cast_unsigned() } else { 0 }
    }

    /// The instant `ms` later.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add_unsigned(ms))
    }

    /// The instant `ms` earlier.
    #[must_use]
    pub const fn minus(self, ms: u64) -> Self {
        Self(self.0.saturating_sub_unsigned(ms))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_wire_positions_are_none() {
        assert_eq!(PhyOffset::from_wire(-1), None);
        assert_eq!(QueueOffset::from_wire(7), Some(QueueOffset::new(7)));
        assert_eq!(QueueId::from_wire(-3), None);
    }

    #[test]
    fn time_differences_do_not_go_below_zero() {
        assert_eq!(Millis::new(5).since(Millis::new(9)), 0);
        assert_eq!(Millis::new(9).since(Millis::new(5)), 4);
        assert_eq!(PhyOffset::new(3).since(PhyOffset::new(10)), 0);
    }
}
