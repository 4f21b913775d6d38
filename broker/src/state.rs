//! What this broker notes for itself in the log: records of the topic `rmq_sys_gantry_state`, queue 0.
//!
//! Their body is one byte that says what it is about, and that subject's own bytes behind it:
//!
//! ```text
//!  0      1
//!  +------+------------------+
//!  | kind | payload ...      |
//!  +------+------------------+
//! ```
//!
//! Apache does not know the topic and never reads it; without it, it knows what its own files say.
//! A kind that this program does not know was written by a newer one: it is passed over.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::topics;
use gantry_proto::record::{RecordDraft, SysFlag};

/// What a state record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StateKind {
    /// Offsets of consumer groups.
    Offsets = 1,
    /// How often open transactions were checked.
    Checks = 2,
    /// A message with a delay level that was recalled.
    Recalled = 3,
    /// Which messages are popped and not acknowledged.
    Pop = 16,
}

impl StateKind {
    /// The kind numbered `raw`.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Offsets),
            2 => Some(Self::Checks),
            3 => Some(Self::Recalled),
            16 => Some(Self::Pop),
            _ => None,
        }
    }
}

/// The body of a state record; the payload is to be appended to it.
pub fn body_of(kind: StateKind) -> Vec<u8> {
    vec![kind as u8]
}

/// Kind and payload of a state record's body; `None` when it is empty or of an unknown kind.
pub fn parse(body: &[u8]) -> Option<(StateKind, &[u8])> {
    let (kind, payload) = body.split_first()?;
    Some((StateKind::from_raw(*kind)?, payload))
}

/// A state record with this body, made at `now`.
pub fn draft(body: &[u8], now: Millis) -> RecordDraft<'_> {
    let nobody = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    RecordDraft {
        topic: topics::STATE,
        queue_id: QueueId::ZERO,
        flag: 0,
        sys_flag: SysFlag::NONE,
        born_at: now,
        born_host: nobody,
        store_host: nobody,
        reconsume_times: 0,
        prepared_offset: PhyOffset::ZERO,
        body,
        properties: &[],
        append_crc: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_what_it_is_about() {
        for kind in [StateKind::Offsets, StateKind::Checks, StateKind::Recalled, StateKind::Pop] {
            let mut body = body_of(kind);
            body.extend_from_slice(b"payload");
            assert_eq!(parse(&body), Some((kind, &b"payload"[..])));
        }
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[200, 1]), None);
    }
}
