//! Requests and their replies.

use std::time::Duration;

use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{
    Client, ClientOptions, ConsumeFrom, ErrorKind, Message, Outcome, Producer, PushConsumer, Received,
};
use tokio::sync::mpsc;

use super::{topic, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A consumer that replies to each message of `topic` with `re: ` and its body.
pub async fn replier(client: &Client, topic: &str) -> PushConsumer {
    let producer = client.producer("repliers").start().await.unwrap();
    let consumer = client.push_consumer(format!("answering-{topic}")).subscribe(topic, "*");
    let reply = |request: &Received| {
        let body = format!("re: {}", String::from_utf8_lossy(request.body()));
        request.reply(body).unwrap().property("own", "value")
    };
    let replying = consumer.from(ConsumeFrom::First).start(move |request| {
        let (producer, reply) = (producer.clone(), reply(&request));
        async move {
            match producer.send(reply).await {
                Ok(_) => Outcome::Success,
                Err(_) => Outcome::LaterAtLevel(1),
            }
        }
    });
    let consumer = replying.await.unwrap();
    until("the replier's queues", || async { !consumer.assigned().is_empty() }).await;
    consumer
}

/// What is replied to `body`.
pub async fn ask(producer: &Producer, topic: &str, body: &str) -> gantry_client::Result<String> {
    let reply = producer.request(Message::new(topic, body.to_owned()), PATIENCE).await?;
    assert_eq!(reply.property("own"), Some("value"));
    assert!(reply.properties().is_reply() && reply.property("ARRIVE_TIME").is_some());
    Ok(String::from_utf8_lossy(reply.body()).into_owned())
}

/// Requests that are answered, and those that are not.
pub async fn requests(client: &Client, name_server: &str) {
    topic(client, "Questions", 2).await;
    let other = Client::connect(ClientOptions::new(name_server)).await.unwrap();
    let answering = replier(&other, "Questions").await;
    let producer = client.producer("requesters").start().await.unwrap();
    assert_eq!(ask(&producer, "Questions", "how much?").await.unwrap(), "re: how much?");
    let large = "large ".repeat(10_000);
    assert_eq!(ask(&producer, "Questions", &large).await.unwrap(), format!("re: {large}"));
    let many = (0..50).map(|number| {
        let producer = producer.clone();
        tokio::spawn(async move {
            let body = number.to_string();
            assert_eq!(ask(&producer, "Questions", &body).await.unwrap(), format!("re: {body}"));
        })
    });
    for asked in many.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
    answering.shutdown().await;
    let waited = producer.request(Message::new("Questions", "anybody?"), Duration::from_millis(200)).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::Timeout);
    requester_gone(client, name_server).await;
    other.shutdown().await;
}

/// Who replies to a requester that is gone is told so.
async fn requester_gone(client: &Client, name_server: &str) {
    topic(client, "Parting", 1).await;
    let (sender, mut received) = mpsc::channel(8);
    let consumer = client.push_consumer("parting").subscribe("Parting", "*").from(ConsumeFrom::First);
    let consuming = consumer.start(move |request| {
        let sender = sender.clone();
        async move {
            sender.send(request).await.unwrap();
            Outcome::Success
        }
    });
    let consumer = consuming.await.unwrap();
    let leaving = Client::connect(ClientOptions::new(name_server)).await.unwrap();
    let requester = leaving.producer("requesters").start().await.unwrap();
    let asking = tokio::spawn(async move { ask(&requester, "Parting", "I am off").await });
    let request = received.recv().await.unwrap();
    leaving.shutdown().await;
    asking.abort();
    let producer = client.producer("repliers").start().await.unwrap();
    let error = producer.send(request.reply("too late").unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::SystemError), "{error}");
    producer.send(Message::new("Parting", "no request")).await.unwrap();
    let plain = received.recv().await.unwrap();
    assert_eq!(plain.reply("?").unwrap_err().kind(), ErrorKind::Invalid);
    consumer.shutdown().await;
}
