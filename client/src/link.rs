//! A server by its address: the connection to it, made when first needed and made again when it broke.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::remoting::frame::Serialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Connection, FromServer};
use crate::error::{Error, ErrorKind, Result};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What every link of a client shares.
#[derive(Clone, Debug)]
pub(crate) struct Wiring {
    pub serialize: Serialize,
    pub busy_wait: Duration,
    pub connect_timeout: Duration,
    pub inbox: mpsc::Sender<FromServer>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    /// Gets the address of every connection that ended.
    pub lost: mpsc::Sender<Arc<str>>,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Link {
    address: Arc<str>,
    wiring: Wiring,
    current: Mutex<Option<Connection>>,
    /// Held while connecting, so that one caller connects and the others wait for it.
    dial: tokio::sync::Mutex<Dial>,
    /// Until when nobody tries again; for those who can choose another server.
    resting: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Dial {
    failures: u32,
}

impl Link {
    pub(crate) fn new(address: Arc<str>, wiring: Wiring) -> Self {
        Self {
            address,
            wiring,
            current: Mutex::new(None),
            dial: tokio::sync::Mutex::default(),
            resting: Mutex::new(None),
        }
    }

    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// The connection, if there is one that works.
    pub(crate) fn connected(&self) -> Option<Connection> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|connection| !connection.is_closed()).cloned()
    }

    /// Whether the last attempt to connect failed a moment ago.
    pub(crate) fn is_resting(&self) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.is_some_and(|until| Instant::now() < until)
    }

    /// The connection; makes one when there is none. The second value tells whether this call made it.
    /// Shortly after a failed attempt the next one fails at once.
    pub(crate) async fn open(&self) -> Result<(Connection, Made)> {
        if let Some(connection) = self.connected() {
            return Ok((connection, Made::Before));
        }
        let mut dial = self.dial.lock().await;
        if let Some(connection) = self.connected() {
            return Ok((connection, Made::Before));
        }
        if self.wiring.stop.is_cancelled() {
            return Err(Error::closed("client"));
        }
        if self.is_resting() {
            let what = format!("connecting to {} failed a moment ago", self.address);
            return Err(Error::new(ErrorKind::Connect, what));
        }
        match self.connect().await {
            Ok(connection) => {
                dial.failures = 0;
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
                Ok((connection, Made::Now))
            }
            Err(error) => {
                let pause = BACKOFF_MIN.saturating_mul(1 << dial.failures.min(8)).min(BACKOFF_MAX);
                dial.failures += 1;
                *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + pause);
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Connection> {
        let timeout = self.wiring.connect_timeout;
        let failed =
            |why: String| Error::new(ErrorKind::Connect, format!("connecting to {} {why}", self.address));
        let stream = match tokio::time::timeout(timeout, TcpStream::connect(&*self.address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(format!("failed: {error}")).because(error)),
            Err(_) => return Err(failed(format!("took more than {timeout:?}"))),
        };
        // Requests are gathered before they are written: waiting for more would only add latency.
        stream.set_nodelay(true).map_err(|error| failed(format!("failed: {error}")).because(error))?;
        let wiring = &self.wiring;
        let (connection, run) = Connection::over(
            Arc::clone(&self.address),
            stream.into_split(),
            wiring.serialize,
            wiring.busy_wait,
            wiring.inbox.clone(),
            wiring.stop.child_token(),
        );
        let (lost, address) = (wiring.lost.clone(), Arc::clone(&self.address));
        wiring.tasks.spawn(async move {
            run.await;
            let _ = lost.try_send(address); // full: the keeper has enough to look after already
        });
        Ok(connection)
    }
}

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// This call did.
    Now,
    /// It was there.
    Before,
}
