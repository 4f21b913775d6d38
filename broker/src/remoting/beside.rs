//! Requests that run beside their connection, and where they leave their answers.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::Command;

use super::connection::write_reply;
use super::context::Reply;
use crate::deliver::polls::Mailbox;

/// What other tasks hand to a connection.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Encoded answers of requests that ran beside the connection.
    answers: Mutex<Vec<u8>>,
    /// Requests that run beside.
    beside: AtomicUsize,
    /// Where parked pulls are woken; its bell also rings for answers.
    pub(super) mailbox: Arc<Mailbox>,
}

impl Inbox {
    /// How many requests run beside the connection.
    pub(super) fn beside(&self) -> usize {
        self.beside.load(Ordering::Relaxed)
    }

    /// Moves the answers that are there to the end of `out`.
    pub(super) fn take_answers(&self, out: &mut Vec<u8>) {
        out.append(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A request that runs beside its connection. However it ends it is answered, once, if its client waits for that.
#[derive(Debug)]
pub(super) struct Beside {
    inbox: Arc<Inbox>,
    serialize: Serialize,
    opaque: i32,
    /// Whether nobody waits for an answer, any more or at all.
    is_answered: bool,
}

impl Beside {
    /// The request `command` of the connection that has this inbox.
    pub(super) fn new(inbox: &Arc<Inbox>, serialize: Serialize, command: &Command<'_>) -> Self {
        let mut beside = Self::awaited(inbox, serialize, command.opaque);
        beside.is_answered = command.is_oneway();
        beside
    }

    /// The request with this number, whose client waits for the answer.
    pub(super) fn awaited(inbox: &Arc<Inbox>, serialize: Serialize, opaque: i32) -> Self {
        inbox.beside.fetch_add(1, Ordering::Relaxed);
        Self { inbox: Arc::clone(inbox), serialize, opaque, is_answered: false }
    }

    /// Runs to the end of `work`, and answers with what it gives.
    pub(super) async fn run(mut self, work: impl Future<Output = Reply>) {
        let reply = work.await;
        self.answer(&reply);
    }

    fn answer(&mut self, reply: &Reply) {
        if !std::mem::replace(&mut self.is_answered, true) {
            let mut answers = self.inbox.answers.lock().unwrap_or_else(PoisonError::into_inner);
            write_reply(&mut answers, self.serialize, self.opaque, reply);
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Only a panic leaves it without an answer; when the whole runtime ends, nobody reads this one either.
        self.answer(&Reply::refused(
            ResponseCode::SystemError,
            "the broker failed over this request, which may have been carried out or not: look at what it changes before \
             asking again, and report what the broker's log says",
        ));
        self.inbox.beside.fetch_sub(1, Ordering::Relaxed);
        self.inbox.mailbox.ring();
    }
}
