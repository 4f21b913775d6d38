//! What a client is asked and is to answer: the calls under way on one connection.
//!
//! A service [`call`](super::Peer::call)s a peer. The call waits here, with its body, until the edge takes it to write
//! it, and then without until the answer comes, the time is over, or the connection ends. Who gives up takes the call
//! along: one that was not written yet is never sent.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::header::{ExtFields, ExtWrite, OwnedCommand};
use tokio::sync::oneshot;

/// How long a client may take to answer, as with Apache's broker.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Calls that may be under way on one connection.
const CALLS_MAX: usize = 1024;
/// Bytes that they may have together; a larger one goes alone.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// A request to a client that is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub code: RequestCode,
    /// Header fields.
    pub ext: ExtFields<'static>,
    /// The body.
    pub body: Vec<u8>,
}

impl Call {
    /// A request with the fields of `header`.
    pub fn new(code: RequestCode, header: &impl ExtWrite, body: Vec<u8>) -> Self {
        Self { ext: OwnedCommand::request(code, header).ext, code, body }
    }

    /// Bytes of its fields and body.
    fn bytes(&self) -> usize {
        self.ext.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() + self.body.len()
    }
}

/// What a client answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallAnswer {
    /// Response code; 0 is success.
    pub code: i32,
    /// Text for people.
    pub remark: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a client gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Its connection ended.
    #[error("its connection ended: see whether the client runs, and ask again")]
    Gone,
    /// It takes too long.
    #[error("it did not answer within {0:?}: see whether the client is stuck, and ask again")]
    Silent(Duration),
    /// It has not answered others yet.
    #[error(
        "{calls} requests with {bytes} bytes wait for its answer already: ask again when it has caught up"
    )]
    Busy {
        /// Calls under way.
        calls: usize,
        /// Their bytes.
        bytes: usize,
    },
}

/// The calls under way on one connection.
#[derive(Default)]
pub(super) struct Calls {
    /// Guards the table; held for map operations only.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    closed: bool,
    next: i32,
    bytes: usize,
    waiting: HashMap<i32, Waiting>,
}

struct Waiting {
    /// Until it is written.
    call: Option<Call>,
    /// Bytes that it counts for.
    bytes: usize,
    answer: oneshot::Sender<CallAnswer>,
}

/// A call that waits for its answer. Dropping it gives up.
pub(super) struct Begun {
    calls: Arc<Calls>,
    /// The number that pairs the answer with it.
    pub opaque: i32,
    /// The answer; an error when the connection ended.
    pub answer: oneshot::Receiver<CallAnswer>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.calls.lock().remove(self.opaque);
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.lock();
        write!(f, "Calls({} waiting, {} bytes)", table.waiting.len(), table.bytes)
    }
}

impl Calls {
    /// Puts a call down to be written.
    pub(super) fn begin(self: &Arc<Self>, call: Call) -> Result<Begun, CallError> {
        let (sender, answer) = oneshot::channel();
        let mut table = self.lock();
        if table.closed {
            return Err(CallError::Gone);
        }
        let (calls, bytes) = (table.waiting.len(), call.bytes());
        let fits = table.bytes.saturating_add(bytes) <= BYTES_MAX || calls == 0;
        if calls >= CALLS_MAX || !fits {
            return Err(CallError::Busy { calls, bytes: table.bytes });
        }
        let opaque = table.free_number();
        table.bytes += bytes;
        table.waiting.insert(opaque, Waiting { call: Some(call), bytes, answer: sender });
        Ok(Begun { calls: Arc::clone(self), opaque, answer })
    }

    /// Why the connection took no notice of a call.
    pub(super) fn unheard(&self) -> CallError {
        let table = self.lock();
        if table.closed {
            return CallError::Gone;
        }
        CallError::Busy { calls: table.waiting.len(), bytes: table.bytes }
    }

    /// The call to write now; `None` when nobody waits for its answer any more.
    pub(super) fn take(&self, opaque: i32) -> Option<Call> {
        self.lock().waiting.get_mut(&opaque)?.call.take()
    }

    /// Hands an answer to who waits for it; `false` when nobody does. An answer to what was not asked yet is none.
    pub(super) fn answer(&self, opaque: i32, answer: impl FnOnce() -> CallAnswer) -> bool {
        let waiting = {
            let mut table = self.lock();
            if table.waiting.get(&opaque).is_none_or(|waiting| waiting.call.is_some()) {
                return false;
            }
            table.remove(opaque)
        };
        waiting.is_some_and(|waiting| waiting.answer.send(answer()).is_ok())
    }

    /// The connection ended: nobody answers any more.
    pub(super) fn close(&self) {
        let left = {
            let mut table = self.lock();
            table.closed = true;
            table.bytes = 0;
            std::mem::take(&mut table.waiting)
        };
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// A number that no call under way has.
    fn free_number(&mut self) -> i32 {
        loop {
            self.next = self.next.wrapping_add(1);
            if !self.waiting.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    fn remove(&mut self, opaque: i32) -> Option<Waiting> {
        let waiting = self.waiting.remove(&opaque)?;
        self.bytes -= waiting.bytes;
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(bytes: usize) -> Call {
        Call::new(RequestCode::GetConsumerRunningInfo, &(), vec![0; bytes])
    }

    fn said(text: &str) -> CallAnswer {
        CallAnswer { body: text.into(), ..CallAnswer::default() }
    }

    #[test]
    fn an_answer_finds_its_call_once_and_only_after_it_was_sent() {
        let calls = Arc::new(Calls::default());
        let (mut one, mut two) = (calls.begin(call(1)).unwrap(), calls.begin(call(2)).unwrap());
        assert!(!calls.answer(one.opaque, || said("early")));
        assert_eq!(calls.take(one.opaque), Some(call(1)));
        assert_eq!(calls.take(one.opaque), None);
        assert_eq!(calls.take(two.opaque), Some(call(2)));
        assert!(calls.answer(two.opaque, || said("two")));
        assert!(calls.answer(one.opaque, || said("one")));
        assert!(!calls.answer(one.opaque, || said("again")));
        assert_eq!(one.answer.try_recv(), Ok(said("one")));
        assert_eq!(two.answer.try_recv(), Ok(said("two")));
        assert_eq!(format!("{calls:?}"), "Calls(0 waiting, 0 bytes)");
    }

    #[test]
    fn who_gives_up_takes_the_call_along() {
        let calls = Arc::new(Calls::default());
        let opaque = calls.begin(call(9)).unwrap().opaque;
        assert_eq!(calls.take(opaque), None);
        assert!(!calls.answer(opaque, || said("late")));
        assert_eq!(format!("{calls:?}"), "Calls(0 waiting, 0 bytes)");
    }

    #[test]
    fn the_end_of_the_connection_is_told() {
        let calls = Arc::new(Calls::default());
        let mut begun = calls.begin(call(1)).unwrap();
        calls.close();
        assert!(begun.answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        drop(begun);
        assert_eq!(calls.begin(call(1)).err(), Some(CallError::Gone));
    }

    #[test]
    fn calls_and_their_bytes_are_bounded() {
        let calls = Arc::new(Calls::default());
        let large = calls.begin(call(BYTES_MAX + 1)).unwrap();
        let refused = CallError::Busy { calls: 1, bytes: BYTES_MAX + 1 };
        assert_eq!(calls.begin(call(0)).err(), Some(refused));
        drop(large);
        let all: Vec<_> = (0..CALLS_MAX).map(|_| calls.begin(call(1)).unwrap()).collect();
        let refused = CallError::Busy { calls: CALLS_MAX, bytes: CALLS_MAX };
        assert_eq!(calls.begin(call(1)).err(), Some(refused));
        drop(all);
        assert!(calls.begin(call(1)).is_ok());
    }
}
