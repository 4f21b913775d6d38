//! A message that is delivered only if the payment was booked.
//!
//! `cargo run -p gantry-client --example transaction -- 127.0.0.1:9876`

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_client::{Client, ClientOptions, Message, Resolution};

/// What in a real program is a table of the database in which the payment is booked.
type Booked = Arc<Mutex<HashSet<String>>>;

fn is_booked(booked: &Booked, payment: &str) -> bool {
    booked.lock().unwrap_or_else(PoisonError::into_inner).contains(payment)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let client = Client::connect(ClientOptions::new(name_server)).await?;
    let booked = Booked::default();

    // Asked when a commit or rollback did not arrive: the database knows.
    let known = Arc::clone(&booked);
    let checker = move |message: gantry_client::Received| {
        let found = message.keys().any(|payment| is_booked(&known, payment));
        async move { if found { Resolution::Commit } else { Resolution::Rollback } }
    };
    let producer = client.transaction_producer("payments", checker).start().await?;

    let message = Message::new("paid", "17.50").key("payment-1");
    let (receipt, end) = producer
        .send(message, |_| async {
            booked.lock().unwrap_or_else(PoisonError::into_inner).insert("payment-1".to_owned());
            Resolution::Commit
        })
        .await?;
    println!("{}: {end:?}", receipt.message_id);

    // By hand: a transaction that is dropped is undecided, and the checker will be asked.
    let open = producer.begin(Message::new("paid", "99.00").key("payment-2")).await?;
    open.rollback().await?;

    producer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
