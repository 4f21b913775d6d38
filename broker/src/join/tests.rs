//! Against a name server that is played here.

use bytes::{Buf as _, BytesMut};
use gantry_proto::remoting::frame::{FRAME_LIMIT, Frame, Serialize};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::nameserver::{QueryDataVersionResponse, RegisterBrokerHeader};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::clock::ManualClock;
use crate::fixture;
use crate::routes::Inventory;
use crate::shutdown::Drained;

const SOON: Duration = Duration::from_secs(30);
const NO_BROKERS: &str = r#"{"brokerAddrTable":{},"clusterAddrTable":{}}"#;

/// A name server that gives these answers: where it listens, and what it was asked.
async fn name_server(
    answer: impl Fn(&OwnedCommand) -> OwnedCommand + Send + Sync + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<OwnedCommand>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut input = BytesMut::new();
            while stream.read_buf(&mut input).await.is_ok_and(|read| read > 0) {
                while let Some(frame) = Frame::cut(&input, FRAME_LIMIT).unwrap() {
                    let (command, len) = (OwnedCommand::decode(&frame).unwrap(), frame.len);
                    input.advance(len);
                    let mut out = Vec::new();
                    let mut reply = answer(&command);
                    (reply.opaque, reply.flag) = (command.opaque, 1);
                    reply.encode(&mut out, Serialize::Json).unwrap();
                    let _ = told.send(command);
                    stream.write_all(&out).await.unwrap();
                }
            }
        }
    });
    (address, asked)
}

/// A name server that takes every broker.
fn willing(command: &OwnedCommand) -> OwnedCommand {
    match command.code {
        106 => OwnedCommand::reply(0, 0, &()).body(NO_BROKERS),
        322 => OwnedCommand::reply(0, 0, &QueryDataVersionResponse { changed: false }),
        _ => OwnedCommand::reply(0, 0, &()),
    }
}

struct World {
    join: Arc<Join>,
    topics: Arc<Topics>,
    drain: Arc<Drain>,
    tasks: Shutdown,
    _dir: TempDir,
}

impl World {
    fn new(servers: &[String], change: impl FnOnce(&mut NodeConfig)) -> Self {
        let dir = TempDir::new().unwrap();
        let clock: Arc<ManualClock> = fixture::clock();
        let topics = Topics::open(dir.path(), fixture::topic_defaults(), clock.clone()).unwrap();
        let drain = Drain::open(dir.path(), "broker-a", clock.clone()).unwrap();
        let (topics, drain) = (Arc::new(topics), Arc::new(drain));
        let mut node = NodeConfig { name_servers: servers.to_vec(), ..NodeConfig::default() };
        change(&mut node);
        let listens = |port| SocketAddr::new(node.bind, port);
        let both = (listens(9876), listens(10911));
        let join = Arc::new(Join::new(&node, both, Arc::clone(&topics), Arc::clone(&drain), clock));
        let tasks = Shutdown::new();
        join.start(&tasks);
        Self { join, topics, drain, tasks, _dir: dir }
    }

    fn states(&self) -> Vec<State> {
        self.join.standings().into_iter().map(|standing| standing.state).collect()
    }

    async fn wait(&self, expected: impl Fn(&[State]) -> bool) {
        let waited = async {
            while !expected(&self.states()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, waited).await;
        assert!(waited.is_ok(), "in vain: {:?}", self.states());
    }

    /// Why the only registration fails.
    async fn failing(&self) -> String {
        self.wait(|states| matches!(states, [State::Failing(_)])).await;
        let Some(State::Failing(why)) = self.states().pop() else { unreachable!("it was awaited") };
        assert_eq!(self.tasks.drain(SOON).await, Drained::Complete);
        why
    }
}

/// What it was asked next, but for the list of brokers.
async fn next(asked: &mut mpsc::UnboundedReceiver<OwnedCommand>) -> OwnedCommand {
    loop {
        let command = tokio::time::timeout(SOON, asked.recv()).await.expect("a request").unwrap();
        if command.code != 106 {
            return command;
        }
    }
}

fn inventory(command: &OwnedCommand) -> (RegisterBrokerHeader, Inventory) {
    assert_eq!(command.code, 103);
    let header: RegisterBrokerHeader = command.header().unwrap();
    let inventory = Inventory::decode(&command.body, header.compressed, header.body_crc32).unwrap();
    (header, inventory)
}

#[tokio::test]
async fn a_broker_registers_tells_what_changes_and_leaves() {
    let (server, mut asked) = name_server(willing).await;
    let world = World::new(&[server.to_string()], |_| ());
    let (header, first) = inventory(&next(&mut asked).await);
    assert_eq!((header.broker_name.as_str(), header.broker_id), ("broker-a", 0));
    assert_eq!(header.broker_addr, "127.0.0.1:10911");
    assert!(header.body_crc32 != 0 && first.topics.contains_key("TBW102"));
    let registered = State::Registered { address: "127.0.0.1:10911".to_owned() };
    world.wait(|states| states == [registered.clone()]).await;

    let topic = TopicConfig { topic_name: "new".to_owned(), ..TopicConfig::default() };
    world.topics.declare(topic).unwrap();
    let (_, second) = inventory(&next(&mut asked).await);
    assert_ne!(second.version, first.version);
    assert_eq!((second.topics["new"].perm, first.topics.get("new")), (6, None));

    world.drain.begin(Duration::ZERO).unwrap();
    let (_, drained) = inventory(&next(&mut asked).await);
    assert_eq!(drained.topics["new"].perm, 4);
    world.drain.leave().unwrap();
    assert_eq!(next(&mut asked).await.code, 104);
    world.wait(|states| states == [State::Left]).await;
    world.drain.resume().unwrap();
    let (_, back) = inventory(&next(&mut asked).await);
    assert_eq!(back.topics["new"].perm, 6);

    assert_eq!(world.tasks.drain(SOON).await, Drained::Complete);
    assert_eq!(next(&mut asked).await.code, 104);
}

#[tokio::test]
async fn one_that_is_down_or_no_name_server_keeps_nobody_waiting() {
    let (server, mut asked) = name_server(willing).await;
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let garbled = garbage.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let servers = [closed, garbled, server].map(|address| address.to_string());
    let world = World::new(&servers, |_| ());
    inventory(&next(&mut asked).await);
    let said = |state: &State, part: &str| matches!(state, State::Failing(why) if why.contains(part));
    world
        .wait(|states| {
            said(&states[0], "is it running?")
                && said(&states[1], "is this the port of a name server?")
                && matches!(states[2], State::Registered { .. })
        })
        .await;
    assert_eq!(world.tasks.drain(SOON).await, Drained::Complete);
}

#[tokio::test]
async fn a_name_that_another_broker_has_is_not_taken_from_it() {
    let taken = r#"{"brokerAddrTable":{"broker-a":{"brokerAddrs":{0:"192.0.2.9:10911"},"brokerName":"broker-a",
        "cluster":"theirs"}},"clusterAddrTable":{"theirs":["broker-a"]}}"#;
    let (server, mut asked) = name_server(move |command| match command.code {
        106 => OwnedCommand::reply(0, 0, &()).body(taken),
        _ => willing(command),
    })
    .await;
    let why = World::new(&[server.to_string()], |_| ()).failing().await;
    assert!(why.contains("another broker called broker-a, at 192.0.2.9:10911 (cluster theirs)"), "{why}");
    assert!(why.contains("--broker-name"), "{why}");
    while let Ok(command) = asked.try_recv() {
        assert_eq!(command.code, 106, "nothing is registered, nothing is taken back");
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let (server, _asked) = name_server(|command| match command.code {
        103 => OwnedCommand { remark: Some("not today".to_owned()), ..OwnedCommand::reply(1, 0, &()) },
        _ => willing(command),
    })
    .await;
    let why = World::new(&[server.to_string()], |_| ()).failing().await;
    assert!(why.contains("REGISTER_BROKER(103) with code 1, not today"), "{why}");

    let (server, _asked) = name_server(|_| OwnedCommand::reply(0, 0, &()).body("<html>")).await;
    let why = World::new(&[server.to_string()], |_| ()).failing().await;
    assert!(why.contains("is this a name server?"), "{why}");
}

#[tokio::test]
async fn an_address_that_clients_may_not_reach_is_not_registered() {
    let (server, mut asked) = name_server(willing).await;
    let everywhere = |node: &mut NodeConfig| node.bind = [0, 0, 0, 0].into();
    let why = World::new(&[server.to_string()], everywhere).failing().await;
    assert!(why.contains("set --advertise"), "{why}");

    let world = World::new(&[server.to_string()], |node| {
        everywhere(node);
        node.advertise = Some("broker.example.org".to_owned());
    });
    let (header, _) = inventory(&next(&mut asked).await);
    assert_eq!(header.broker_addr, "broker.example.org:10911");
    assert_eq!(world.tasks.drain(SOON).await, Drained::Complete);

    // No connection is needed to tell.
    let ends = |local: &str, peer: &str| (local.parse().unwrap(), peer.parse().unwrap());
    let (local, peer) = ends("192.0.2.7:5", "192.0.2.1:9876");
    let here = World::new(&[], |_| ());
    let why = session::address(&here.join, local, peer).unwrap_err().to_string();
    assert!(why.contains("listens on 127.0.0.1 only"), "{why}");
    let all = World::new(&[], everywhere);
    assert_eq!(session::address(&all.join, local, peer).unwrap(), "192.0.2.7:10911");
}

#[tokio::test]
async fn the_own_name_service_is_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dir = TempDir::new().unwrap();
    let clock = fixture::clock();
    let topics = Arc::new(Topics::open(dir.path(), fixture::topic_defaults(), clock.clone()).unwrap());
    let drain = Arc::new(Drain::open(dir.path(), "broker-a", clock.clone()).unwrap());
    let node = NodeConfig { name_servers: vec![address.to_string()], ..NodeConfig::default() };
    let join = Arc::new(Join::new(&node, (address, address), topics, drain, clock));
    let tasks = Shutdown::new();
    join.start(&tasks);
    let itself = async {
        while join.standings()[0].state != State::Itself {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, itself).await.expect("it is noticed");
    assert_eq!(tasks.drain(SOON).await, Drained::Complete);
}

#[tokio::test]
async fn many_topics_come_in_parts_under_versions_of_their_own() {
    let world = World::new(&[], |_| ());
    let version = world.join.version();
    assert_eq!(world.join.version(), version);
    let parts: Vec<_> =
        world.join.parts(version, 5).map(|body| Inventory::decode(&body, false, 0).unwrap()).collect();
    assert_eq!(parts.iter().map(|part| part.topics.len()).sum::<usize>(), world.topics.all().len());
    assert!(parts.len() > 1 && parts.iter().all(|part| part.topics.len() <= 5));
    let mut versions: Vec<_> = parts.iter().map(|part| part.version.timestamp).collect();
    assert_eq!(parts.last().map(|part| part.version), Some(version));
    versions.dedup();
    assert_eq!(versions.len(), parts.len());
    world.drain.begin(Duration::ZERO).unwrap();
    assert_ne!(world.join.version(), version);
}
