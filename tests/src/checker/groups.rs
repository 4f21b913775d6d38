//! What a group has got, and what it has said about it: popped and acknowledged, refused, seen.
//!
//! The model of a group says, of each message that the group wants:
//!
//! - the group gets it, whatever happens, or it is a dead letter of the group; one that every member refuses is a dead
//!   letter in the end, and none before it was given as often as the group wants;
//! - what a group has popped is nobody else's until the invisible time ends, and an ack within that time counts;
//! - once the ack is answered, the message never comes again, neither popped nor as a dead letter;
//! - where a group pops in order, no message comes while one before it in its queue is not done, or one with its sharding key;
//! - the group's offset stays at or below what is popped and not done, and comes to the end when everything is.
//!
//! All times of leases are the broker's, so they are compared with each other exactly; while its clock jumps they are
//! not compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gantry_client::proto::ids::QueueOffset;
use gantry_client::proto::receipt::ReceiptHandle;
use gantry_client::{Client, MessageQueue, Received, Result};

use super::{Checker, Entry, Ident, Model};

/// The machine's own clock is corrected while it runs, by not so much.
const CORRECTION_MS: i64 = 100;

/// How a group consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its members pop.
    Pop,
    /// Its members pop, each queue in order.
    PopInOrder,
    /// Its members pop, each sharding key of a queue in order.
    PopByKey,
    /// Messages are pushed to its members; what they refuse comes again later.
    Push,
    /// It has one member, which pulls.
    Pull,
}

/// A group, and what it wants.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// Of which topic.
    pub topic: &'static str,
    /// How.
    pub way: Way,
    /// Which messages, in SQL92; all of them without.
    pub sql: Option<&'static str>,
    /// The same, for the model.
    pub wants: fn(Ident) -> bool,
    /// Messages that every member refuses.
    pub refuses: fn(Ident) -> bool,
    /// How often a message comes again before it is a dead letter.
    pub retries_max: u16,
}

impl Group {
    const fn pops(&self) -> bool {
        matches!(self.way, Way::Pop | Way::PopInOrder | Way::PopByKey)
    }
}

/// A message that was popped.
#[derive(Clone, Debug)]
pub struct Popped {
    /// Which message it is.
    pub ident: Ident,
    /// The topic that it lies in: the group's retry topic, if it was not acknowledged before.
    pub topic: String,
    /// What it is acknowledged with.
    pub handle: ReceiptHandle,
}

/// One pop, as its client knows it.
#[derive(Clone, Debug)]
pub struct Pop {
    /// When it was asked for.
    pub asked_at: Instant,
    /// Id of the request, if it has one.
    pub attempt: Option<Arc<str>>,
}

/// One delivery of a message.
#[derive(Clone, Debug)]
struct Given {
    topic: String,
    queue: u32,
    offset: u64,
    popped_at: i64,
    /// When its lease ends, if the lease is judged.
    ends: Option<i64>,
    /// The broker's clock was right.
    is_honest: bool,
    attempt: Option<Arc<str>>,
}

impl Given {
    fn is(&self, popped: &Popped) -> bool {
        let handle = &popped.handle;
        self.topic == popped.topic
            && (self.queue, self.offset) == (handle.queue.get(), handle.offset.get())
            && self.popped_at == handle.popped_at.get()
    }
}

/// An acknowledged end.
#[derive(Clone, Copy, Debug)]
struct Done {
    at: Instant,
    /// Of the lease that was acknowledged; if the broker's clock was right.
    popped_at: Option<i64>,
}

/// What a group knows of one message.
#[derive(Clone, Debug, Default)]
struct Standing {
    given: Vec<Given>,
    /// Deliveries that are not popped.
    seen: u64,
    /// Acks that are under way, or whose answer was lost.
    asked: u32,
    done: Option<Done>,
    /// Where it is among the dead letters.
    dead: Option<(MessageQueue, u64)>,
}

impl Standing {
    const fn is_met(&self) -> bool {
        self.dead.is_some() || self.seen > 0 || self.done.is_some() || self.asked > 0
    }

    /// The lease that holds it for certain at `now`, if nobody has said anything about it.
    fn held(&self, now: i64) -> Option<&Given> {
        let newest = self.given.iter().max_by_key(|given| given.popped_at)?;
        let is_held = self.asked == 0
            && self.done.is_none()
            && self.dead.is_none()
            && newest.ends.is_some_and(|ends| ends > now + CORRECTION_MS);
        is_held.then_some(newest)
    }
}

#[derive(Debug)]
pub(super) struct Standings {
    group: &'static Group,
    messages: HashMap<Ident, Standing>,
    /// Pops whose answer was lost.
    lost: u64,
    /// Popped in order: everything below is done.
    floors: BTreeMap<MessageQueue, u64>,
    /// The same of each key.
    key_floors: BTreeMap<(MessageQueue, u8), u64>,
}

fn now_ms() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)
}

impl Checker {
    /// A group consumes from now on.
    pub fn consumes(&self, group: &'static Group) {
        let standings = Standings {
            group,
            messages: HashMap::new(),
            lost: 0,
            floors: BTreeMap::new(),
            key_floors: BTreeMap::new(),
        };
        self.model().groups.entry(group.name).or_insert(standings);
    }

    /// Whether the broker's clock is right from now on.
    pub fn trust_clock(&self, is_honest: bool) {
        self.model().clock_jumps = !is_honest;
    }

    /// A pop got no answer: it may have taken messages.
    pub fn pop_lost(&self, group: &Group) {
        self.model().standings(group).lost += 1;
    }

    /// A pop was answered with these messages; of each its body, the topic it lies in, and its handle. Gives those that
    /// are known.
    pub fn popped(
        &self,
        group: &Group,
        pop: &Pop,
        messages: Vec<(Vec<u8>, String, ReceiptHandle)>,
    ) -> Vec<Popped> {
        let mut model = self.model();
        let mut known = Vec::with_capacity(messages.len());
        for (body, topic, handle) in messages {
            model.counts.popped += 1;
            let at = format!("{topic}:{} @ {}", handle.queue, handle.offset);
            let Some(ident) = model.identify(group, &at, &body, self.seed) else { continue };
            let popped = Popped { ident, topic, handle };
            model.note_pop(group, pop, &popped);
            known.push(popped);
        }
        match group.way {
            Way::PopInOrder => model.check_turn(group, &known),
            Way::PopByKey => model.check_keys(group, &known, self.seed),
            Way::Pop | Way::Push | Way::Pull => {}
        }
        known
    }

    /// Acks are about to be sent.
    pub fn acking(&self, group: &Group, messages: &[Popped]) {
        let mut model = self.model();
        for popped in messages {
            model.standing(group, popped.ident).asked += 1;
        }
    }

    /// They were answered with success.
    pub fn popped_done(&self, group: &Group, messages: &[Popped]) {
        let mut model = self.model();
        for popped in messages {
            model.counts.popped_done += 1;
            model.note_done(group, popped);
        }
    }

    /// Acks were refused because their handles do not count; `messages` tells whose.
    pub fn ack_refused(&self, group: &Group, popped: &Popped, why: &str) {
        let now = now_ms();
        let mut model = self.model();
        let standing = model.standing(group, popped.ident);
        standing.asked = standing.asked.saturating_sub(1);
        // Pops in order with one id give the same messages, which may take a lease away.
        let counts = group.way == Way::Pop && standing.held(now).is_some_and(|given| given.is(popped));
        if counts {
            let what = format!(
                "{}: the ack of {} with {} is refused in time ({why}): {standing:?}",
                group.name, popped.ident, popped.handle
            );
            model.violation(what);
        }
    }

    /// Another invisible time is about to be asked for.
    pub fn renewing(&self, group: &Group, popped: &Popped) {
        let mut model = self.model();
        for given in model.standing(group, popped.ident).given.iter_mut().filter(|given| given.is(popped)) {
            given.ends = None;
        }
    }

    /// It was answered: `renewed` has the new handle.
    pub fn renewed(&self, group: &Group, renewed: &Popped) {
        let mut model = self.model();
        let is_honest = !model.clock_jumps;
        let given = Given::of(renewed, None, is_honest);
        model.standing(group, renewed.ident).given.push(given);
    }

    /// A group that does not pop got a message.
    pub fn delivered(&self, group: &Group, message: &Received) {
        let mut model = self.model();
        let at = format!("{} @ {}", message.queue(), message.queue_offset());
        if let Some(ident) = model.identify(group, &at, message.body(), self.seed) {
            model.standing(group, ident).seen += 1;
        }
    }

    /// A dead letter of a group was seen.
    pub fn died(&self, group: &Group, message: &Received) {
        let mut model = self.model();
        let place = (message.queue().clone(), message.queue_offset().get());
        let at = format!("{} @ {}", place.0, place.1);
        let Some(ident) = model.identify(group, &at, message.body(), self.seed) else { return };
        let lost = model.standings(group).lost;
        let standing = model.standing(group, ident);
        if standing.dead.as_ref() == Some(&place) {
            return;
        }
        let before = standing.dead.replace(place);
        let wrong = if !group.pops() {
            // What was refused twice, because the first answer was lost, dies twice.
            None
        } else if let Some(before) = &before {
            Some(format!("and at {} @ {} too", before.0, before.1))
        } else if standing.done.is_some() {
            Some("its ack was answered".to_owned())
        } else if standing.given.len() as u64 + lost <= u64::from(group.retries_max) {
            Some(format!("the group wants it {} times more", group.retries_max))
        } else {
            None
        };
        let what = wrong.map(|why| {
            format!("{ident} is a dead letter of {} at {at}, but {why}: {standing:?}", group.name)
        });
        model.counts.dead += u64::from(before.is_none());
        if let Some(what) = what {
            model.violation(what);
        }
    }

    /// How many messages their groups are owed still.
    pub fn owed_to_groups(&self) -> usize {
        self.model().missing_of_groups().len()
    }

    /// Compares the offsets of the groups that pop with what they hold.
    pub(super) async fn check_popped_offsets(&self, client: &Client) -> Result<()> {
        for group in self.popping() {
            let consumer = client.pull_consumer(group.name).start().await?;
            // Of each queue the first one, as it is sorted.
            let mut first: BTreeMap<(String, u32), u64> = BTreeMap::new();
            for (topic, queue, offset) in self.held(group) {
                first.entry((topic, queue)).or_insert(offset);
            }
            for ((topic, id), offset) in first {
                let queues = consumer.queues(&topic).await?;
                let Some(queue) = queues.into_iter().find(|queue| queue.id.get() == id) else { continue };
                let found = consumer.committed(&queue).await?.map_or(0, QueueOffset::get);
                // Nobody has said anything about it meanwhile.
                if found > offset && self.held(group).contains(&(topic, id, offset)) {
                    let name = group.name;
                    self.violation(format!(
                        "{name} stands at {found} in {queue}, but {offset} is popped and not done"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A queue in which a group that pops is not at the end yet, if there is one.
    pub(super) async fn behind(&self, client: &Client) -> Result<Option<String>> {
        for group in self.popping() {
            let consumer = client.pull_consumer(group.name).start().await?;
            let retry = format!("%RETRY%{}_{}", group.name, group.topic);
            let mut topics = vec![group.topic.to_owned()];
            topics.extend(self.has_been_given(group, &retry).then_some(retry));
            for topic in topics {
                for queue in consumer.queues(&topic).await? {
                    let end = consumer.max_offset(&queue).await?.get();
                    let found = consumer.committed(&queue).await?.map_or(0, QueueOffset::get);
                    if found != end {
                        return Ok(Some(format!(
                            "{} stands at {found} in {queue}, which ends at {end}",
                            group.name
                        )));
                    }
                }
            }
        }
        Ok(None)
    }

    fn popping(&self) -> Vec<&'static Group> {
        let model = self.model();
        model.groups.values().map(|standings| standings.group).filter(|group| group.pops()).collect()
    }

    fn has_been_given(&self, group: &Group, topic: &str) -> bool {
        let mut model = self.model();
        let mut given = model.standings(group).messages.values().flat_map(|standing| &standing.given);
        given.any(|given| given.topic == topic)
    }

    /// What is certainly popped and not done: topic, queue and offset, sorted.
    fn held(&self, group: &Group) -> BTreeSet<(String, u32, u64)> {
        let now = now_ms();
        let mut model = self.model();
        let held = model.standings(group).messages.values().filter_map(|standing| standing.held(now));
        held.map(|given| (given.topic.clone(), given.queue, given.offset)).collect()
    }
}

impl Given {
    fn of(popped: &Popped, attempt: Option<Arc<str>>, is_honest: bool) -> Self {
        let handle = &popped.handle;
        let (popped_at, invisible) =
            (handle.popped_at.get(), i64::try_from(handle.invisible_ms).unwrap_or(i64::MAX));
        Self {
            topic: popped.topic.clone(),
            queue: handle.queue.get(),
            offset: handle.offset.get(),
            popped_at,
            ends: is_honest.then_some(popped_at.saturating_add(invisible)),
            is_honest,
            attempt,
        }
    }

    /// Whether two members had it at once.
    fn meets(&self, other: &Self) -> bool {
        let (first, second) = if self.popped_at <= other.popped_at { (self, other) } else { (other, self) };
        let is_repeated = first.attempt.is_some() && first.attempt == second.attempt;
        let over = first.ends.is_some_and(|ends| second.is_honest && second.popped_at + CORRECTION_MS < ends);
        over && !is_repeated
    }
}

impl Model {
    fn standings(&mut self, group: &Group) -> &mut Standings {
        self.groups.get_mut(group.name).expect("a group that consumes was announced")
    }

    fn standing(&mut self, group: &Group, ident: Ident) -> &mut Standing {
        self.standings(group).messages.entry(ident).or_default()
    }

    /// Which message this is; none when it is not one that the group wants.
    fn identify(&mut self, group: &Group, at: &str, body: &[u8], seed: u64) -> Option<Ident> {
        self.counts.seen += 1;
        let ident = Ident::of(body).filter(|ident| self.messages.contains_key(ident));
        let Some(ident) = ident else {
            self.violation(format!("{}: {at} holds a message that nobody sent", group.name));
            return None;
        };
        let entry = self.messages.get(&ident).expect("it was looked up above");
        let wrong = if ident.body(seed) != body {
            "another body than it was sent with"
        } else if entry.topic != group.topic {
            "another topic"
        } else if !(group.wants)(ident) {
            "no place in what the group wants"
        } else {
            return Some(ident);
        };
        self.violation(format!("{}: {at}: {ident} has {wrong}", group.name));
        None
    }

    fn note_pop(&mut self, group: &Group, pop: &Pop, popped: &Popped) {
        let is_honest = !self.clock_jumps;
        let new = Given::of(popped, pop.attempt.clone(), is_honest);
        let standing = self.standing(group, popped.ident);
        let is_after = standing.done.is_some_and(|done| {
            pop.asked_at > done.at || is_honest && done.popped_at.is_some_and(|acked| new.popped_at > acked)
        });
        let wrong = if is_after {
            Some("its ack was answered")
        } else if standing.given.iter().any(|given| given.meets(&new)) {
            Some("it is somebody else's")
        } else {
            None
        };
        let what = wrong.map(|why| {
            format!(
                "{}: {} is popped with {}, but {why}: {standing:?}",
                group.name, popped.ident, popped.handle
            )
        });
        let before = standing.given.len();
        standing.given.push(new);
        self.counts.popped_again += u64::from(before > 0);
        if let Some(what) = what {
            self.violation(what);
        }
    }

    fn note_done(&mut self, group: &Group, popped: &Popped) {
        let standing = self.standing(group, popped.ident);
        standing.asked = standing.asked.saturating_sub(1);
        let acked = standing.given.iter().find(|given| given.is(popped));
        let popped_at = acked.filter(|given| given.is_honest).map(|given| given.popped_at);
        let later =
            |given: &&Given| given.is_honest && popped_at.is_some_and(|acked| given.popped_at > acked);
        let what = standing.given.iter().find(later).map(|later| {
            format!(
                "{}: the ack of {} with {} succeeds, but it was given again: {later:?}",
                group.name, popped.ident, popped.handle
            )
        });
        // Of several acks the first promises the most.
        standing.done.get_or_insert(Done { at: Instant::now(), popped_at });
        if let Some(what) = what {
            self.violation(what);
        }
    }

    /// Messages popped in order come when those before them are done.
    fn check_turn(&mut self, group: &Group, popped: &[Popped]) {
        let mut offsets: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for popped in popped.iter().filter(|popped| popped.topic == group.topic) {
            offsets.entry(popped.handle.queue.get()).or_default().push(popped.handle.offset.get());
        }
        for (queue, offsets) in offsets {
            if !offsets.is_sorted_by(|left, right| left < right) {
                self.violation(format!("{} pops {offsets:?} of queue {queue} in order", group.name));
            }
            let Some(first) = offsets.first().copied() else { continue };
            let is_ours = |at: &&MessageQueue| at.topic.as_str() == group.topic && at.id.get() == queue;
            let Some(queue) = self.queues.keys().find(is_ours).cloned() else { continue };
            let standings = self.groups.get(group.name).expect("a group that consumes was announced");
            let floor = standings.floors.get(&queue).copied().unwrap_or_default();
            let is_open = |ident: &Ident| {
                (group.wants)(*ident) && !standings.messages.get(ident).is_some_and(Standing::is_met)
            };
            let places = self.queues.get(&queue).map(|places| places.range(floor..first.max(floor)));
            let open = places.and_then(|mut places| places.find(|(_, ident)| is_open(ident)));
            let open = open.map(|(offset, ident)| (*offset, *ident));
            match open {
                Some((offset, ident)) => {
                    let what = format!(
                        "{} pops {first} of {queue}, but {ident} at {offset} is not done: {:?}",
                        group.name,
                        standings.messages.get(&ident)
                    );
                    self.violation(what);
                }
                None => {
                    self.standings(group).floors.insert(queue, first.max(floor));
                }
            }
        }
    }

    /// Messages popped in the order of their keys come when those of their key before them are done, or with them.
    fn check_keys(&mut self, group: &Group, popped: &[Popped], seed: u64) {
        let mut together: BTreeSet<Ident> = BTreeSet::new();
        for popped in popped.iter().filter(|popped| popped.topic == group.topic) {
            let (id, offset) = (popped.handle.queue.get(), popped.handle.offset.get());
            let is_ours = |at: &&MessageQueue| at.topic.as_str() == group.topic && at.id.get() == id;
            let Some(queue) = self.queues.keys().find(is_ours).cloned() else { continue };
            let key = popped.ident.sharding_key(seed);
            let standings = self.groups.get(group.name).expect("a group that consumes was announced");
            let at = (queue, key);
            let floor = standings.key_floors.get(&at).copied().unwrap_or_default();
            let is_met = |ident: &Ident| standings.messages.get(ident).is_some_and(Standing::is_met);
            let places = self.queues.get(&at.0).map(|places| places.range(floor..offset.max(floor)));
            let of_key = places.into_iter().flatten().filter(|(_, ident)| ident.sharding_key(seed) == key);
            let open: Vec<_> = of_key.filter(|(_, ident)| !is_met(ident)).collect();
            match open.iter().find(|(_, ident)| !together.contains(ident)) {
                Some((place, ident)) => {
                    let what = format!(
                        "{} pops {} of key {key} at {offset} of {}, but {ident} at {place} is not done: {:?}",
                        group.name,
                        popped.ident,
                        at.0,
                        standings.messages.get(ident)
                    );
                    self.violation(what);
                }
                None if open.is_empty() => {
                    self.standings(group).key_floors.insert(at, offset.max(floor));
                }
                None => {}
            }
            together.insert(popped.ident);
        }
    }

    /// What groups must get, or see among their dead letters, and have not.
    fn missing_of_groups(&self) -> Vec<(&'static str, Ident)> {
        let mut missing = Vec::new();
        for standings in self.groups.values() {
            let group = standings.group;
            let is_wanted = |ident: Ident, entry: &Entry| {
                entry.topic == group.topic && entry.is_owed() && (group.wants)(ident)
            };
            for (ident, _) in self.messages.iter().filter(|(ident, entry)| is_wanted(**ident, entry)) {
                let standing = standings.messages.get(ident);
                let is_met = if (group.refuses)(*ident) {
                    standing.is_some_and(|standing| standing.dead.is_some())
                } else {
                    standing.is_some_and(Standing::is_met)
                };
                if !is_met {
                    missing.push((group.name, *ident));
                }
            }
        }
        missing
    }

    /// Every group has got what it is owed.
    pub(super) fn check_groups(&mut self) {
        let mut missing = self.missing_of_groups();
        missing.sort_unstable();
        for (name, ident) in missing {
            let standing = self.groups.get(name).and_then(|standings| standings.messages.get(&ident));
            let what = format!("{name} lacks {ident}: {standing:?}");
            self.violation(what);
        }
    }
}

#[cfg(test)]
mod tests;
