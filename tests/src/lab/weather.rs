//! Faults that go on beside the load: clients that behave as badly as the world lets them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_client::{Client, Message};
use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::heartbeat::{ConsumerData, HeartbeatData, ProducerData};
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::member::UnregisterClientHeader;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::disk;
use super::plan::Pace;
use super::proxy::Proxy;
use super::vitals::Stop;
use crate::checker::Checker;
use crate::faults::Faults;

/// The group of the clients that come and go.
pub const COMERS: &str = "lab-comers";
/// The topic that slow readers read.
const LARGE: &str = "lab-large";
/// Bytes and number of its messages.
const LARGE_BYTES: usize = 48 * 1024;
const LARGE_COUNT: usize = 24;
/// How long a broker that works again may take until a client of the load notices.
const RESUMED_WITHIN: Duration = Duration::from_secs(40);
/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How often it blows at the most.
const GUSTS_MAX: u32 = 10;
/// Clients that come and go at once.
const AT_ONCE: usize = 64;

/// Where the weather blows.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Address of the broker.
    pub broker: SocketAddr,
    /// The wire between the load and the broker, if it can be cut.
    pub proxy: Option<Arc<Proxy>>,
    /// Hears of contradictions.
    pub checker: Arc<Checker>,
    /// How long rounds are.
    pub pace: Pace,
    /// How often it blows at the least.
    pub gusts: u32,
    /// Decisions.
    pub seed: u64,
}

/// Weather that goes on until it is told to stop.
#[derive(Debug)]
pub struct Blowing {
    stop: Stop,
    task: JoinHandle<(u32, Vec<TcpStream>)>,
}

/// What a weather left behind.
#[derive(Debug)]
pub struct Calm {
    /// How often it blew.
    pub gusts: u32,
    /// Connections that are open on this side, and that the broker must have given up by itself.
    pub open: Vec<TcpStream>,
}

impl Blowing {
    /// Connections vanish, again and again; peers begin a frame and never finish it.
    pub fn half_open(scene: Scene) -> Self {
        Self::start(|stop| half_open(scene, stop))
    }

    /// Consumers ask and do not read.
    pub fn slow_readers(scene: Scene) -> Self {
        Self::start(|stop| slow_readers(scene, stop))
    }

    /// Clients come, say who they are, and leave in every way there is.
    pub fn reconnecting(scene: Scene) -> Self {
        Self::start(|stop| reconnecting(scene, stop))
    }

    /// The disk takes its time.
    pub fn slow_disk(scene: Scene, faults: Faults) -> Self {
        Self::start(|stop| async move { (disk::slow(scene, faults, stop).await, Vec::new()) })
    }

    /// The clock jumps.
    pub fn clock(scene: Scene, faults: Faults) -> Self {
        Self::start(|stop| async move { (disk::clock(scene, faults, stop).await, Vec::new()) })
    }

    fn start<F>(weather: impl FnOnce(Stop) -> F) -> Self
    where
        F: Future<Output = (u32, Vec<TcpStream>)> + Send + 'static,
    {
        let stop = Stop::default();
        let task = tokio::spawn(weather(stop.clone()));
        Self { stop, task }
    }

    /// Ends it; it blows once at the least.
    pub async fn calm(self) -> Calm {
        self.stop.set();
        let (gusts, open) = self.task.await.expect("weather does not panic");
        Calm { gusts, open }
    }
}

async fn half_open(scene: Scene, stop: Stop) -> (u32, Vec<TcpStream>) {
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let (mut gusts, mut open) = (0, Vec::new());
    let peers = if scene.pace == Pace::Brief { 10 } else { 40 };
    for blown in 0.. {
        if blown >= scene.gusts && (stop.is_set() || blown >= GUSTS_MAX) {
            break;
        }
        for _ in 0..peers {
            // Refused while the broker restarts: the next gust brings others.
            let Ok(mut stream) = connect(scene.broker).await else { continue };
            let whole = frame(&OwnedCommand::request(RequestCode::HeartBeat, &()));
            let part = rng.usize(..whole.len());
            let _ = stream.write_all(&whole[..part]).await; // it may be killed at any time
            open.push(stream);
        }
        if let Some(proxy) = &scene.proxy {
            let before = scene.checker.counts().acknowledged;
            gusts += 1 + u32::try_from(proxy.cut()).unwrap_or_default();
            resumed(&scene.checker, before, "its connections vanished").await;
        }
        pause(&mut rng, 100..1000).await;
    }
    (gusts, open)
}

/// Waits until something is acknowledged that was not before.
pub async fn resumed(checker: &Checker, before: u64, after: &str) {
    let deadline = Instant::now() + RESUMED_WITHIN;
    while checker.counts().acknowledged == before {
        if Instant::now() >= deadline {
            checker.violation(format!("no send is acknowledged within {RESUMED_WITHIN:?} after {after}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Makes the messages that slow readers ask for.
pub async fn make_large(client: &Client) -> gantry_client::Result<()> {
    let producer = client.producer("lab-large").start().await?;
    for number in 0..LARGE_COUNT {
        let letter = b'a' + u8::try_from(number % 26).unwrap_or_default();
        producer.send(Message::new(LARGE, vec![letter; LARGE_BYTES])).await?;
    }
    Ok(())
}

async fn slow_readers(scene: Scene, stop: Stop) -> (u32, Vec<TcpStream>) {
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let (readers, asks) = if scene.pace == Pace::Brief { (10, 40) } else { (40, 200) };
    let (mut gusts, mut open) = (0, Vec::new());
    for blown in 0.. {
        if blown >= scene.gusts && (stop.is_set() || blown >= GUSTS_MAX) {
            break;
        }
        for _ in 0..readers {
            let Ok(mut stream) = connect(scene.broker).await else { continue };
            let mut packet = Vec::new();
            for number in 0..asks {
                let pull = PullMessageHeader {
                    consumer_group: "lab-slow",
                    topic: LARGE,
                    queue_id: number % 4,
                    max_msg_nums: 32,
                    sys_flag: sys_flag::SUBSCRIPTION,
                    subscription: Some("*"),
                    ..PullMessageHeader::default()
                };
                let mut ask = OwnedCommand::request(RequestCode::PullMessage, &pull);
                ask.opaque = number;
                packet.extend(frame(&ask));
            }
            let _ = stream.write_all(&packet).await; // it may be killed at any time
            gusts += 1;
            match rng.u8(..4) {
                // One breaks off, one reads a little and leaves; the others stay and never read.
                0 => drop(stream.set_zero_linger()),
                1 => drop(stream.read(&mut [0; 4096]).await),
                _ => open.push(stream),
            }
        }
        pause(&mut rng, 100..600).await;
    }
    (gusts, open)
}

async fn reconnecting(scene: Scene, stop: Stop) -> (u32, Vec<TcpStream>) {
    let least = if scene.pace == Pace::Brief { 200 } else { 1000 };
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let mut tasks = JoinSet::new();
    let mut come = 0;
    while come < least || (!stop.is_set() && come < 20 * least) {
        if tasks.len() >= AT_ONCE {
            tasks.join_next().await;
        }
        // Nobody comes in while the broker restarts.
        let broker = scene.broker;
        let (number, way) = (come, rng.u8(..5));
        tasks.spawn(async move { come_and_go(broker, number, way).await });
        come += 1;
        if come % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    while tasks.join_next().await.is_some() {}
    (come, Vec::new())
}

async fn come_and_go(broker: SocketAddr, number: u32, way: u8) -> io::Result<()> {
    let mut stream = connect(broker).await?;
    let client_id = format!("127.0.0.1@comer-{number}");
    let body = HeartbeatData {
        client_id: client_id.clone(),
        consumer_data_set: vec![ConsumerData { group_name: COMERS.to_owned(), ..ConsumerData::default() }],
        producer_data_set: vec![ProducerData { group_name: COMERS.to_owned() }],
        ..HeartbeatData::default()
    };
    let beat = OwnedCommand::request(RequestCode::HeartBeat, &()).body(body.to_json());
    stream.write_all(&frame(&beat)).await?;
    if way == 0 {
        // Gone before the answer comes.
        return stream.set_zero_linger();
    }
    let _ = tokio::time::timeout(CONNECT_WITHIN, stream.read(&mut [0; 1024])).await; // whatever it says
    match way {
        1 => stream.set_zero_linger(),
        2 => {
            let header = UnregisterClientHeader {
                client_id,
                producer_group: Some(COMERS.to_owned()),
                consumer_group: Some(COMERS.to_owned()),
            };
            let leave = OwnedCommand::request(RequestCode::UnregisterClient, &header);
            stream.write_all(&frame(&leave)).await
        }
        3 => stream.write_all(&frame(&beat)[..7]).await,
        _ => Ok(()),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await?
}

fn frame(command: &OwnedCommand) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.encode(&mut bytes, Serialize::Json).expect("an encodable command");
    bytes
}

async fn pause(rng: &mut fastrand::Rng, ms: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.u64(ms))).await;
}
