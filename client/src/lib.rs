//! Producers and consumers for Gantry and Apache RocketMQ.
//!
//! ```no_run
//! use gantry_client::{Client, ClientOptions, Message};
//!
//! #[tokio::main]
//! async fn main() -> gantry_client::Result<()> {
//!     let client = Client::connect(ClientOptions::new("127.0.0.1:9876")).await?;
//!     let producer = client.producer("waiters").start().await?;
//!     let receipt = producer.send(Message::new("orders", "one tea").tag("drinks")).await?;
//!     println!("sent {} to {}", receipt.message_id, receipt.queue);
//!     client.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! A [`Client`] is the way to one cluster: it holds the connections, the routes and the heartbeats. Everything
//! else is made from it and shares it:
//!
//! | | |
//! |---|---|
//! | [`Client::producer`] | send: one by one, in batches, one-way, pipelined, to the queue of a key; request and wait for the reply |
//! | [`Client::transaction_producer`] | send if and only if the local work succeeds |
//! | [`Client::push_consumer`] | consume as messages come, sharing the queues with the group's other members |
//! | [`Client::pull_consumer`] | consume at your own pace: assign, seek, poll, commit |
//! | [`Client::admin`] | topics, groups, offsets, stored messages |
//!
//! Every call can be dropped at any await without harm to the connection or to what was acknowledged.
//! Connections are made again and routes asked for again as needed. Nothing here starts a runtime: call it
//! from within one of tokio's.

mod admin;
mod batch;
mod client;
mod compress;
mod connection;
mod dispatch;
mod error;
mod filter;
mod link;
mod members;
mod message;
mod offsets;
mod options;
mod producer;
mod pull;
mod push;
mod queues;
mod rebalance;
mod recall;
mod request;
mod retry;
mod routes;
mod trace;
mod transaction;

pub use admin::{Admin, EndedTransaction, Traced, TransactionKind};
pub use batch::BatchError;
pub use client::Client;
pub use error::{Error, ErrorKind, Result};
pub use gantry_proto as proto;
pub use message::{Message, MessageQueue, Received};
pub use options::ClientOptions;
pub use producer::{Producer, ProducerBuilder, SendReceipt, SendStatus, SendTicket};
pub use pull::{PullConsumer, PullConsumerBuilder, SeekTo};
pub use push::{ConsumeFrom, Outcome, PushConsumer, PushConsumerBuilder};
pub use queues::{PullStatus, Pulled};
pub use request::Reply;
pub use transaction::{OpenTransaction, Resolution, TransactionProducer, TransactionProducerBuilder};
