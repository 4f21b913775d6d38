//! Transactions: a message that consumers see only if the local work succeeds.
//!
//! The message is sent as a half message, which no consumer sees; the local work runs; commit makes the
//! message visible, rollback drops it. When neither reaches the broker (a crash, a lost connection, an
//! undecided handle) the broker asks any producer of the group: the checker answers from what the local
//! work left behind.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use gantry_proto::names::{BrokerName, GroupName};
use gantry_proto::record::{OffsetMsgId, PropertiesBuf, TransactionFlag, keys};
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::transaction::{
    CheckTransactionStateHeader, EndTransactionHeader, outcome,
};

use crate::client::{Client, Core};
use crate::connection::FromServer;
use crate::error::{Error, ErrorKind, Result};
use crate::members::Checker;
use crate::message::{Message, Received};
use crate::producer::{Producer, ProducerBuilder, SendReceipt};
use crate::trace::Ended;

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The message is delivered.
    Commit,
    /// The message is dropped.
    Rollback,
    /// Not known yet: the broker will ask the checker.
    Unknown,
}

impl Resolution {
    const fn to_wire(self) -> i32 {
        match self {
            Self::Commit => outcome::COMMIT,
            Self::Rollback => outcome::ROLLBACK,
            Self::Unknown => outcome::UNKNOWN,
        }
    }
}

impl Client {
    /// A transaction producer of `group`. `checker` tells how a transaction ended that a broker asks about:
    /// of this or of any other producer of the group, also of an earlier run of the program.
    ///
    /// ```no_run
    /// # async fn example(client: gantry_client::Client) -> gantry_client::Result<()> {
    /// use gantry_client::{Message, Resolution};
    ///
    /// let producer = client
    ///     .transaction_producer("payments", |message| async move {
    ///         // Look up in the database whether the payment of message.keys() was booked.
    ///         Resolution::Unknown
    ///     })
    ///     .start()
    ///     .await?;
    /// let message = Message::new("paid", "17").key("payment-17");
    /// let (receipt, end) = producer.send(message, |receipt| async move { Resolution::Commit }).await?;
    /// # let _ = (receipt, end);
    /// # Ok(()) }
    /// ```
    pub fn transaction_producer<F, A>(&self, group: impl AsRef<str>, checker: F) -> TransactionProducerBuilder
    where
        F: Fn(Received) -> A + Send + Sync + 'static,
        A: Future<Output = Resolution> + Send + 'static,
    {
        let checker: Checker = Arc::new(move |message| Box::pin(checker(message)));
        TransactionProducerBuilder { producer: self.producer(group), checker }
    }
}

/// How a transaction producer behaves; made by [`Client::transaction_producer`].
pub struct TransactionProducerBuilder {
    producer: ProducerBuilder,
    checker: Checker,
}

impl TransactionProducerBuilder {
    /// Sets how messages are sent; see [`ProducerBuilder`].
    #[must_use]
    pub fn sending(mut self, change: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> Self {
        self.producer = change(self.producer);
        self
    }

    /// Starts the producer and makes it known to the template's brokers, so that they can ask it.
    #[expect(clippy::unused_async, reason = "every part of a client is started with await")]
    pub async fn start(self) -> Result<TransactionProducer> {
        Ok(TransactionProducer { producer: self.producer.start_with(Some(self.checker))? })
    }
}

impl std::fmt::Debug for TransactionProducerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionProducerBuilder").field("producer", &self.producer).finish_non_exhaustive()
    }
}

/// Sends messages in transactions. Clones are the same producer.
#[derive(Clone, Debug)]
pub struct TransactionProducer {
    producer: Producer,
}

impl TransactionProducer {
    /// The group.
    pub fn group(&self) -> &GroupName {
        self.producer.group()
    }

    /// Sends a half message, runs `local`, and ends the transaction as that says.
    ///
    /// An error of the half message means that `local` did not run. When only the end could not be told
    /// the result is still `Ok`: the broker will ask the checker. The second value is what was told:
    /// [`Resolution::Unknown`] when nothing was.
    pub async fn send<F, A>(&self, message: Message, local: F) -> Result<(SendReceipt, Resolution)>
    where
        F: FnOnce(SendReceipt) -> A,
        A: Future<Output = Resolution>,
    {
        let open = self.begin(message).await?;
        let receipt = open.receipt().clone();
        let resolution = local(receipt.clone()).await;
        let told = match open.end(resolution).await {
            Ok(()) => resolution,
            Err(error) => {
                let id = &receipt.message_id;
                tracing::info!(%id, "the end of a transaction was not told, the broker will ask: {error}");
                Resolution::Unknown
            }
        };
        Ok((receipt, told))
    }

    /// Sends a half message; the transaction is open until the handle ends it. Dropping the handle leaves it
    /// to the checker.
    pub async fn begin(&self, mut message: Message) -> Result<OpenTransaction> {
        if message.properties.view().delay_level().is_some() {
            return Err(Error::invalid("a transaction's message cannot have a delay"));
        }
        message.properties.set(keys::TRAN_MSG, "true");
        message.properties.set(keys::PGROUP, self.producer.group().as_str());
        let mut outgoing = self.producer.prepare(message)?;
        outgoing.sys_flag = outgoing.sys_flag.with_transaction(TransactionFlag::Prepared);
        let receipt = self.producer.deliver(&outgoing, None).await?;
        let half: OffsetMsgId = receipt.offset_message_id.parse()?;
        let traced = self.producer.core().tracer.is_some().then_some(outgoing.properties);
        Ok(OpenTransaction { producer: self.producer.clone(), receipt, half, traced })
    }

    /// Leaves the group. Transactions that are open are then left to its other producers.
    pub async fn shutdown(&self) {
        self.producer.shutdown().await;
    }
}

/// A half message that is owed an end. Dropped undecided it is *unknown*, never committed.
#[must_use = "a transaction that is not ended waits for the broker to ask the checker"]
#[derive(Debug)]
pub struct OpenTransaction {
    producer: Producer,
    receipt: SendReceipt,
    half: OffsetMsgId,
    /// The message's properties, where its end is to be written down.
    traced: Option<PropertiesBuf>,
}

impl OpenTransaction {
    /// The half message: its queue offset counts in the broker's half topic.
    pub const fn receipt(&self) -> &SendReceipt {
        &self.receipt
    }

    /// Makes the message visible. After an error the broker may or may not have heard it; it will ask
    /// the checker if not.
    pub async fn commit(self) -> Result<()> {
        self.end(Resolution::Commit).await
    }

    /// Drops the message. After an error the broker may or may not have heard it; it will ask the checker
    /// if not.
    pub async fn rollback(self) -> Result<()> {
        self.end(Resolution::Rollback).await
    }

    /// One attempt only: a broker that carried it out without our hearing of it might, if it is Apache's,
    /// deliver the message again.
    async fn end(self, resolution: Resolution) -> Result<()> {
        if resolution == Resolution::Unknown {
            return Ok(());
        }
        let core = self.producer.core();
        let route = core.route_to_send(&self.receipt.queue.topic).await?;
        let broker = &self.receipt.queue.broker;
        let link = route.broker(broker).and_then(|broker| broker.master.as_ref());
        let link = link.ok_or_else(|| {
            Error::new(ErrorKind::NoRoute, format!("broker {broker}, which has the half message, is gone"))
        })?;
        let header = EndTransactionHeader {
            topic: Some(self.receipt.queue.topic.as_str()),
            producer_group: self.producer.group().as_str(),
            tran_state_table_offset: Some(self.receipt.queue_offset.to_wire()),
            commit_log_offset: Some(self.half.offset.to_wire()),
            commit_or_rollback: resolution.to_wire(),
            from_transaction_check: Some(false),
            msg_id: &self.receipt.message_id,
            transaction_id: self.receipt.transaction_id.as_deref().or(Some(&self.receipt.message_id)),
            broker_name: Some(broker.as_str()),
        };
        let connection = core.broker(link).await?;
        let answer = connection.call(RequestCode::EndTransaction, &header, &[], core.timeout()).await;
        if let (Some(tracer), Some(properties), true) = (&core.tracer, &self.traced, answer.is_ok()) {
            let end = Ended {
                topic: &self.receipt.queue.topic,
                message_id: &self.receipt.message_id,
                transaction_id: header.transaction_id.unwrap_or_default(),
                store_host: link.address(),
                resolution,
                from_check: false,
            };
            tracer.ended(self.producer.group(), properties.view(), &end);
        }
        answer.map(drop).map_err(|error| error.during("ending a transaction"))
    }
}

/// Answers a broker that asks how a transaction ended. Runs the checker in a task of its own.
pub(crate) fn answer_check(core: &Arc<Core>, request: FromServer) {
    let Ok(permit) = Arc::clone(&core.checks).try_acquire_owned() else {
        tracing::warn!("too many checks are running, one is left to the broker's next try");
        return;
    };
    let task_core = Arc::clone(core);
    core.tasks().spawn(async move {
        let _permit = permit;
        tokio::select! {
            () = task_core.stop().cancelled() => {}
            checked = check(&task_core, &request) => if let Err(error) = checked {
                tracing::warn!(broker = %request.connection.address(), "a check was not answered: {error}");
            }
        }
    });
}

async fn check(core: &Core, request: &FromServer) -> Result<()> {
    let OwnedCommand { body, .. } = &request.command;
    let header: CheckTransactionStateHeader = request.command.header()?;
    let broker = BrokerName::internal(header.broker_name.as_deref().unwrap_or_default());
    let message = Received::take(&mut Bytes::clone(body), &broker, None)?;
    let group = message.properties().producer_group().unwrap_or_default().to_owned();
    let Some(checker) = core.members.checker(&group) else {
        return Err(Error::invalid(format!("no producer of group {group:?} here has a checker")));
    };
    let traced = core.tracer.as_ref().map(|tracer| (tracer, PropertiesBuf::from(message.properties())));
    let id = message.properties().uniq_key().map(str::to_owned).or(header.msg_id).unwrap_or_default();
    let topic = message.topic().clone();
    let resolution = checker(message).await;
    if resolution == Resolution::Unknown {
        return Ok(());
    }
    let end = EndTransactionHeader {
        topic: Some(topic.as_str()),
        producer_group: &group,
        tran_state_table_offset: Some(header.tran_state_table_offset),
        commit_log_offset: Some(header.commit_log_offset),
        commit_or_rollback: resolution.to_wire(),
        from_transaction_check: Some(true),
        msg_id: &id,
        transaction_id: header.transaction_id.as_deref(),
        broker_name: header.broker_name.as_deref(),
    };
    request.connection.tell(RequestCode::EndTransaction, &end, &[], core.timeout()).await?;
    if let Some((tracer, properties)) = traced {
        let end = Ended {
            topic: &topic,
            message_id: &id,
            transaction_id: header.transaction_id.as_deref().unwrap_or_default(),
            store_host: request.connection.address(),
            resolution,
            from_check: true,
        };
        tracer.ended(&GroupName::internal(&group), properties.view(), &end);
    }
    Ok(())
}
