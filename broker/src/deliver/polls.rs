//! Pulls and pops that wait for a message.
//!
//! A connection parks a pull here under its queue and goes on; dispatch wakes it when a record arrives
//! that its filter wants. Being woken means "look again", nothing more: the pull is run again by its
//! connection. There is no polling, and no timer here: each connection keeps the deadlines of its own.
//!
//! Pops of one group *share* what comes: of those that want a message one is woken, the one that waits longest, and no
//! other while it has room for more. Whoever is woken and leaves something, or cannot go on, passes it on
//! ([`Polls::pass_on`]). A connection that writes may stand still, so whom it has woken counts for nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::record::RecordView;
use tokio::sync::Notify;

use super::filter::{Filter, Verdict};
use crate::store::{ApplyError, Dispatched, Projection, Queue, Save};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Stands for all queues of a topic: whoever waits there is woken by a message of any of them.
pub const ANY_QUEUE: QueueId = QueueId::new(u32::MAX);

/// Where a connection is told which of its parked pulls to look at again.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// Tokens of the pulls that were woken.
    ready: Mutex<Vec<u32>>,
    notify: Notify,
    /// Whether the connection may not look for a while.
    busy: AtomicBool,
}

impl Mailbox {
    /// Tells the connection to look at a parked pull again.
    pub fn wake(&self, token: u32) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        self.notify.notify_one();
    }

    /// Says that the connection may not look for a while. Tokens that are there then must be passed on.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::SeqCst);
    }

    /// Tokens of the pulls that were woken and not looked at.
    pub fn waiting(&self) -> Vec<u32> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts back tokens that were taken, to be looked at later.
    pub fn put_back(&self, tokens: &[u32]) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(tokens);
        self.notify.notify_one();
    }

    /// Rings the bell without waking a pull.
    pub fn ring(&self) {
        self.notify.notify_one();
    }

    /// Waits until something was woken.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// Tokens of the pulls that were woken since the last call.
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Steps that the filters of waiting pulls may take in one batch of records: terms times bytes of properties. After
/// that whoever would have to look is woken, and looks on the lane of its own connection.
const BATCH_STEPS_MAX: usize = 1 << 20;

/// For whom somebody waits.
#[derive(Clone, Debug)]
pub enum Party {
    /// For itself: each is woken.
    Alone,
    /// For itself, and for what its group could pop.
    Asker(GroupName),
    /// For a group whose members share the messages.
    Group(Share),
}

/// What a pop of a group takes when it is woken.
#[derive(Clone, Debug)]
pub struct Share {
    /// The group.
    pub group: GroupName,
    /// Messages, at the most.
    pub messages: usize,
    /// Whether others of the group want other messages: then what one leaves may be for any of them.
    pub mixed: bool,
}

#[derive(Debug)]
struct Waiter {
    mailbox: Arc<Mailbox>,
    token: u32,
    filter: Filter,
    /// The group whose pops it asks about.
    asks_for: Option<GroupName>,
}

impl Waiter {
    /// Wakes it. Returns whether it looks at once, as far as can be told.
    fn wake(&self) -> bool {
        self.mailbox.wake(self.token);
        // After the token is there: the connection says that it is busy first, and looks for tokens then.
        !self.mailbox.busy.load(Ordering::SeqCst)
    }
}

/// Those that share, of one group at one queue, in the order in which they came.
#[derive(Debug, Default)]
struct Sharers {
    waiters: BTreeMap<u64, (Waiter, Share)>,
    /// How many of them are mixed.
    mixed: usize,
}

impl Sharers {
    fn remove(&mut self, seat: u64) -> Option<Waiter> {
        let (waiter, share) = self.waiters.remove(&seat)?;
        self.mixed -= usize::from(share.mixed);
        Some(waiter)
    }
}

/// Who waits at one queue.
#[derive(Debug, Default)]
struct Waiting {
    alone: Vec<Waiter>,
    groups: HashMap<GroupName, Sharers>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.alone.is_empty() && self.groups.is_empty()
    }
}

/// What pops that were woken for one run of records still have room for.
#[derive(Debug)]
struct Room {
    /// Where they wait.
    key: Key,
    group: GroupName,
    filter: Filter,
    messages: usize,
}

/// Whom a message wakes for its properties.
#[derive(Debug)]
struct Chosen {
    mailbox: Arc<Mailbox>,
    token: u32,
    /// Where it was chosen alone of its group.
    counts_for: Option<(Key, GroupName)>,
}

/// What left the table at once.
#[derive(Clone, Copy, Debug, Default)]
struct Gone {
    waiters: usize,
    choosy: usize,
}

impl Gone {
    fn add(&mut self, waiter: &Waiter) {
        self.waiters += 1;
        self.choosy += usize::from(waiter.filter.looks_at_properties());
    }
}

type Key = (TopicName, QueueId);

/// As many pulls wait as may.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{max} pulls wait already, which is the limit: pull again later, or raise limits.waiting-polls")]
pub struct PollsFull {
    /// The bound.
    pub max: usize,
}

/// All parked pulls.
#[derive(Debug)]
pub struct Polls {
    table: DashMap<Key, Waiting>,
    /// Numbers those that share.
    seats: AtomicU64,
    waiting: AtomicUsize,
    /// Those of them whose filter looks at properties.
    choosy: AtomicUsize,
    max: usize,
    /// Those that wait for the group before their own: messages do not wake them. These have none of their own.
    tiers: Option<Box<Self>>,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// A message.
    Message,
    /// That the group before its own is done with more messages.
    Tier,
}

/// A place among the waiting; leave it with [`Polls::leave`].
#[derive(Debug)]
pub struct Place {
    key: Key,
    token: u32,
    /// The group and the number of one that shares.
    seat: Option<(GroupName, u64)>,
    awaits: Awaits,
}

impl Polls {
    /// Room for `max` waiting pulls, and as many that wait for other groups.
    pub fn new(max: usize) -> Self {
        Self { tiers: Some(Box::new(Self::level(max))), ..Self::level(max) }
    }

    fn level(max: usize) -> Self {
        let (waiting, choosy) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { table: DashMap::new(), seats: AtomicU64::new(0), waiting, choosy, max, tiers: None }
    }

    /// Pulls that wait.
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed) + self.tiers.as_ref().map_or(0, |tiers| tiers.len())
    }

    /// Counts one in that nothing but time wakes, so that there are not too many of them; until it [leaves](Self::let_go).
    pub fn hold(&self) -> Result<(), PollsFull> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= self.max {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(PollsFull { max: self.max });
        }
        Ok(())
    }

    /// One that was [held](Self::hold) waits no more.
    pub fn let_go(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether no pull waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parks a pull. The caller must look at the queue once more afterwards: a message that came in
    /// between woke nobody.
    pub fn park(
        &self,
        queue: &Queue,
        filter: &Filter,
        mailbox: &Arc<Mailbox>,
        token: u32,
    ) -> Result<Place, PollsFull> {
        self.park_at((queue.topic().clone(), queue.id()), filter, Party::Alone, (mailbox, token))
    }

    /// The same at a queue that need not be there yet, or at [`ANY_QUEUE`].
    pub fn park_at(
        &self,
        key: (TopicName, QueueId),
        filter: &Filter,
        party: Party,
        (mailbox, token): (&Arc<Mailbox>, u32),
    ) -> Result<Place, PollsFull> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= self.max {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(PollsFull { max: self.max });
        }
        if filter.looks_at_properties() {
            self.choosy.fetch_add(1, Ordering::SeqCst);
        }
        let asks_for = if let Party::Asker(group) = &party { Some(group.clone()) } else { None };
        let waiter = Waiter { mailbox: Arc::clone(mailbox), token, filter: filter.clone(), asks_for };
        let mut waiting = self.table.entry(key.clone()).or_default();
        let seat = match party {
            Party::Alone | Party::Asker(_) => {
                waiting.alone.push(waiter);
                None
            }
            Party::Group(share) => {
                let (group, seat) = (share.group.clone(), self.seats.fetch_add(1, Ordering::Relaxed));
                let sharers = waiting.groups.entry(group.clone()).or_default();
                sharers.mixed += usize::from(share.mixed);
                sharers.waiters.insert(seat, (waiter, share));
                Some((group, seat))
            }
        };
        Ok(Place { key, token, seat, awaits: Awaits::Message })
    }

    /// The same for something that need not be a message.
    pub fn park_for(
        &self,
        awaits: Awaits,
        key: (TopicName, QueueId),
        filter: &Filter,
        party: Party,
        who: (&Arc<Mailbox>, u32),
    ) -> Result<Place, PollsFull> {
        match &self.tiers {
            Some(tiers) if awaits == Awaits::Tier => {
                Ok(Place { awaits, ..tiers.park_at(key, filter, party, who)? })
            }
            _ => self.park_at(key, filter, party, who),
        }
    }

    /// Gives a place up; returns whether it was woken before.
    pub fn leave(&self, place: &Place, mailbox: &Arc<Mailbox>) -> bool {
        if let (Some(tiers), Awaits::Tier) = (&self.tiers, place.awaits) {
            return tiers.leave(place, mailbox);
        }
        self.change(&place.key, |waiting, gone| {
            if let Some((group, seat)) = &place.seat {
                let Some(sharers) = waiting.groups.get_mut(group) else { return };
                sharers.remove(*seat).iter().for_each(|waiter| gone.add(waiter));
                if sharers.waiters.is_empty() {
                    waiting.groups.remove(group);
                }
                return;
            }
            let at = |waiter: &Waiter| waiter.token == place.token && Arc::ptr_eq(&waiter.mailbox, mailbox);
            if let Some(at) = waiting.alone.iter().position(at) {
                gone.add(&waiting.alone.remove(at));
            }
        }) == 0
    }

    /// Wakes whoever waits at a queue for messages with this tags code, whatever their properties are; of those that
    /// share as many as so many messages take. `rooms` is what those that were woken before have room for.
    fn wake(&self, key: &Key, (tags_code, count): (i64, usize), rooms: &mut Vec<Room>) {
        let mut needs: Vec<(GroupName, usize)> = Vec::new();
        for place in [key.clone(), (key.0.clone(), ANY_QUEUE)] {
            self.change(&place, |waiting, gone| {
                waiting.alone.retain(|waiter| {
                    let wanted = waiter.filter.by_entry(tags_code) == Verdict::Wanted;
                    if wanted {
                        waiter.mailbox.wake(waiter.token);
                        gone.add(waiter);
                    }
                    !wanted
                });
                for (group, sharers) in &mut waiting.groups {
                    let known = needs.iter().position(|(known, _)| known == group);
                    let at = known.unwrap_or_else(|| {
                        needs.push((group.clone(), left_for(rooms, key, group, (tags_code, count))));
                        needs.len() - 1
                    });
                    let Some((_, need)) = needs.get_mut(at) else { continue };
                    wake_some(sharers, (&place, tags_code), need, rooms, gone);
                }
                waiting.groups.retain(|_, sharers| !sharers.waiters.is_empty());
            });
        }
    }

    /// Takes out whoever waits at a queue for a message with these properties, and puts down whom to wake: of those
    /// that share the first one of each group. Without `steps` left everybody whose filter would have to look at them is
    /// woken.
    fn choose(
        &self,
        key: &Key,
        (tags_code, view): (i64, &RecordView<'_>),
        steps: &mut usize,
        woken: &mut Vec<Chosen>,
    ) {
        let properties = view.properties();
        let mut is_wanted = |waiter: &Waiter| {
            if !waiter.filter.looks_at_properties() || waiter.filter.by_entry(tags_code) != Verdict::Open {
                return false;
            }
            let cost = waiter.filter.terms().saturating_mul(properties.raw().len() + 1);
            *steps = steps.saturating_sub(cost);
            *steps == 0 || waiter.filter.by_properties(properties)
        };
        let mut choose = |waiter: &Waiter, counts_for: Option<&GroupName>| {
            let counts_for = counts_for.map(|group| (key.clone(), group.clone()));
            woken.push(Chosen { mailbox: Arc::clone(&waiter.mailbox), token: waiter.token, counts_for });
        };
        self.change(key, |waiting, gone| {
            waiting.alone.retain(|waiter| {
                let wanted = is_wanted(waiter);
                if wanted {
                    choose(waiter, None);
                    gone.add(waiter);
                }
                !wanted
            });
            for (group, sharers) in &mut waiting.groups {
                let mut chosen = Vec::new();
                for (seat, (waiter, _)) in &sharers.waiters {
                    if !is_wanted(waiter) {
                        continue;
                    }
                    chosen.push(*seat);
                    let looks = !waiter.mailbox.busy.load(Ordering::SeqCst);
                    choose(waiter, Some(group).filter(|_| looks));
                    if looks {
                        break;
                    }
                }
                let removed = chosen.into_iter().filter_map(|seat| sharers.remove(seat));
                removed.for_each(|waiter| gone.add(&waiter));
            }
            waiting.groups.retain(|_, sharers| !sharers.waiters.is_empty());
        });
    }

    /// Wakes everybody who waits at a queue: something other than a message changed.
    pub fn wake_all(&self, queue: &(TopicName, QueueId)) {
        self.wake_tiers(queue);
        for place in [queue.clone(), (queue.0.clone(), ANY_QUEUE)] {
            self.change(&place, |waiting, gone| {
                let sharers = std::mem::take(&mut waiting.groups).into_values();
                let shared = sharers.flat_map(|sharers| sharers.waiters.into_values());
                let all =
                    std::mem::take(&mut waiting.alone).into_iter().chain(shared.map(|(waiter, _)| waiter));
                for waiter in all {
                    waiter.wake();
                    gone.add(&waiter);
                }
            });
        }
    }

    /// Wakes everybody who waits at a queue for the group before their own.
    pub fn wake_tiers(&self, queue: &(TopicName, QueueId)) {
        if let Some(tiers) = self.tiers.as_ref().filter(|tiers| !tiers.is_empty()) {
            tiers.wake_all(queue);
        }
    }

    /// Wakes everybody who waits for the group before their own: who that is has changed.
    pub fn wake_all_tiers(&self) {
        let Some(tiers) = &self.tiers else { return };
        let places: Vec<Key> = tiers.table.iter().map(|waiting| waiting.key().clone()).collect();
        for place in &places {
            tiers.wake_all(place);
        }
    }

    /// Wakes the next one of a group that waits at a place, and all of those beside that want other messages than others
    /// do: one of them was woken and has left something, or there is something other than a new message.
    pub fn pass_on(&self, place: &(TopicName, QueueId), group: &GroupName) {
        self.wake_of(place, group, |share| !share.mixed);
    }

    /// Wakes all of a group that wait at a place.
    pub fn wake_group(&self, place: &(TopicName, QueueId), group: &GroupName) {
        self.wake_of(place, group, |_| false);
    }

    /// Wakes all of a group up to the first one that is `enough`, and the mixed ones behind it.
    fn wake_of(&self, place: &Key, group: &GroupName, is_enough: impl Fn(&Share) -> bool + Copy) {
        if self.is_empty() {
            return;
        }
        if let Some(tiers) = &self.tiers {
            tiers.wake_of(place, group, is_enough);
        }
        self.change(place, |waiting, gone| {
            waiting.alone.retain(|waiter| {
                let asks = waiter.asks_for.as_ref() == Some(group);
                if asks {
                    waiter.wake();
                    gone.add(waiter);
                }
                !asks
            });
            let Some(sharers) = waiting.groups.get_mut(group) else { return };
            let (mut chosen, mut mixed, mut enough) = (Vec::new(), sharers.mixed, false);
            for (seat, (waiter, share)) in &sharers.waiters {
                if enough && mixed == 0 {
                    break;
                }
                mixed -= usize::from(share.mixed);
                if !enough || share.mixed {
                    let looks = waiter.wake();
                    enough |= looks && is_enough(share);
                    chosen.push(*seat);
                }
            }
            let removed = chosen.into_iter().filter_map(|seat| sharers.remove(seat));
            removed.for_each(|waiter| gone.add(&waiter));
            if sharers.waiters.is_empty() {
                waiting.groups.remove(group);
            }
        });
    }

    /// Pops of a group that wait at a queue, or at [`ANY_QUEUE`].
    pub fn waiting_at(&self, key: &(TopicName, QueueId), group: &GroupName) -> usize {
        let waiting = self.table.get(key);
        let tiers = self.tiers.as_ref().map_or(0, |tiers| tiers.waiting_at(key, group));
        waiting.and_then(|waiting| Some(waiting.groups.get(group)?.waiters.len())).unwrap_or(0) + tiers
    }

    /// Wakes everybody who waits at one of the first queues of a topic.
    pub fn wake_topic(&self, topic: &TopicName, queues: u32) {
        if !self.is_empty() {
            (0..queues).for_each(|id| self.wake_all(&(topic.clone(), QueueId::new(id))));
        }
    }

    /// Takes some out of those that wait at a place; returns how many.
    fn change(&self, key: &Key, take: impl FnOnce(&mut Waiting, &mut Gone)) -> usize {
        let Some(mut waiting) = self.table.get_mut(key) else { return 0 };
        let mut gone = Gone::default();
        take(&mut waiting, &mut gone);
        let is_empty = waiting.is_empty();
        drop(waiting);
        self.waiting.fetch_sub(gone.waiters, Ordering::SeqCst);
        if gone.choosy > 0 {
            self.choosy.fetch_sub(gone.choosy, Ordering::SeqCst);
        }
        if is_empty {
            self.table.remove_if(key, |_, waiting| waiting.is_empty());
        }
        gone.waiters
    }

    /// The projection that wakes them.
    pub fn projection(self: &Arc<Self>) -> Box<dyn Projection> {
        Box::new(PollsProjection {
            polls: Arc::clone(self),
            arrived: Vec::new(),
            rooms: Vec::new(),
            chosen: Vec::new(),
            steps: BATCH_STEPS_MAX,
        })
    }
}

/// How many of so many messages of a queue are left when those that were woken before have taken what they have room
/// for.
fn left_for(rooms: &mut Vec<Room>, key: &Key, group: &GroupName, (tags_code, count): (i64, usize)) -> usize {
    let mut left = count;
    for room in rooms.iter_mut().filter(|room| room.group == *group) {
        let is_there = room.key.0 == key.0 && (room.key.1 == key.1 || room.key.1 == ANY_QUEUE);
        if is_there && room.filter.by_entry(tags_code) == Verdict::Wanted {
            let taken = room.messages.min(left);
            room.messages -= taken;
            left -= taken;
        }
    }
    rooms.retain(|room| room.messages > 0);
    left
}

/// Wakes the first of those that share, until `need` messages have found somebody.
fn wake_some(
    sharers: &mut Sharers,
    (place, tags_code): (&Key, i64),
    need: &mut usize,
    rooms: &mut Vec<Room>,
    gone: &mut Gone,
) {
    let mut chosen = Vec::new();
    for (seat, (waiter, share)) in &sharers.waiters {
        if *need == 0 {
            break;
        }
        if waiter.filter.by_entry(tags_code) != Verdict::Wanted {
            continue;
        }
        chosen.push(*seat);
        if !waiter.wake() {
            continue;
        }
        let taken = share.messages.min(*need);
        *need -= taken;
        if share.messages > taken {
            let (key, group, filter) = (place.clone(), share.group.clone(), waiter.filter.clone());
            rooms.push(Room { key, group, filter, messages: share.messages - taken });
        }
    }
    let removed = chosen.into_iter().filter_map(|seat| sharers.remove(seat));
    removed.for_each(|waiter| gone.add(&waiter));
}

struct PollsProjection {
    polls: Arc<Polls>,
    /// Queue and tags code of what came since the last wake-up, and how many in a row.
    arrived: Vec<(Arc<Queue>, i64, usize)>,
    /// Used for one wake-up after the other.
    rooms: Vec<Room>,
    /// Whom properties of what came since then wake.
    chosen: Vec<Chosen>,
    /// Steps that filters may still take before the next wake-up.
    steps: usize,
}

impl Projection for PollsProjection {
    fn name(&self) -> &'static str {
        "polls"
    }

    fn position(&self) -> PhyOffset {
        PhyOffset::ZERO
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        // Whoever parks after this load looks at the queue again and finds the entry: the two loads and the two
        // stores before them have one order.
        if self.polls.waiting.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let Some(queue) = record.queue else { return Ok(()) };
        let code = record.hot.tags_code();
        // Here, where the properties are at hand. The same order of loads and stores holds for these pulls.
        if self.polls.choosy.load(Ordering::SeqCst) > 0 {
            for id in [queue.id(), ANY_QUEUE] {
                let key = (queue.topic().clone(), id);
                self.polls.choose(&key, (code, &record.view), &mut self.steps, &mut self.chosen);
            }
        }
        match self.arrived.last_mut() {
            Some((last, tags, count)) if Arc::ptr_eq(last, queue) && *tags == code => *count += 1,
            _ => self.arrived.push((Arc::clone(queue), code, 1)),
        }
        Ok(())
    }

    fn save(&mut self) -> Option<Save> {
        None
    }

    fn truncate(&mut self, _: PhyOffset) -> std::io::Result<()> {
        Ok(())
    }

    fn finish_batch(&mut self) {
        self.steps = BATCH_STEPS_MAX;
        for Chosen { mailbox, token, counts_for } in self.chosen.drain(..) {
            mailbox.wake(token);
            // As in `Waiter::wake`. Its connection found no token to pass on if it began to write since it was chosen.
            if let Some((place, group)) = counts_for
                && mailbox.busy.load(Ordering::SeqCst)
            {
                self.polls.pass_on(&place, &group);
            }
        }
        for (queue, tags_code, count) in self.arrived.drain(..) {
            let key = (queue.topic().clone(), queue.id());
            self.polls.wake(&key, (tags_code, count), &mut self.rooms);
        }
        self.rooms.clear();
    }
}
