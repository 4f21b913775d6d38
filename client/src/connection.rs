//! One TCP connection to a server, shared by everything that talks to it.
//!
//! Requests are encoded straight into one outgoing buffer; a writing task sends what has gathered there
//! in one write, a reading task pairs the answers with those who wait. Nothing is spawned, timed or
//! allocated per request but the entry in the table of waiting requests. One sweep per connection
//! ends those whose time has run out. Dropping a [`Reply`] forgets its request: a late answer is ignored.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use gantry_proto::remoting::codes::{Language, RequestCode, ResponseCode, V5_5_0};
use gantry_proto::remoting::frame::{FRAME_LIMIT, Frame, PREFIX_LEN, Serialize};
use gantry_proto::remoting::header::{Command, ExtFields, ExtWrite, Head, OwnedCommand, encode_frame};
use gantry_proto::remoting::request::Header;
use gantry_proto::remoting::request::pull::PullMessageResponse;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub(crate) use answer::{Answer, AnyAnswer, PullAnswer, SendAnswer};
use answer::{pull_answer, send_answer};
use spin::Spin;

use crate::error::{Error, ErrorKind, Result};

/// Bytes waiting to be written at which callers start to wait.
const OUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Requests in flight at which callers start to wait.
const IN_FLIGHT_MAX: usize = 65_536;
/// How often requests are looked through for those whose time has run out.
const SWEEP: Duration = Duration::from_millis(100);
/// A connection on which requests time out and nothing arrives for so long is given up, also when nobody waits for the
/// answers any more.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Buffers that grew beyond this are given back.
const BUFFER_BYTES: usize = 256 * 1024;

const KIND_BITS: u32 = 2;

/// Request numbers are handed out in order: their own value spreads them well enough.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }
    fn write_i32(&mut self, number: i32) {
        // A multiplication, because the table takes its tags from the upper bits.
        self.0 = u64::from(number.cast_unsigned()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// A request of ours and what is known of its answer.
enum Waiting {
    Asked { deadline: Instant, waker: Option<Waker> },
    Answered(AnyAnswer),
    Unreadable(Error),
    TimedOut,
}

struct State {
    out: Vec<u8>,
    waiting: HashMap<i32, Waiting, BuildHasherDefault<NumberHasher>>,
    next: u32,
    /// The first request since something arrived that its asker dropped: when, and when its time runs out.
    dropped: Option<(Instant, Instant)>,
    /// Why the connection ended.
    closed: Option<Arc<str>>,
}

struct Shared {
    address: Arc<str>,
    serialize: Serialize,
    /// Guards the outgoing buffer and the waiting requests; held for an encode, a swap, a batch of answers.
    state: Mutex<State>,
    /// There is something to write.
    wake: Notify,
    /// There is room again.
    room: Notify,
    crowded: AtomicBool,
    closed: AtomicBool,
    /// How often answers came, or something to write.
    events: AtomicU32,
    stop: CancellationToken,
}

/// A request that the server sent to us.
#[derive(Debug)]
pub(crate) struct FromServer {
    pub command: OwnedCommand,
    pub connection: Connection,
}

/// A connection; clones are the same one. It ends when it breaks or nobody holds it any more.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Shared>);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connection").field(&self.0.address).finish()
    }
}

impl Connection {
    /// Makes a connection of a stream, with its two tasks. `inbox` gets what the server asks. The second
    /// value is to be run: it ends with the connection.
    pub(crate) fn over<R, W>(
        address: Arc<str>,
        (read, write): (R, W),
        serialize: Serialize,
        busy_wait: Duration,
        inbox: mpsc::Sender<FromServer>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<R, W>)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Self(Arc::new(Shared {
            address,
            serialize,
            state: Mutex::new(State {
                out: Vec::new(),
                waiting: HashMap::default(),
                // The start differs, so that numbers of two connections rarely meet in a trace.
                next: fastrand::u32(..1 << 20),
                dropped: None,
                closed: None,
            }),
            wake: Notify::new(),
            room: Notify::new(),
            crowded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            events: AtomicU32::new(0),
            stop,
        }));
        let ours = connection.clone();
        let run = async move {
            let shared = &ours.0;
            // Both halves must make progress on their own: a server that does not read until we do would stall us.
            let writer = tokio::spawn(write_loop(write, Arc::clone(shared), busy_wait));
            let reason = tokio::select! {
                () = shared.stop.cancelled() => "the client closed it".to_owned(),
                reason = read_loop(read, &ours, &inbox) => reason,
            };
            shared.close(&reason);
            // What was asked before a shutdown is still written.
            let _ = writer.await; // a panic of it is in the log
        };
        (connection, run)
    }

    pub(crate) fn address(&self) -> &Arc<str> {
        &self.0.address
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Asks; the answer comes through the returned future. Nothing has been written when this fails.
    pub(crate) async fn ask<A: Answer>(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
        body: &[&[u8]],
        timeout: Duration,
    ) -> Result<Reply<A>> {
        if self.0.crowded.load(Ordering::Relaxed) {
            self.wait_for_room(timeout).await?;
        }
        self.ask_now(code, header, body, timeout)
    }

    /// [`ask`](Self::ask) without waiting for room in the buffer.
    pub(crate) fn ask_now<A: Answer>(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized),
        body: &[&[u8]],
        timeout: Duration,
    ) -> Result<Reply<A>> {
        let mut state = self.0.lock();
        self.0.check_open(&state)?;
        let mut opaque;
        loop {
            state.next = state.next.wrapping_add(1) & (u32::MAX >> (KIND_BITS + 1));
            opaque = (state.next << KIND_BITS).cast_signed() | A::KIND;
            if !state.waiting.contains_key(&opaque) {
                break;
            }
        }
        self.0.put(&mut state, Head::request(code, opaque), header, body)?;
        let deadline = Instant::now() + timeout;
        state.waiting.insert(opaque, Waiting::Asked { deadline, waker: None });
        self.0.note_crowd(&state);
        Ok(Reply { shared: Arc::clone(&self.0), opaque, answer: PhantomData })
    }

    /// Sends a request that gets no answer.
    pub(crate) async fn tell(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
        body: &[&[u8]],
        timeout: Duration,
    ) -> Result<()> {
        if self.0.crowded.load(Ordering::Relaxed) {
            self.wait_for_room(timeout).await?;
        }
        self.tell_now(code, header, body)
    }

    /// [`tell`](Self::tell) without waiting for room in the buffer.
    pub(crate) fn tell_now(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized),
        body: &[&[u8]],
    ) -> Result<()> {
        let mut state = self.0.lock();
        self.0.check_open(&state)?;
        self.0.put(&mut state, Head::request(code, 0).oneway(), header, body)?;
        self.0.note_crowd(&state);
        Ok(())
    }

    /// Answers a request of the server.
    pub(crate) fn answer(
        &self,
        code: ResponseCode,
        opaque: i32,
        remark: Option<&str>,
        body: &[u8],
    ) -> Result<()> {
        let mut state = self.0.lock();
        self.0.check_open(&state)?;
        let head = Head { remark, ..Head::reply(code, opaque) };
        self.0.put(&mut state, head, &(), &[body])
    }

    /// Asks and waits; a code other than success is an error.
    pub(crate) async fn call(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
        body: &[u8],
        timeout: Duration,
    ) -> Result<OwnedCommand> {
        let answer = self.ask::<OwnedCommand>(code, header, &[body], timeout).await?.await?;
        if answer.code == ResponseCode::Success.code() {
            return Ok(answer);
        }
        Err(Error::refused(answer.code, answer.remark.as_deref()))
    }

    async fn wait_for_room(&self, timeout: Duration) -> Result<()> {
        let room = async {
            loop {
                let mut room = std::pin::pin!(self.0.room.notified());
                room.as_mut().enable();
                if !self.0.crowded.load(Ordering::Acquire) || self.is_closed() {
                    return;
                }
                room.await;
            }
        };
        tokio::time::timeout(timeout, room).await.map_err(|_| {
            let what = format!("{} takes no more requests for {timeout:?}", self.0.address);
            Error::new(ErrorKind::Timeout, what)
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves at worst a torn frame behind; the server then closes the connection.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self, state: &State) -> Result<()> {
        match &state.closed {
            None => Ok(()),
            Some(why) => Err(self.lost(why)),
        }
    }

    fn lost(&self, why: &str) -> Error {
        Error::new(ErrorKind::ConnectionLost, format!("the connection to {} ended: {why}", self.address))
    }

    fn put(
        &self,
        state: &mut State,
        head: Head<'_>,
        header: &(impl ExtWrite + ?Sized),
        body: &[&[u8]],
    ) -> Result<()> {
        let was_empty = state.out.is_empty();
        let len = body.iter().map(|part| part.len()).sum();
        let head = Head { version: V5_5_0, ..head.language(Language::Rust) };
        // The binary form has two bytes for the code; a larger one is sent as text, which every server reads.
        let form = if i16::try_from(head.code).is_ok() { self.serialize } else { Serialize::Json };
        encode_frame(&mut state.out, form, &head, header, len)?;
        for part in body {
            state.out.extend_from_slice(part);
        }
        if was_empty {
            self.events.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
        }
        Ok(())
    }

    fn note_crowd(&self, state: &State) {
        if state.out.len() >= OUT_BYTES_MAX || state.waiting.len() >= IN_FLIGHT_MAX {
            self.crowded.store(true, Ordering::Release);
        }
    }

    fn note_room(&self, state: &State) {
        if self.crowded.load(Ordering::Relaxed)
            && state.out.len() < OUT_BYTES_MAX / 2
            && state.waiting.len() < IN_FLIGHT_MAX / 2
        {
            self.crowded.store(false, Ordering::Release);
            self.room.notify_waiters();
        }
    }

    /// Gives answers to those who wait for them.
    fn complete(&self, answers: &mut Vec<(i32, Waiting)>, wakers: &mut Vec<Waker>) {
        if answers.is_empty() {
            return;
        }
        self.events.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        for (opaque, answer) in answers.drain(..) {
            // Nobody there: the asker gave up.
            if let Some(waiting) = state.waiting.get_mut(&opaque)
                && let Waiting::Asked { waker, .. } = waiting
            {
                wakers.extend(waker.take());
                *waiting = answer;
            }
        }
        drop(state);
        for waker in wakers.drain(..) {
            waker.wake();
        }
    }

    /// Ends the requests whose time has run out, and tells how many have. One whose asker did not wait for so long
    /// counts as well, unless something was `heard` since.
    fn expire(&self, now: Instant, heard: Instant) -> usize {
        let mut wakers = Vec::new();
        let mut expired = 0;
        let mut state = self.lock();
        state.dropped.take_if(|(at, _)| heard >= *at);
        expired += usize::from(state.dropped.is_some_and(|(_, deadline)| deadline <= now));
        for waiting in state.waiting.values_mut() {
            if let Waiting::Asked { deadline, waker } = waiting
                && *deadline <= now
            {
                wakers.extend(waker.take());
                *waiting = Waiting::TimedOut;
                expired += 1;
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        expired
    }

    fn close(&self, why: &str) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| why.into());
        self.closed.store(true, Ordering::Release);
        for waiting in state.waiting.values_mut() {
            if let Waiting::Asked { waker, .. } = waiting {
                wakers.extend(waker.take());
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        self.room.notify_waiters();
        self.wake.notify_one();
    }
}

/// The answer to come. Dropping it forgets the request.
pub(crate) struct Reply<A> {
    shared: Arc<Shared>,
    opaque: i32,
    answer: PhantomData<fn() -> A>,
}

impl<A: Answer> Future for Reply<A> {
    type Output = Result<A>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<A>> {
        let mut state = self.shared.lock();
        let closed = state.closed.clone();
        match state.waiting.get_mut(&self.opaque) {
            Some(Waiting::Asked { waker, .. }) if closed.is_none() => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                return Poll::Pending;
            }
            _ => {}
        }
        let waiting = state.waiting.remove(&self.opaque);
        self.shared.note_room(&state);
        drop(state);
        Poll::Ready(match waiting {
            Some(Waiting::Answered(answer)) => A::take(answer).ok_or_else(|| {
                Error::new(ErrorKind::Protocol, "the answer is not of the kind that was asked for")
            }),
            Some(Waiting::Unreadable(error)) => Err(error),
            Some(Waiting::TimedOut) => {
                Err(Error::new(ErrorKind::Timeout, format!("{} did not answer in time", self.shared.address)))
            }
            Some(Waiting::Asked { .. }) | None => {
                Err(self.shared.lost(closed.as_deref().unwrap_or("the answer was already taken")))
            }
        })
    }
}

impl<A> Drop for Reply<A> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(waiting) = state.waiting.remove(&self.opaque) {
            if let Waiting::Asked { deadline, .. } = waiting {
                state.dropped.get_or_insert_with(|| (Instant::now(), deadline));
            }
            self.shared.note_room(&state);
        }
    }
}

async fn write_loop<W: AsyncWrite + Unpin>(mut write: W, shared: Arc<Shared>, busy_wait: Duration) {
    let mut batch = Vec::new();
    let mut spin = Spin::default();
    loop {
        let (closed, waiting) = {
            let mut state = shared.lock();
            std::mem::swap(&mut batch, &mut state.out);
            shared.note_room(&state);
            (state.closed.is_some(), state.waiting.len())
        };
        if batch.is_empty() {
            if closed {
                break;
            }
            shared.wake.notified().await;
            continue;
        }
        let spins = !busy_wait.is_zero() && spin.begins(waiting);
        if let Err(error) = write.write_all(&batch).await {
            shared.close(&format!("writing failed: {error}"));
            shared.stop.cancel();
            return;
        }
        batch.clear();
        batch.shrink_to(BUFFER_BYTES);
        if spins {
            spin.ended(look_for_answer(&shared, busy_wait).await);
        }
    }
    let _ = write.shutdown().await; // the connection is over either way
}

/// Stays awake until there is an answer or something else to write, or the time is over; whether there was.
async fn look_for_answer(shared: &Shared, longest: Duration) -> bool {
    let before = shared.events.load(Ordering::Relaxed);
    let began = Instant::now();
    while began.elapsed() < longest {
        // The runtime looks for what arrives, and others have their turns; on this core the one who answers may be.
        tokio::task::yield_now().await;
        std::thread::yield_now();
        if shared.events.load(Ordering::Relaxed) != before || shared.closed.load(Ordering::Relaxed) {
            return true;
        }
    }
    false
}

/// Reads until the stream ends; tells why it did.
async fn read_loop<R: AsyncRead + Unpin>(
    mut read: R,
    connection: &Connection,
    inbox: &mpsc::Sender<FromServer>,
) -> String {
    let shared = &connection.0;
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES / 4);
    let mut answers = Vec::new();
    let mut wakers = Vec::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            biased;
            got = read.read_buf(&mut buffer) => match got {
                Ok(0) => return "the server closed it".to_owned(),
                Ok(_) => heard = Instant::now(),
                Err(error) => return format!("reading failed: {error}"),
            },
            _ = sweep.tick() => {
                let now = Instant::now();
                if shared.expire(now, heard) > 0 && now.duration_since(heard) > SILENCE_MAX {
                    return format!("nothing arrived for {SILENCE_MAX:?}");
                }
                continue;
            }
        }
        let cut = cut_frames(&mut buffer, connection, inbox, &mut answers);
        shared.complete(&mut answers, &mut wakers);
        match cut {
            Ok(missing) => buffer.reserve(missing.max(BUFFER_BYTES / 16)),
            Err(why) => return why,
        }
    }
}

/// Takes all whole frames from the front of `buffer`; tells how many bytes the next one lacks.
fn cut_frames(
    buffer: &mut BytesMut,
    connection: &Connection,
    inbox: &mpsc::Sender<FromServer>,
    answers: &mut Vec<(i32, Waiting)>,
) -> Result<usize, String> {
    let mut storage = ExtFields::with_capacity(16);
    loop {
        let Some(frame) = Frame::cut(buffer, FRAME_LIMIT).map_err(|error| error.to_string())? else {
            return Frame::missing(buffer, FRAME_LIMIT).map_err(|error| error.to_string());
        };
        let len = frame.len;
        let body_at = PREFIX_LEN + frame.header.len();
        let command = Command::decode_reusing(frame.serialize, frame.header, storage)
            .map_err(|error| format!("a header cannot be read: {error}"))?;
        if command.is_reply() && command.opaque & 3 != OwnedCommand::KIND {
            let opaque = command.opaque;
            if opaque & 3 == SendAnswer::KIND {
                answers.push((opaque, send_answer(&command)));
                storage = command.ext.recycle();
                buffer.advance(len);
            } else {
                let (code, remark) = (command.code, command.remark.clone().map(Cow::into_owned));
                let header = PullMessageResponse::decode(&command.ext);
                storage = command.ext.recycle();
                let mut body = buffer.split_to(len).freeze();
                body.advance(body_at);
                answers.push((opaque, pull_answer(code, remark, header, body)));
            }
            continue;
        }
        drop(command);
        storage = ExtFields::with_capacity(16);
        let command = OwnedCommand::decode(&frame).map_err(|error| error.to_string())?;
        buffer.advance(len);
        if command.flag & 1 != 0 {
            answers.push((command.opaque, Waiting::Answered(AnyAnswer::Whole(command))));
        } else if let Err(refused) = inbox.try_send(FromServer { command, connection: connection.clone() }) {
            // Everything a server asks it asks again, or asks for a person who can.
            tracing::warn!(server = %connection.address(), "dropped a server's request: {refused}");
        }
    }
}

mod answer;
mod spin;
#[cfg(test)]
mod tests;
