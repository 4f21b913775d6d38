//! Ends of leases that clients ask for: acks, and other invisible times.

use std::fmt;

use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};

use super::record::{Change, Counted, Lease, OFFSETS_MAX};
use super::table::{Hand, Judged, Table};
use super::{PopError, Pops};
use crate::groups::offsets::Key;

/// Messages that were popped together, and are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Whose, and where.
    pub key: Key,
    /// The lease that their handles name.
    pub lease: Lease,
    /// The messages.
    pub offsets: Vec<QueueOffset>,
}

/// A message that is to be invisible for another time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Whose, and where.
    pub key: Key,
    /// The lease that its handle names.
    pub lease: Lease,
    /// The message.
    pub offset: QueueOffset,
    /// For how long from now on, in milliseconds.
    pub invisible_ms: u32,
    /// Whether the delivery that ends then counts as an attempt.
    pub counted: Counted,
}

/// Why a receipt handle does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There was no such pop.
    NotPopped,
    /// Another pop or another invisible time came after it.
    Superseded,
    /// Its time is over, and the message is delivered again.
    Over {
        /// When it was over.
        since: Millis,
    },
    /// The message is done already.
    Done,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPopped => {
                f.write_str("the group has not popped this message with this handle: pass on the handle that came with it")
            }
            Self::Superseded => {
                f.write_str("the message got another handle since: use the newest one")
            }
            Self::Over { since } => {
                write!(f, "the invisible time was over at {since} and the message is delivered again: acknowledge that delivery, or pop with a longer time")
            }
            Self::Done => f.write_str("the message is acknowledged: there is nothing left to do"),
        }
    }
}

/// What became of acks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acked {
    /// They may be answered when the log is safe up to `end`.
    Taken {
        /// Up to where.
        end: PhyOffset,
        /// Messages that are done.
        count: usize,
        /// Messages whose handle does not count, and why.
        refused: Vec<(QueueOffset, Refused)>,
    },
    /// Nothing was done: try again when the log is applied up to here.
    Later(PhyOffset),
}

/// What became of a change of the invisible time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It may be answered when the log is safe up to `end`.
    Taken {
        /// Up to where.
        end: PhyOffset,
        /// What the new handle names.
        lease: Lease,
    },
    /// The handle does not count.
    Refused(Refused),
    /// Nothing was done: try again when the log is applied up to here.
    Later(PhyOffset),
}

impl Pops {
    /// Takes acks. The caller [drives](crate::store::Store::drive) the store.
    pub fn ack(&self, acks: &[Ack]) -> Result<Acked, PopError> {
        let now = self.with.store.clock().now();
        let mut writer = self.writer();
        let (mut held, mut refused, mut count) = (Vec::new(), Vec::new(), 0);
        {
            let mut table = self.table();
            for ack in acks {
                let mut offsets = Vec::new();
                for offset in &ack.offsets {
                    match judge(&table, &ack.key, *offset, &ack.lease, now) {
                        Ok(Judged::Held) => offsets.push(*offset),
                        Ok(Judged::Coming) => return Ok(Acked::Later(self.logged_end())),
                        Ok(_) => count += 1,
                        Err(why) => refused.push((*offset, why)),
                    }
                }
                let chunks = offsets.chunks(OFFSETS_MAX).map(|chunk| (ack.key.clone(), chunk.to_vec()));
                held.extend(chunks);
            }
            set_hands(&mut table, &held, Hand::Acking);
        }
        if held.is_empty() {
            // What another request acknowledged is told when it is as safe as that one's answer.
            let end = if count > 0 { self.logged_end() } else { PhyOffset::ZERO };
            return Ok(Acked::Taken { end, count, refused });
        }
        let changes: Vec<_> =
            held.iter().map(|(key, offsets)| Change::Acked(key.clone(), offsets.clone())).collect();
        let end = self.append(&mut writer, &changes).inspect_err(|_| {
            set_hands(&mut self.table(), &held, Hand::Free);
        })?;
        count += held.iter().map(|(_, offsets)| offsets.len()).sum::<usize>();
        Ok(Acked::Taken { end, count, refused })
    }

    /// Makes a message invisible for another time. The caller [drives](crate::store::Store::drive) the store.
    pub fn renew(&self, renewal: &Renewal) -> Result<Renewed, PopError> {
        let now = self.with.store.clock().now();
        let mut writer = self.writer();
        let Renewal { key, offset, .. } = renewal;
        {
            let mut table = self.table();
            match judge(&table, key, *offset, &renewal.lease, now) {
                Ok(Judged::Held) => table.set_hand(key, *offset, Hand::Renewing),
                Ok(Judged::Coming) => return Ok(Renewed::Later(self.logged_end())),
                Ok(_) => return Ok(Renewed::Refused(Refused::Done)),
                Err(why) => return Ok(Renewed::Refused(why)),
            }
        }
        let lease = Lease { popped_at: now, invisible_ms: renewal.invisible_ms };
        let change = Change::Renewed(key.clone(), *offset, lease, renewal.counted);
        let end = self.append(&mut writer, &[change]).inspect_err(|_| {
            self.table().set_hand(key, *offset, Hand::Free);
        })?;
        Ok(Renewed::Taken { end, lease })
    }

    /// Returns when the log is applied up to `end`: to be awaited for what is [`Later`](Acked::Later).
    pub async fn caught_up(&self, end: PhyOffset) -> Result<(), PopError> {
        self.with.store.drive();
        Ok(self.with.store.dispatched(end).await?)
    }

    /// Gets what was taken written, and returns when the log is safe up to `end`.
    pub async fn settled(&self, end: PhyOffset) -> Result<(), PopError> {
        self.with.store.drive();
        Ok(self.with.store.settled(end).await?)
    }
}

fn judge(
    table: &Table,
    key: &Key,
    offset: QueueOffset,
    lease: &Lease,
    now: Millis,
) -> Result<Judged, Refused> {
    match table.judge(key, offset, lease, now) {
        Judged::NotPopped => Err(Refused::NotPopped),
        Judged::Superseded => Err(Refused::Superseded),
        Judged::Over => Err(Refused::Over { since: lease.ends() }),
        known @ (Judged::Held | Judged::Done | Judged::Coming) => Ok(known),
    }
}

fn set_hands(table: &mut Table, messages: &[(Key, Vec<QueueOffset>)], hand: Hand) {
    for (key, offsets) in messages {
        for offset in offsets {
            table.set_hand(key, *offset, hand);
        }
    }
}
