//! Reads a topic from its beginning to where it ends now.
//!
//! `cargo run -p gantry-client --example pull_consumer -- 127.0.0.1:9876`

use std::time::Duration;

use gantry_client::{Client, ClientOptions, SeekTo};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let client = Client::connect(ClientOptions::new(name_server)).await?;
    let consumer = client.pull_consumer("auditors").start().await?;
    consumer.assign(consumer.queues("orders").await?);
    for queue in consumer.assigned() {
        consumer.seek(&queue, SeekTo::Begin).await?;
    }
    loop {
        let messages = consumer.poll(Duration::from_secs(1)).await?;
        if messages.is_empty() {
            break;
        }
        for message in messages {
            println!("{} {}", message.queue(), String::from_utf8_lossy(message.body()));
        }
        consumer.commit().await?;
    }
    client.shutdown().await;
    Ok(())
}
