//! The table against a plain model, with a restart from a snapshot at any place.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What lies in the log. Halves are named by how many came before them.
#[derive(Clone, Copy, Debug)]
enum Event {
    Half { key: u8, body: u32 },
    Copy { of: usize },
    Op { of: usize },
    ParkedHere { of: usize },
    ParkedByApache { of: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0_u8..4, 0_u32..2).prop_map(|(key, body)| Event::Half { key, body }),
        1 => (0_usize..8).prop_map(|of| Event::Copy { of }),
        1 => (0_usize..8).prop_map(|of| Event::Op { of }),
        1 => (0_usize..8).prop_map(|of| Event::ParkedHere { of }),
        1 => (0_usize..8).prop_map(|of| Event::ParkedByApache { of }),
    ];
    prop::collection::vec(event, 0..40)
}

/// Records are this long here; the first starts behind position 0.
const SIZE: u64 = 100;

fn half((key, body): (u8, u32), at: PhyOffset, number: u64) -> OpenHalf {
    OpenHalf {
        at,
        queue_offset: QueueOffset::new(number),
        size: 100,
        first: at,
        key: Arc::from(format!("key {key}")),
        group: GroupName::internal("producers"),
        topic: TopicName::internal("orders"),
        body_crc: body,
        born: Millis::ZERO,
        stored: Millis::ZERO,
        immunity_ms: None,
        checks: 0,
        checked: Millis::ZERO,
    }
}

fn id(half: &OpenHalf) -> (Arc<str>, u32) {
    (Arc::clone(&half.key), half.body_crc)
}

/// The log, and what must be open at its end.
#[derive(Default)]
struct Model {
    halves: Vec<OpenHalf>,
    ops: u64,
    /// Of each open transaction, known by key and body: its first and its newest half.
    open: BTreeMap<(Arc<str>, u32), (PhyOffset, PhyOffset)>,
}

impl Model {
    /// Applies the event to the model and to the table.
    fn apply(&mut self, number: usize, event: Event, table: &mut Table) {
        let at = PhyOffset::new((number as u64 + 1) * SIZE);
        let named = |of: usize| self.halves.get(of % self.halves.len().max(1)).cloned();
        match event {
            Event::Half { key, body } => {
                let half = half((key, body), at, self.halves.len() as u64);
                let first = self.open.get(&id(&half)).map_or(at, |open| open.0);
                self.open.insert(id(&half), (first, at));
                self.halves.push(half.clone());
                table.open(half);
            }
            Event::Copy { of } | Event::ParkedHere { of } => {
                let Some(half) = named(of) else { return };
                if self.open.get(&id(&half)).is_some_and(|open| (open.0..=open.1).contains(&half.at)) {
                    self.open.remove(&id(&half));
                }
                if matches!(event, Event::Copy { .. }) {
                    table.close_by_copy(at, half.at, &half.key, half.body_crc);
                } else {
                    table.close_by_parked(at, half.at, &half.key, half.body_crc);
                }
            }
            Event::ParkedByApache { of } => {
                let Some(half) = named(of) else { return };
                self.open.remove(&id(&half));
                table.close_by_parked(at, PhyOffset::ZERO, &half.key, half.body_crc);
            }
            Event::Op { of } => {
                let Some(half) = named(of) else { return };
                if self.open.get(&id(&half)).is_some_and(|open| open.1 == half.at) {
                    self.open.remove(&id(&half));
                }
                table.close_by_op(QueueOffset::new(self.ops), std::iter::once(half.queue_offset));
                self.ops += 1;
            }
        }
    }

    fn open(&self) -> Vec<(String, PhyOffset)> {
        let mut open: Vec<_> = self.open.iter().map(|(id, open)| (id.0.to_string(), open.1)).collect();
        open.sort_by_key(|open| open.1);
        open
    }
}

fn open_in(table: &Table) -> Vec<(String, PhyOffset)> {
    table.list(None, 1000).into_iter().map(|listed| (listed.half.key.to_string(), listed.half.at)).collect()
}

proptest! {
    #[test]
    fn the_table_follows_the_log(events in events()) {
        let mut table = Table::new(Rules::default());
        let mut model = Model::default();
        for (number, event) in events.iter().enumerate() {
            model.apply(number, *event, &mut table);
            prop_assert_eq!(open_in(&table), model.open());
            prop_assert_eq!(table.len(), model.open.len());
        }
    }

    #[test]
    fn a_restart_from_a_snapshot_changes_nothing(events in events(), cut in 0_usize..40) {
        restart(&events, cut.min(events.len()))?;
    }
}

#[test]
fn a_half_renewed_and_parked_after_the_snapshot_stays_closed() {
    let events =
        [Event::Half { key: 2, body: 0 }, Event::Half { key: 2, body: 0 }, Event::ParkedByApache { of: 1 }];
    restart(&events, 1).expect("nothing is open");
}

/// Goes through the events with a restart from a snapshot before the one at `cut`.
fn restart(events: &[Event], cut: usize) -> Result<(), TestCaseError> {
    let mut before = Table::new(Rules::default());
    let mut model = Model::default();
    for (number, event) in events.iter().take(cut).enumerate() {
        model.apply(number, *event, &mut before);
    }
    let mut after = Table::with_snapshot(Rules::default(), &before.remains());
    for (number, event) in events.iter().enumerate().skip(cut) {
        let (halves, ops) = (model.halves.clone(), model.ops);
        model.apply(number, *event, &mut after);
        // The same record for the table that was never closed.
        let mut again = Model { halves, ops, open: BTreeMap::new() };
        again.apply(number, *event, &mut before);
    }
    let unread = after.unread();
    let read = unread.iter().filter_map(|known| model.halves.iter().find(|half| half.at == *known));
    after.restore(read.cloned().collect(), QueueOffset::ZERO);
    prop_assert_eq!(open_in(&after), model.open());
    prop_assert_eq!(after.needs_op(), before.needs_op());
    let (there, here) = (before.progress(), after.progress());
    prop_assert_eq!(here.half, there.half);
    prop_assert!(here.op <= there.op, "{here:?} {there:?}");
    Ok(())
}

#[test]
fn deadlines_of_ended_halves_are_forgotten() {
    let mut table = Table::new(Rules::default());
    for number in 0..5_000 {
        let mut half = half((0, 0), PhyOffset::new((number + 1) * SIZE), number);
        half.key = Arc::from(format!("key {number}"));
        table.open(half);
        table.close_by_op(QueueOffset::new(number), std::iter::once(QueueOffset::new(number)));
    }
    assert!(table.is_empty());
    assert!(table.due.len() <= 1025 && table.slots.len() <= 1025 && table.ops.len() <= OPS_MAX);
    assert_eq!(table.next_due(), None);
}
