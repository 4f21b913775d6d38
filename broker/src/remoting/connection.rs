//! One client connection: read, handle, answer in one write.
//!
//! The task takes every complete frame out of what it read, handles the cheap ones on the spot, drives
//! the store once, and writes all answers that may be given together. Answers to sends are *held* until
//! the flush policy's promise holds for their records; long-polling pulls are parked with their
//! deadline; the rest runs beside and puts its answers into the [`Inbox`].
//!
//! A client that does not read is not read from: nothing grows for it but what is in flight already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use gantry_proto::error::DecodeError;
use gantry_proto::ids::PhyOffset;
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::{Frame, FrameError, Serialize};
use gantry_proto::remoting::header::{
    Command, EncodeError, ExtFields, ExtWrite, ExtWriter, Head, encode_frame,
};
use gantry_proto::remoting::request::send::QuickSend;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::beside::{Beside, Inbox};
use super::budget::Share;
use super::context::{Caller, Handled, Reply, Services};
use super::late::Late;
use super::pace::{FlushHere, SPIN_MAX, Spin, look_for};
use super::pull::Parked;
use super::{dispatch, outbound};
use crate::deliver::polls::PollsFull;
use crate::deliver::pull;
use crate::groups::members::Notice;
use crate::publish::Scratch;
use crate::store::{FlushPolicy, LogRuns};

/// Bytes that a read asks for at the least.
const READ_BYTES_MIN: usize = 8 * 1024;
/// Bytes that a connection at rest reads into.
const READ_BYTES_REST: usize = 1024;
/// After how long without use buffers are given back; up to twice as long may pass.
const REST: Duration = Duration::from_secs(2);
/// Requests that are handled before they are stored and answered, though more were read. A client that has many in
/// flight then has answers, and the disk something to do, while the others are handled.
const FRAMES_AT_ONCE: usize = 32;
/// Bytes of requests, or of answers, after which the same is done.
const BYTES_AT_ONCE: usize = 32 * 1024;
/// Requests of one connection that may run beside it.
const BESIDE_MAX: usize = 1024;
/// Bytes that may wait to be written to the log before this connection reads on.
const STAGED_PAUSE: u64 = 16 * 1024 * 1024;

/// How long a connection that is to end waits for its last records to be safe.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How long a connection that is to end lets its client read what is there for it.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// An answer that waits for its record to be safe.
#[derive(Debug)]
struct Held {
    end: PhyOffset,
    /// Where it ends in the held bytes.
    upto: usize,
    /// Bytes of the request.
    request: usize,
    opaque: i32,
    serialize: Serialize,
}

/// Whether further requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// They are.
    Open,
    /// Too much is under way.
    Paused,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    /// The client closed it.
    #[error("closed by the client")]
    ByPeer,
    /// The broker stops.
    #[error("the broker stops")]
    Stopping,
    /// The client said nothing for too long.
    #[error("nothing was heard for {0:?}")]
    Idle(Duration),
    /// The client began a frame and took too long to complete it.
    #[error("a frame did not become whole within {0:?}")]
    Slow(Duration),
    /// The bytes are not frames.
    #[error("not a frame: {0}")]
    Frame(#[from] FrameError),
    /// The header is not one.
    #[error("not a command header: {0}")]
    Header(#[from] DecodeError),
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Everything about one connection.
pub(super) struct Connection {
    pub(super) services: Arc<Services>,
    pub(super) caller: Caller,
    pub(super) inbox: Arc<Inbox>,
    pub(super) scratch: Scratch,
    pub(super) parked: super::pull::ParkedPulls,
    pub(super) parked_pops: super::pop::ParkedPops,
    /// Answers ready to be written.
    pub(super) out: Vec<u8>,
    held: VecDeque<Held>,
    held_bytes: Vec<u8>,
    held_from: usize,
    /// Bytes of the requests that are answered by what is held, and of the one in work.
    held_requests: usize,
    request: usize,
    reading: Reading,
    /// Refusals that are told later.
    late: Late,
    /// Ends of transactions gathered from one read.
    pub(super) ends: Vec<super::transaction::PendingEnd>,
    /// Whether the input may hold more complete frames: the answers so far are to be read first.
    more_frames: bool,
    /// Whether something was appended since the store was driven last.
    pub(super) appended: bool,
    /// Memory for the ids that the answer to a send names.
    pub(super) msg_ids: String,
    /// Memory for pulls.
    pub(super) pulls: pull::Scratch,
    /// Whether there was something to do since [`rest_at`](Self::rest_at) was set.
    used: bool,
    /// When to look whether the buffers are to be given back; `None` when they were.
    rest_at: Option<Instant>,
    ext: ExtFields<'static>,
    /// What `out` counts for among all connections.
    share: Share,
    flush_here: FlushHere,
    spin: Spin,
}

impl Connection {
    /// A connection of `caller`.
    pub(super) fn new(services: Arc<Services>, caller: Caller) -> Self {
        let share = Share::new(&services.outbound);
        Self {
            share,
            services,
            caller,
            inbox: Arc::default(),
            scratch: Scratch::default(),
            parked: super::pull::ParkedPulls::default(),
            parked_pops: super::pop::ParkedPops::default(),
            out: Vec::new(),
            held: VecDeque::new(),
            held_bytes: Vec::new(),
            held_from: 0,
            held_requests: 0,
            request: 0,
            reading: Reading::Open,
            late: Late::default(),
            ends: Vec::new(),
            more_frames: false,
            appended: false,
            msg_ids: String::new(),
            pulls: pull::Scratch::default(),
            used: false,
            rest_at: None,
            ext: ExtFields::with_capacity(16),
            flush_here: FlushHere::default(),
            spin: Spin::default(),
        }
    }

    /// Serves the connection until one side ends it.
    pub(super) async fn run<S>(
        mut self,
        mut stream: S,
        mut notices: mpsc::Receiver<Notice>,
        stop: CancellationToken,
    ) -> Closed
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let closed = match self.serve(&mut stream, &mut notices, &stop).await {
            Ok(closed) | Err(closed) => closed,
        };
        self.leave_polls();
        self.caller.outbox.close();
        // What becomes safe is still told; the client may be gone, then the error says nothing new.
        if self.held.back().is_some() {
            let _ = tokio::time::timeout(LAST_ANSWERS, settled(&self.services, self.held.back())).await;
        }
        self.release_held();
        let _ = tokio::time::timeout(LAST_WRITE, stream.write_all(&self.out)).await;
        let _ = stream.shutdown().await;
        closed
    }

    async fn serve<S>(
        &mut self,
        stream: &mut S,
        notices: &mut mpsc::Receiver<Notice>,
        stop: &CancellationToken,
    ) -> Result<Closed, Closed>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let idle = self.services.config.limits.idle;
        let mut input = BytesMut::new();
        let mut want = READ_BYTES_MIN;
        let mut heard = Instant::now();
        let timer = tokio::time::sleep_until(heard + idle);
        tokio::pin!(timer);
        loop {
            self.release_held();
            if !self.out.is_empty() {
                self.share.set(self.out.capacity());
                self.parked_pops.is_busy(&self.services, &self.inbox.mailbox);
                let closed = write_out(stream, &self.out, idle, stop).await;
                self.inbox.mailbox.set_busy(false);
                self.out.clear(); // also when it failed: some of it may have been written
                closed?;
                self.out.shrink_to(self.share.keep());
                self.share.set(0);
                self.used = true;
            }
            if self.share.is_crowded() {
                self.free_buffers();
                if input.is_empty() {
                    input = BytesMut::new();
                    want = want.min(READ_BYTES_REST);
                }
            } else if self.used && self.rest_at.is_none() {
                self.rest_at = Some(Instant::now() + REST);
            }
            let due = self.next_due(heard + idle);
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            let may_go_on = self.may_read();
            if self.more_frames && may_go_on {
                heard = Instant::now();
                want = self.take_frames(&mut input)?.max(READ_BYTES_MIN);
                tokio::task::yield_now().await; // the others' turn
                continue;
            }
            input.reserve(want);
            let begun = !input.is_empty();
            let spins = self.held.is_empty() && self.spin.begins();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Closed::Stopping),
                () = settled(&self.services, self.held.front()), if !self.held.is_empty() => {}
                () = self.inbox.mailbox.woken() => self.take_inbox(),
                read = stream.read_buf(&mut input), if may_go_on => {
                    if spins {
                        self.spin.hit();
                    }
                    let read = read?;
                    if read == 0 {
                        return Ok(Closed::ByPeer);
                    }
                    let had = input.len();
                    want = self.take_frames(&mut input)?.max(next_want(read, want, self.share.keep()));
                    self.used = true;
                    // A frame that comes in drips has no more time than silence.
                    if !begun || input.len() < had {
                        heard = Instant::now();
                    }
                }
                Some(notice) = notices.recv() => outbound::write(self, &notice),
                () = look_for(SPIN_MAX), if spins => self.spin.miss(),
                () = &mut timer => {
                    let now = Instant::now();
                    if now >= heard + idle {
                        return Ok(if begun { Closed::Slow(idle) } else { Closed::Idle(idle) });
                    }
                    self.run_due(now);
                    if self.rest_at.is_some_and(|at| now >= at) && self.rests() && input.is_empty() {
                        input = BytesMut::new();
                        want = READ_BYTES_REST;
                    }
                    let due = self.next_due(heard + idle);
                    timer.as_mut().reset(due);
                }
            }
        }
    }

    /// Whether further requests are taken: not while too much is under way.
    fn may_read(&mut self) -> bool {
        let limits = &self.services.config.limits;
        let beside = self.inbox.beside();
        let under_way = beside + self.held.len() + self.late.len();
        let may = beside < BESIDE_MAX
            && (self.held.is_empty() || self.services.store.staged_bytes() < STAGED_PAUSE)
            && under_way < limits.in_flight_requests
            && self.held_requests < limits.in_flight_bytes;
        if !may && self.reading == Reading::Open {
            self.services.metrics.connections_paused.bump();
        }
        self.reading = if may { Reading::Open } else { Reading::Paused };
        may
    }

    /// When the connection must look at the time again.
    fn next_due(&self, idle: Instant) -> Instant {
        let (pulls, pops) = (self.parked.next_deadline(), self.parked_pops.next_deadline());
        let polls = pulls.into_iter().chain(pops).chain(self.late.next_due()).min();
        let due = polls.map_or(idle, |deadline| deadline.min(idle));
        self.rest_at.map_or(due, |rest| rest.min(due))
    }

    /// Gives the buffers back if they were not used since this was asked last.
    fn rests(&mut self) -> bool {
        if std::mem::take(&mut self.used) || !self.out.is_empty() || !self.held.is_empty() {
            self.rest_at = Some(Instant::now() + REST);
            return false;
        }
        self.rest_at = None;
        self.free_buffers();
        true
    }

    /// Gives back what is kept for the next use only.
    fn free_buffers(&mut self) {
        if self.out.is_empty() {
            self.out = Vec::new();
        }
        if self.held.is_empty() {
            self.held_bytes = Vec::new();
        }
        self.scratch = Scratch::default();
        self.msg_ids = String::new();
        self.pulls = pull::Scratch::default();
    }

    /// Whether the client has enough to read.
    fn is_full(&self) -> bool {
        self.out.len() >= self.share.limit(self.services.config.limits.outbound_bytes)
    }

    /// Handles every complete frame, or as many as give the client enough to read; returns how many bytes
    /// the next one lacks.
    pub(super) fn take_frames(&mut self, input: &mut BytesMut) -> Result<usize, Closed> {
        let limit = self.services.config.limits.frame_bytes as usize;
        let mut taken = 0;
        let mut frames = 0;
        self.more_frames = false;
        let missing = loop {
            if self.is_full() {
                self.more_frames = true;
                break 0;
            }
            let rest = input.get(taken..).unwrap_or_default();
            let Some(frame) = Frame::cut(rest, limit)? else { break Frame::missing(rest, limit)? };
            if frames >= FRAMES_AT_ONCE || taken >= BYTES_AT_ONCE || self.out.len() >= BYTES_AT_ONCE {
                self.more_frames = true;
                break 0;
            }
            self.take_frame(&frame)?;
            taken += frame.len;
            frames += 1;
        };
        input.advance(taken);
        if !self.ends.is_empty() {
            super::transaction::stage(self);
        }
        if std::mem::take(&mut self.appended) {
            self.drive(frames);
        }
        self.spin.read(frames);
        Ok(missing)
    }

    /// Gets what so many requests appended written and dispatched.
    fn drive(&mut self, requests: usize) {
        let store = &self.services.store;
        let here = self.flush_here.decide(&self.services.alone, self.caller.connection, requests);
        if here && store.policy() == FlushPolicy::Disk {
            let began = Instant::now();
            store.drive_here();
            self.flush_here.took(began.elapsed());
        } else {
            store.drive();
        }
    }

    fn take_frame(&mut self, frame: &Frame<'_>) -> Result<(), Closed> {
        self.request = frame.len;
        if frame.serialize == Serialize::RocketMq
            && let Some(send) = QuickSend::read(frame.header)
            && !send.command.is_reply()
        {
            self.caller.language = send.command.language;
            self.caller.version = send.command.version;
            super::send::handle_quick(self, &send, frame);
            return Ok(());
        }
        let storage = std::mem::take(&mut self.ext);
        let command = Command::decode_reusing(frame.serialize, frame.header, storage)?;
        self.caller.language = command.language;
        self.caller.version = command.version;
        dispatch::dispatch(self, &command, frame);
        self.ext = command.ext.recycle();
        Ok(())
    }

    /// Puts an answer into the output.
    pub(super) fn answer<E: ExtWrite + ?Sized>(
        &mut self,
        serialize: Serialize,
        head: &Head<'_>,
        ext: &E,
        body: &[u8],
    ) {
        encode(&mut self.out, serialize, head, ext, body);
    }

    /// Refuses a request. With `retry_ms` it may be tried again after so many milliseconds: the client is told that, and
    /// not much sooner, because it would come back at once.
    pub(super) fn refuse(
        &mut self,
        serialize: Serialize,
        opaque: i32,
        code: ResponseCode,
        why: &str,
        retry_ms: Option<u64>,
    ) {
        let head = Head::reply(code.code(), opaque).remark(why);
        let Some(retry_ms) = retry_ms else { return self.answer(serialize, &head, &(), &[]) };
        let told = i64::try_from(retry_ms).unwrap_or(i64::MAX);
        let ext = |out: &mut ExtWriter<'_>| out.number("retryAfterMs", told);
        if self.late.has_room() {
            let mut answer = Vec::new();
            encode(&mut answer, serialize, &head, &ext, &[]);
            self.late.put(Instant::now(), retry_ms, answer);
        } else {
            self.answer(serialize, &head, &ext, &[]);
        }
    }

    /// Puts an answer into the output whose body lies in the log.
    pub(super) fn answer_runs<E: ExtWrite + ?Sized>(
        &mut self,
        serialize: Serialize,
        head: &Head<'_>,
        ext: &E,
        messages: &LogRuns,
    ) {
        self.out.reserve(messages.bytes() + 512);
        match encode_frame(&mut self.out, serialize, head, ext, messages.bytes()) {
            Ok(()) => messages.iter().for_each(|run| self.out.extend_from_slice(run)),
            Err(_) => encode(&mut self.out, serialize, head, ext, &[]),
        }
    }

    /// Puts an answer aside until every byte of the log below `end` is safe.
    pub(super) fn hold<E: ExtWrite + ?Sized>(
        &mut self,
        end: PhyOffset,
        serialize: Serialize,
        head: &Head<'_>,
        ext: &E,
        body: &[u8],
    ) {
        encode(&mut self.held_bytes, serialize, head, ext, body);
        self.hold_last(end, serialize, head);
    }

    /// Puts an answer aside whose body lies in the log.
    pub(super) fn hold_runs<E: ExtWrite + ?Sized>(
        &mut self,
        end: PhyOffset,
        serialize: Serialize,
        head: &Head<'_>,
        ext: &E,
        messages: &LogRuns,
    ) {
        match encode_frame(&mut self.held_bytes, serialize, head, ext, messages.bytes()) {
            Ok(()) => messages.iter().for_each(|run| self.held_bytes.extend_from_slice(run)),
            Err(_) => encode(&mut self.held_bytes, serialize, head, ext, &[]),
        }
        self.hold_last(end, serialize, head);
    }

    /// Puts what was encoded last aside.
    fn hold_last(&mut self, end: PhyOffset, serialize: Serialize, head: &Head<'_>) {
        let upto = self.held_bytes.len();
        let request = std::mem::take(&mut self.request);
        self.held_requests += request;
        self.held.push_back(Held { end, upto, request, opaque: head.opaque, serialize });
    }

    /// Moves held answers whose records are safe into the output; refuses all of them when the log has
    /// stopped.
    fn release_held(&mut self) {
        let mut upto = self.held_from;
        while let Some(held) = self.held.front()
            && self.services.store.is_settled(held.end)
        {
            upto = held.upto;
            self.held_requests -= held.request;
            self.held.pop_front();
        }
        if let Some(safe) = self.held_bytes.get(self.held_from..upto) {
            self.out.extend_from_slice(safe);
        }
        self.held_from = upto;
        if let Some(failure) = self.services.store.failure() {
            let why = failure.to_string();
            for held in std::mem::take(&mut self.held) {
                let head = Head::reply(ResponseCode::ServiceNotAvailable.code(), held.opaque).remark(&why);
                encode(&mut self.out, held.serialize, &head, &(), &[]);
            }
        }
        if self.held.is_empty() {
            self.held_requests = 0;
            self.held_bytes.clear();
            self.held_bytes.shrink_to(self.share.keep());
            self.held_from = 0;
        }
    }

    /// Gives an answer now, or when it is there.
    pub(super) fn respond(&mut self, command: &Command<'_>, serialize: Serialize, handled: Handled) {
        match handled {
            Handled::Now(reply) => {
                if !command.is_oneway() {
                    write_reply(&mut self.out, serialize, command.opaque, &reply);
                }
            }
            Handled::Later(work) => {
                let beside = Beside::new(&self.inbox, serialize, command);
                self.services.shutdown.spawn("request", beside.run(work));
            }
        }
    }

    /// Takes what other tasks have left: answers, and parked pulls to look at again.
    pub(super) fn take_inbox(&mut self) {
        self.inbox.take_answers(&mut self.out);
        let tokens = self.inbox.mailbox.take();
        for (number, token) in tokens.iter().copied().enumerate() {
            if self.is_full() {
                self.inbox.mailbox.put_back(tokens.get(number..).unwrap_or_default());
                break;
            }
            if token & super::pop::TOKEN_BIT != 0 {
                let polls = &self.services.polls;
                if let Some(parked) = self.parked_pops.take(polls, &self.inbox.mailbox, token) {
                    super::pop::resume(self, parked);
                }
            } else if let Some(parked) = self.parked.take(token) {
                super::pull::resume(self, parked);
            }
        }
    }

    /// Answers the parked pulls whose time is over, and tells refusals that were kept back.
    fn run_due(&mut self, now: Instant) {
        self.late.take_due(now, &mut self.out);
        while !self.is_full()
            && let Some(parked) = self.parked.take_due(now)
        {
            super::pull::run_due(self, parked);
        }
        while !self.is_full()
            && let Some(parked) = self.parked_pops.take_due(&self.services.polls, &self.inbox.mailbox, now)
        {
            super::pop::resume(self, parked);
        }
    }

    /// Gives up the parked pulls.
    fn leave_polls(&mut self) {
        self.parked.clear(&self.services.polls, &self.inbox.mailbox);
        self.parked_pops.clear(&self.services, &self.inbox.mailbox);
    }

    /// Parks a pull and gives its token, or the pull back when there is no room.
    pub(super) fn park(&mut self, parked: Parked) -> Result<u32, Box<(Parked, PollsFull)>> {
        self.parked.park(&self.services.polls, &self.inbox.mailbox, parked)
    }
}

impl Drop for Connection {
    /// For a panic: all others have done so.
    fn drop(&mut self) {
        self.leave_polls();
        self.caller.outbox.close();
    }
}

/// Waits until the first held answer may be given, or never will.
async fn settled(services: &Services, first: Option<&Held>) {
    match first {
        Some(held) => {
            // A stopped log is noticed by whoever looks at the held answers next.
            let _ = services.store.settled(held.end).await;
        }
        None => std::future::poll_fn(|_| Poll::Pending).await,
    }
}

/// Writes what is there for the client, who may take as long as `idle` to read it, but not much longer than the broker
/// runs.
async fn write_out<S: AsyncWrite + Unpin>(
    stream: &mut S,
    out: &[u8],
    idle: Duration,
    stop: &CancellationToken,
) -> Result<(), Closed> {
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WRITE).await;
    };
    tokio::select! {
        biased;
        written = tokio::time::timeout(idle, stream.write_all(out)) => {
            Ok(written.map_err(|_| Closed::Idle(idle))??)
        }
        () = stopped => Err(Closed::Stopping),
    }
}

/// Doubles the size of the next read, up to `most`, when the last one filled what it had, halves it when far from
/// it.
fn next_want(read: usize, want: usize, most: usize) -> usize {
    if read >= want {
        (want * 2).min(most)
    } else if read * 4 < want {
        (want / 2).max(READ_BYTES_MIN)
    } else {
        want
    }
}

/// Appends an answer.
pub(super) fn write_reply(out: &mut Vec<u8>, serialize: Serialize, opaque: i32, reply: &Reply) {
    let head = Head { remark: reply.remark.as_deref(), ..Head::reply(reply.code, opaque) };
    encode(out, serialize, &head, &reply.ext, &reply.body);
}

/// Appends one frame; one that cannot be framed becomes an error that can.
fn encode<E: ExtWrite + ?Sized>(
    out: &mut Vec<u8>,
    serialize: Serialize,
    head: &Head<'_>,
    ext: &E,
    body: &[u8],
) {
    let start = out.len();
    let written = encode_frame(out, serialize, head, ext, body.len()).or_else(|error| match error {
        // Codes beyond 16 bits exist in the JSON form only; every client reads it.
        EncodeError::CodeTooLarge { .. } => encode_frame(out, Serialize::Json, head, ext, body.len()),
        other => Err(other),
    });
    match written {
        Ok(()) => out.extend_from_slice(body),
        Err(error) => {
            out.truncate(start);
            let why = error.to_string();
            let head = Head::reply(ResponseCode::SystemError.code(), head.opaque).remark(&why);
            // Without fields and body nothing is too long any more.
            let _ = encode_frame(out, Serialize::Json, &head, &(), 0);
        }
    }
}
