package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.Callable;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;

/** One scenario's surroundings: names of its own, clients that are shut down at its end, and notes for the output. */
final class Env implements AutoCloseable {
    private static final int READ_WRITE = 6;
    /** Members hear of each other at once; but an orderly one asks for a refused lock again only every 20 s. */
    private static final int QUEUE_SECONDS = 45;

    final Run run;
    private final String scenario;
    private final boolean tolerant;
    private final Callable<Void> restart;
    private final Deque<Runnable> cleanup = new ArrayDeque<>();
    private final List<String> notes = new ArrayList<>();

    Env(Run run, String scenario, boolean tolerant, Callable<Void> restart) {
        this.run = run;
        this.scenario = scenario;
        this.tolerant = tolerant;
        this.restart = restart;
    }

    /** A topic or group name that no other scenario or run uses. */
    String name(String suffix) {
        String base = run.prefix + "_" + scenario;
        return suffix.isEmpty() ? base : base + "_" + suffix;
    }

    /** Creates this scenario's topic with so many queues. */
    String topic(int queues) throws Exception {
        return topic("", queues, READ_WRITE);
    }

    String topic(String suffix, int queues, int perm) throws Exception {
        String topic = name(suffix);
        run.createTopic(topic, queues, perm);
        return topic;
    }

    /** Shown below the scenario's line. */
    synchronized void note(String text) {
        notes.add(text);
    }

    synchronized List<String> notes() {
        return List.copyOf(notes);
    }

    /** Something that Apache's broker is known to do wrong. It fails the scenario, unless the run tolerates it; then it is noted. */
    void defect(String what, int count, int of) {
        if (count == 0) {
            return;
        }
        if (!tolerant) {
            throw new Mismatch(what, "none of " + of, count);
        }
        note(what + ": " + count + " of " + of);
    }

    /** Comes back when the broker was restarted. */
    void awaitRestart() throws Exception {
        restart.call();
    }

    DefaultMQProducer producer(String suffix) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(name(suffix));
        run.configure(producer);
        producer.setSendMsgTimeout(10_000);
        producer.start();
        onClose(producer::shutdown);
        return producer;
    }

    TransactionMQProducer transactional(String group, TransactionListener listener) throws Exception {
        TransactionMQProducer producer = new TransactionMQProducer(group);
        run.configure(producer);
        producer.setSendMsgTimeout(10_000);
        producer.setTransactionListener(listener);
        producer.start();
        onClose(producer::shutdown);
        return producer;
    }

    /** A push consumer that is not started yet, from the first offset on. */
    DefaultMQPushConsumer push(String group, String topic, String tags) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        run.configure(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setConsumeThreadMin(4);
        consumer.setConsumeThreadMax(4);
        consumer.subscribe(topic, tags);
        onClose(consumer::shutdown);
        return consumer;
    }

    /** A started push consumer that accepts everything. */
    DefaultMQPushConsumer accepting(String group, String topic, String tags, Seen seen) throws Exception {
        DefaultMQPushConsumer consumer = push(group, topic, tags);
        consumer.registerMessageListener(accept(seen));
        consumer.start();
        return consumer;
    }

    static MessageListenerConcurrently accept(Seen seen) {
        return (messages, context) -> {
            messages.forEach(seen::add);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        };
    }

    DefaultLitePullConsumer litePull(String group) {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(group);
        run.configure(consumer);
        consumer.setAutoCommit(false);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        onClose(consumer::shutdown);
        return consumer;
    }

    /** How many queues of a topic this consumer works on. */
    static int queuesOf(DefaultMQPushConsumer consumer, String topic) {
        return (int) consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet().stream()
                .filter(queue -> queue.getTopic().equals(topic))
                .count();
    }

    static void awaitQueues(DefaultMQPushConsumer consumer, String topic, int queues) throws Exception {
        Wait.until("queues of " + topic + " at the consumer", QUEUE_SECONDS, () -> queuesOf(consumer, topic) == queues,
                () -> queuesOf(consumer, topic) + " instead of " + queues);
    }

    /** Sends one message per body through the shared producer; all must be SEND_OK. */
    List<SendResult> send(String topic, List<String> bodies) throws Exception {
        List<SendResult> results = new ArrayList<>();
        for (String body : bodies) {
            results.add(send(message(topic, body)));
        }
        return results;
    }

    SendResult send(Message message) throws Exception {
        SendResult result = run.producer.send(message);
        Expect.equal("send status", SendStatus.SEND_OK, result.getSendStatus());
        return result;
    }

    static Message message(String topic, String body) {
        return new Message(topic, body.getBytes(StandardCharsets.UTF_8));
    }

    /** {@code prefix-0} to {@code prefix-(count-1)}. */
    static List<String> bodies(String prefix, int count) {
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            bodies.add(prefix + "-" + i);
        }
        return bodies;
    }

    void onClose(Runnable action) {
        synchronized (cleanup) {
            cleanup.push(action);
        }
    }

    @Override
    public void close() {
        synchronized (cleanup) {
            while (!cleanup.isEmpty()) {
                try {
                    cleanup.pop().run();
                } catch (RuntimeException e) {
                    note("a client did not shut down: " + e);
                }
            }
        }
    }
}
