//! What must be true of a broker whatever happens to it: a model that hears of everything a workload does.
//!
//! The workload tells what it is about to do and what was acknowledged, consumers tell what they see, and an
//! [`audit`](Checker::audit) reads every queue from end to end. Each contradiction is written down as a sentence:
//!
//! - an acknowledged message is at its queue and offset, with its body; so is everything a consumer once saw;
//! - offsets of a queue have no gaps; messages of one producer keep their order in a queue;
//! - no message is stored twice, also when it was sent again;
//! - a half message is seen once after its commit was asked for, never before and never after its rollback;
//! - a committed offset is neither below what was acknowledged nor above what was asked for;
//! - what groups pop, or refuse, is in [`groups`].
//!
//! A send, an end or a commit that was not acknowledged may or may not have happened.

mod audit;
pub mod groups;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gantry_client::proto::ids::{Millis, QueueOffset};
use gantry_client::proto::record::RecallHandle;
use gantry_client::{MessageQueue, Received, Resolution, SendReceipt, SendStatus};

/// Contradictions that are written down; the rest is only counted.
const VIOLATIONS_MAX: usize = 40;
/// A check so long after an acknowledged end cannot have crossed it on the way, unless something was held up.
const CROSSING_MAX: Duration = Duration::from_secs(2);
/// Timer messages of the load are due within 4 s, and the small jumps of a clock add 5 s. A later one was stored while the
/// clock was an hour or a day ahead.
const TIMED_WITHIN_MS: u64 = 30_000;
/// Which message: the `seq`-th of an actor. It is in the body, so that a message tells who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ident {
    /// Who sent it.
    pub actor: u16,
    /// Counts from 0 in each actor.
    pub seq: u64,
}

impl Ident {
    /// The body: the same for the same message and seed, 10 to 800 bytes.
    pub fn body(self, seed: u64) -> Vec<u8> {
        let mut rng = self.rng(seed);
        let mut body = format!("{}.{}.", self.actor, self.seq).into_bytes();
        let filler = if rng.u8(..) < 32 { 700 } else { 90 };
        body.extend((0..rng.usize(8..filler)).map(|_| rng.u8(b'a'..=b'z')));
        body
    }

    /// Decisions about this message, the same for the same seed.
    pub fn rng(self, seed: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(seed ^ (u64::from(self.actor) << 48) ^ self.seq.wrapping_mul(0x9E37_79B9))
    }

    /// The sharding key of messages that groups take turns with.
    pub fn sharding_key(self, seed: u64) -> u8 {
        self.rng(seed ^ 0x99).u8(..16)
    }

    /// Who sent this body, if it is one.
    pub fn of(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let mut parts = text.splitn(3, '.');
        Some(Self { actor: parts.next()?.parse().ok()?, seq: parts.next()?.parse().ok()? })
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {}.{}", self.actor, self.seq)
    }
}

/// How a message is sent, and so what an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One at a time: what is stored is in order, sent again or not.
    Serial,
    /// Sent with others in one request; in order as they are. The answer tells where the first is: when a crash
    /// tore the batch apart, a resend stores the rest elsewhere.
    Batched {
        /// The place is the answer's.
        first: bool,
    },
    /// With others under way: those acknowledged at the first attempt are in order.
    Pipelined,
    /// Never acknowledged.
    OneWay,
    /// Visible later, once.
    Delayed,
    /// Visible once, not before its time, unless it was taken back; then never.
    Timer,
    /// Visible once if it ends with a commit; never otherwise.
    Half(Fate),
}

/// How a transaction ends, whoever is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its message becomes visible.
    Commit,
    /// It never does.
    Rollback,
}

/// Whether a timer message is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    /// Nobody asked for it, or it was refused.
    NotAsked,
    /// It was asked for; what became of it is not known.
    Asked,
    /// It was acknowledged.
    Done,
}

/// Which attempt an acknowledgement answers.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'a> {
    /// The first, or one of those a client makes by itself.
    First,
    /// A resend with the same id to this queue.
    Again(&'a MessageQueue),
}

#[derive(Debug)]
struct Entry {
    topic: String,
    kind: Kind,
    /// The id its producer gave it, once it is known.
    id: Option<String>,
    acknowledged: bool,
    first_attempt: bool,
    place: Option<(MessageQueue, u64)>,
    commit_asked: bool,
    recall: Recall,
    /// A timer message that was stored while the broker's clock was far ahead: it comes when that time does.
    waits_for: Option<Millis>,
    ended_at: Option<Instant>,
    checks: u32,
}

impl Entry {
    /// Whether it must become visible.
    fn is_owed(&self) -> bool {
        self.acknowledged
            && !matches!(self.kind, Kind::OneWay | Kind::Half(Fate::Rollback))
            && self.recall == Recall::NotAsked
            && self.waits_for.is_none()
    }

    /// Whether its place among others of its actor is known. What was not acknowledged may have waited in a
    /// connection that nobody uses any more, and come in later.
    fn is_ordered(&self) -> bool {
        match self.kind {
            Kind::Serial | Kind::Batched { .. } => self.acknowledged,
            Kind::Pipelined => self.first_attempt,
            Kind::OneWay | Kind::Delayed | Kind::Timer | Kind::Half(_) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Commits {
    acknowledged: u64,
    asked: u64,
}

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages that were sent, acknowledged or not.
    pub sent: u64,
    /// Acknowledged sends, half messages among them.
    pub acknowledged: u64,
    /// Sends whose answer was lost and that were sent again with the same id.
    pub resent: u64,
    /// Resends that were answered with another queue than the one they named: the first send had been kept.
    pub recognised: u64,
    /// Acknowledged ends of transactions.
    pub ended: u64,
    /// Timer messages that were taken back.
    pub recalled: u64,
    /// Back-checks that came.
    pub checks: u64,
    /// Acknowledged offset commits.
    pub commits: u64,
    /// Messages that consumers and audits saw.
    pub seen: u64,
    /// Messages that a consumer got again after it went back to what its group had committed.
    pub redelivered: u64,
    /// Messages that groups popped.
    pub popped: u64,
    /// Those of them that their group had popped before.
    pub popped_again: u64,
    /// Acknowledged ends of popped messages.
    pub popped_done: u64,
    /// Dead letters of groups.
    pub dead: u64,
    /// Contradictions.
    pub violations: u64,
}

impl Counts {
    fn both(&self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sent: join(self.sent, other.sent),
            acknowledged: join(self.acknowledged, other.acknowledged),
            resent: join(self.resent, other.resent),
            recognised: join(self.recognised, other.recognised),
            ended: join(self.ended, other.ended),
            recalled: join(self.recalled, other.recalled),
            checks: join(self.checks, other.checks),
            commits: join(self.commits, other.commits),
            seen: join(self.seen, other.seen),
            redelivered: join(self.redelivered, other.redelivered),
            popped: join(self.popped, other.popped),
            popped_again: join(self.popped_again, other.popped_again),
            popped_done: join(self.popped_done, other.popped_done),
            dead: join(self.dead, other.dead),
            violations: join(self.violations, other.violations),
        }
    }

    /// What happened since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.both(before, u64::saturating_sub)
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        *self = self.both(other, |left, right| left + right);
    }
}

#[derive(Debug, Default)]
struct Model {
    messages: HashMap<Ident, Entry>,
    queues: BTreeMap<MessageQueue, BTreeMap<u64, Ident>>,
    commits: BTreeMap<(String, MessageQueue), Commits>,
    groups: BTreeMap<&'static str, groups::Standings>,
    /// Times of the broker's clock cannot be compared.
    clock_jumps: bool,
    /// Queues with news since the last glance.
    news: BTreeSet<MessageQueue>,
    /// The number of each actor's next message.
    next: HashMap<u16, u64>,
    counts: Counts,
    violations: Vec<String>,
}

/// The model of one broker. Shared by all that happens to it.
#[derive(Debug)]
pub struct Checker {
    seed: u64,
    /// What a check may take to get here, in milliseconds.
    crossing_ms: AtomicU64,
    /// Guards the model; held for one step of it, never across an await.
    model: Mutex<Model>,
}

impl Checker {
    /// A model of an empty broker. The bodies depend on the seed.
    pub fn new(seed: u64) -> Self {
        let crossing_ms = u64::try_from(CROSSING_MAX.as_millis()).unwrap_or(u64::MAX);
        Self { seed, crossing_ms: AtomicU64::new(crossing_ms), model: Mutex::default() }
    }

    /// Something holds everything up: from now on a check may be so much longer on its way.
    pub fn allow_delay(&self, delay: Duration) {
        let ms = u64::try_from((CROSSING_MAX + delay).as_millis()).unwrap_or(u64::MAX);
        self.crossing_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// The number of an actor's next message.
    pub fn next_seq(&self, actor: u16) -> u64 {
        self.model().next.get(&actor).copied().unwrap_or_default()
    }

    /// A consumer got a message once more.
    pub fn redelivered(&self) {
        self.model().counts.redelivered += 1;
    }

    /// The seed.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.model().counts
    }

    /// Notes a contradiction that someone else found.
    pub fn violation(&self, what: String) {
        self.model().violation(what);
    }

    /// The contradictions found so far.
    pub fn violations(&self) -> Vec<String> {
        self.model().violations.clone()
    }

    /// A message is about to be sent.
    pub fn sending(&self, ident: Ident, topic: &str, kind: Kind) {
        let entry = Entry {
            topic: topic.to_owned(),
            kind,
            id: None,
            acknowledged: false,
            first_attempt: false,
            place: None,
            commit_asked: false,
            recall: Recall::NotAsked,
            waits_for: None,
            ended_at: None,
            checks: 0,
        };
        let mut model = self.model();
        model.counts.sent += 1;
        let next = model.next.entry(ident.actor).or_default();
        *next = (*next).max(ident.seq + 1);
        let before = model.messages.insert(ident, entry);
        assert!(before.is_none(), "{ident} is made twice: the workload is wrong");
    }

    /// A message without an answer is about to be sent again with the same id.
    pub fn resending(&self) {
        self.model().counts.resent += 1;
    }

    /// A send was acknowledged.
    pub fn acknowledged(&self, ident: Ident, receipt: &SendReceipt, attempt: Attempt<'_>) {
        let mut model = self.model();
        model.counts.acknowledged += 1;
        if receipt.status != SendStatus::Ok {
            model.violation(format!("{ident} was answered with {:?}", receipt.status));
        }
        if let Attempt::Again(queue) = attempt {
            model.counts.recognised += u64::from(*queue != receipt.queue);
        }
        let entry = model.messages.get_mut(&ident).expect("what is acknowledged was sent");
        entry.acknowledged = true;
        entry.first_attempt = matches!(attempt, Attempt::First);
        entry.id = Some(receipt.message_id.clone());
        entry.waits_for = far_due(receipt).filter(|_| entry.kind == Kind::Timer);
        // The queue offset of a half or delayed message counts in the topic where it waits.
        if matches!(entry.kind, Kind::Serial | Kind::Pipelined | Kind::Batched { first: true }) {
            model.place(ident, &receipt.queue, receipt.queue_offset.get(), "was acknowledged");
        }
    }

    /// The end of a transaction is about to be told: from now on a commit may be visible.
    pub fn ending(&self, ident: Ident) {
        let mut model = self.model();
        let entry = model.messages.get_mut(&ident).expect("what is ended was sent");
        entry.commit_asked |= entry.kind == Kind::Half(Fate::Commit);
    }

    /// The end of a transaction was acknowledged.
    pub fn ended(&self, ident: Ident) {
        let mut model = self.model();
        model.counts.ended += 1;
        let entry = model.messages.get_mut(&ident).expect("what is ended was sent");
        entry.ended_at = Some(Instant::now());
    }

    /// A timer message is taken back, or that is about to be asked for.
    pub fn recall(&self, ident: Ident, recall: Recall) {
        let mut model = self.model();
        model.counts.recalled += u64::from(recall == Recall::Done);
        let entry = model.messages.get_mut(&ident).expect("what is taken back was sent");
        entry.recall = recall;
        if recall == Recall::Done
            && let Some((queue, offset)) = entry.place.clone()
        {
            model.violation(format!("{ident} was taken back, but was at {queue} @ {offset} before"));
        }
    }

    /// The broker asks how a transaction ended. Some are not known the first time.
    pub fn check(&self, message: &Received) -> Resolution {
        let crossing = Duration::from_millis(self.crossing_ms.load(Ordering::Relaxed));
        let mut model = self.model();
        model.counts.checks += 1;
        let ident = Ident::of(message.body());
        let Some((ident, entry)) = ident.and_then(|ident| Some((ident, model.messages.get_mut(&ident)?)))
        else {
            model.violation(format!("a check came for a message that nobody sent: {message:?}"));
            return Resolution::Unknown;
        };
        let Kind::Half(fate) = entry.kind else {
            model.violation(format!("a check came for {ident}, which is no half message"));
            return Resolution::Unknown;
        };
        entry.checks += 1;
        let late = entry.ended_at.map(|at| at.elapsed()).filter(|since| *since > crossing);
        let resolution = match fate {
            _ if entry.checks == 1 && ident.rng(self.seed).u8(..) < 64 => Resolution::Unknown,
            Fate::Commit => {
                entry.commit_asked = true;
                Resolution::Commit
            }
            Fate::Rollback => Resolution::Rollback,
        };
        if let Some(since) = late {
            model.violation(format!("{ident} was checked {since:?} after its acknowledged end ({fate:?})"));
        }
        resolution
    }

    /// A consumer or an audit saw a message of a user topic.
    pub fn saw(&self, message: &Received) {
        let mut model = self.model();
        model.counts.seen += 1;
        let at = format!("{} @ {}", message.queue(), message.queue_offset().get());
        let Some(ident) = Ident::of(message.body()).filter(|ident| model.messages.contains_key(ident)) else {
            model.violation(format!("{at} holds a message that nobody sent: {message:?}"));
            return;
        };
        if ident.body(self.seed) != *message.body() {
            model.violation(format!("{at}: {ident} has another body than it was sent with"));
        }
        let entry = model.messages.get_mut(&ident).expect("it was looked up above");
        let wrong = if entry.topic != message.queue().topic.as_str() {
            Some(format!("{at}: {ident} was sent to {}", entry.topic))
        } else if entry.id.as_ref().is_some_and(|id| *id != message.message_id()) {
            Some(format!("{at}: {ident} was sent as {:?}, not {}", entry.id, message.message_id()))
        } else if entry.kind == Kind::Half(Fate::Rollback) {
            Some(format!("{at}: {ident} is visible, but its transaction rolls back"))
        } else if entry.kind == Kind::Half(Fate::Commit) && !entry.commit_asked {
            Some(format!("{at}: {ident} is visible before anyone asked for its commit"))
        } else if entry.recall == Recall::Done {
            Some(format!("{at}: {ident} is visible, but was taken back"))
        } else if entry.kind == Kind::Timer && is_early(message) {
            Some(format!("{at}: {ident} was stored at {}, before its time: {message:?}", message.store_at()))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            model.violation(wrong);
        }
        model.place(ident, message.queue(), message.queue_offset().get(), "was seen");
    }

    /// A group is about to commit an offset.
    pub fn committing(&self, group: &str, queue: &MessageQueue, offset: QueueOffset) {
        let mut model = self.model();
        let commits = model.commits.entry((group.to_owned(), queue.clone())).or_default();
        commits.asked = commits.asked.max(offset.get());
    }

    /// The commit was acknowledged.
    pub fn committed(&self, group: &str, queue: &MessageQueue, offset: QueueOffset) {
        let mut model = self.model();
        model.counts.commits += 1;
        let commits = model.commits.entry((group.to_owned(), queue.clone())).or_default();
        commits.acknowledged = commits.acknowledged.max(offset.get());
    }

    /// How many messages must become visible and were not seen yet.
    pub fn owed(&self) -> usize {
        self.model().messages.values().filter(|m| m.is_owed() && m.place.is_none()).count()
    }

    /// Panics with what was found, if anything was.
    ///
    /// `again` tells how to run it again.
    pub fn assert_clean(&self, again: &str) {
        let model = self.model();
        let found = &model.violations;
        assert!(
            found.is_empty(),
            "expected no contradiction, found {}; run again with `{again}`:\n{}",
            model.counts.violations,
            found.join("\n")
        );
    }
}

/// When a timer message is due, if that is much later than any that the load sends.
fn far_due(receipt: &SendReceipt) -> Option<Millis> {
    let handle = receipt.recall_handle.as_deref().and_then(RecallHandle::decode);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let latest = Millis::new(i64::try_from(now.as_millis()).unwrap_or(i64::MAX)).plus(TIMED_WITHIN_MS);
    handle.map(|handle| handle.deliver_at).filter(|due| *due > latest)
}

/// Whether the broker's own clock was before the time that the message is due. Without that time it was never a timer's:
/// what was due when it came is delivered at once.
fn is_early(message: &Received) -> bool {
    message.properties().timer_out_ms().is_some_and(|due| message.store_at().get() < due)
}

impl Model {
    fn violation(&mut self, what: String) {
        self.counts.violations += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            eprintln!("VIOLATION: {what}");
            self.violations.push(what);
        }
    }

    /// `ident` is at `offset` of `queue`: nothing else may be, and it nowhere else.
    fn place(&mut self, ident: Ident, queue: &MessageQueue, offset: u64, how: &str) {
        let places = self.queues.entry(queue.clone()).or_default();
        let holds = *places.entry(offset).or_insert(ident);
        if holds != ident {
            self.violation(format!("{ident} {how} at {queue} @ {offset}, where {holds} was before"));
        }
        let entry = self.messages.get_mut(&ident).expect("what has a place was sent");
        match &entry.place {
            None => {
                entry.place = Some((queue.clone(), offset));
                self.news.insert(queue.clone());
            }
            Some(place) if (&place.0, place.1) == (queue, offset) => {}
            Some((first, at)) => {
                let kind = entry.kind;
                let what =
                    format!("{ident} ({kind:?}) {how} at {queue} @ {offset} and is at {first} @ {at} too");
                self.violation(what);
            }
        }
    }
}
