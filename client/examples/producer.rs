//! Sends a few messages: one, one later, one to the queue of a key, and a hundred in one batch.
//!
//! `cargo run -p gantry-client --example producer -- 127.0.0.1:9876`

use gantry_client::{Client, ClientOptions, Message};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let client = Client::connect(ClientOptions::new(name_server)).await?;
    let producer = client.producer("waiters").start().await?;

    let receipt = producer.send(Message::new("orders", "one tea").tag("drinks").key("order-1")).await?;
    println!("sent {} to {} at {}", receipt.message_id, receipt.queue, receipt.queue_offset);

    producer.send(Message::new("orders", "the bill").delay_level(2)).await?;
    producer.send(Message::new("orders", "one cake").sharding_key("table-4")).await?;
    let many = (0..100).map(|number| Message::new("orders", format!("biscuit {number}")));
    println!("sent {} in a batch", producer.send_batch(many).await?.len());

    producer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
