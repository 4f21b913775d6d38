//! Prints what comes until Ctrl-C.
//!
//! `cargo run -p gantry-client --example push_consumer -- 127.0.0.1:9876`

use gantry_client::{Client, ClientOptions, ConsumeFrom, Outcome};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let client = Client::connect(ClientOptions::new(name_server)).await?;
    let consumer = client
        .push_consumer("kitchen")
        .subscribe("orders", "*")
        .from(ConsumeFrom::First)
        .start(|message| async move {
            println!("{} {}", message.message_id(), String::from_utf8_lossy(message.body()));
            Outcome::Success
        })
        .await?;

    tokio::signal::ctrl_c().await?;
    // Finishes what is being processed and commits.
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
