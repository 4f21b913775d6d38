//! A client that does everything right, while and after others do not.

use std::time::{Duration, Instant};

use gantry_client::{Client, ClientOptions, Message, Producer, PullConsumer, SeekTo};
use gantry_proto::remoting::body::topic::TopicConfig;
use gantry_tests::harness::Gantry;
use tokio::runtime::Runtime;

/// How long a message may take from one end to the other.
const WITHIN: Duration = Duration::from_secs(30);
const TOPIC: &str = "Normal";

/// One connected client with a producer and a consumer.
pub struct Normal {
    runtime: Runtime,
    /// Keeps the connections.
    _client: Client,
    producer: Producer,
    consumer: PullConsumer,
    sent: Vec<String>,
}

impl Normal {
    pub fn new(gantry: &Gantry) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let name_server = gantry.name_server().to_string();
        let (client, producer, consumer) = runtime.block_on(async {
            let client = Client::connect(ClientOptions::new(name_server)).await.unwrap();
            let config = TopicConfig {
                topic_name: TOPIC.to_owned(),
                read_queue_nums: 1,
                write_queue_nums: 1,
                ..TopicConfig::default()
            };
            // The disk of a busy machine may take longer than a client waits.
            let deadline = Instant::now() + WITHIN;
            while let Err(error) = client.admin().create_topic(&config).await {
                assert!(Instant::now() < deadline, "expected a topic within {WITHIN:?}, found {error}");
            }
            let producer = client.producer("normal").start().await.unwrap();
            let consumer = client.pull_consumer("normal").start().await.unwrap();
            consumer.assign(consumer.queues(TOPIC).await.unwrap());
            (client, producer, consumer)
        });
        Self { runtime, _client: client, producer, consumer, sent: Vec::new() }
    }

    /// Sends one message and consumes it.
    #[track_caller]
    pub fn works(&mut self) {
        self.send();
        let sent = self.sent.last().expect("it was just sent").clone();
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            if self.poll().contains(&sent) {
                return;
            }
        }
        panic!("expected that a normal client gets {sent:?} within {WITHIN:?}");
    }

    /// Sends one message that a later [`keeps`](Self::keeps) asks for.
    #[track_caller]
    pub fn send(&mut self) {
        let body = format!("message {}", self.sent.len());
        let sent = self.runtime.block_on(self.producer.send(Message::new(TOPIC, body.clone())));
        sent.unwrap_or_else(|error| panic!("expected that a normal client can send, found {error}"));
        self.sent.push(body);
    }

    /// Everything that it was ever promised to be kept is still there, in order and once.
    #[track_caller]
    pub fn keeps(&self) {
        self.runtime.block_on(async {
            for queue in self.consumer.assigned() {
                self.consumer.seek(&queue, SeekTo::Begin).await.unwrap();
            }
        });
        let deadline = Instant::now() + WITHIN;
        let mut found = Vec::new();
        while found.len() < self.sent.len() && Instant::now() < deadline {
            found.extend(self.poll());
        }
        assert_eq!(found, self.sent, "expected every acknowledged message");
    }

    fn poll(&self) -> Vec<String> {
        let polled = self.runtime.block_on(self.consumer.poll(Duration::from_millis(500)));
        let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
        polled.unwrap_or_default().iter().map(|message| text(message.body())).collect()
    }
}
