package gantry.suite;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;

/** Fewer and more queues while a topic is in use: 8, 4 and 8 again. */
final class Scaling {
    private static final int MANY = 8;
    private static final int FEW = 4;
    private static final int READ_WRITE = 6;
    private static final int KEYS = 16;
    /** How often clients ask for routes here; 30 s by default. */
    private static final int ROUTE_MILLIS = 500;

    private Scaling() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("scale-drain", env -> scale(env, "drain")),
                Scenario.of("scale-ordered", env -> scale(env, "ordered")));
    }

    /** A producer that keeps sending, and who consumes it. */
    private static void scale(Env env, String mode) throws Exception {
        String topic = env.name("");
        declare(env, topic, MANY, mode);
        Wait.until("route", 10, () -> readQueues(env, topic) == MANY);
        Seen concurrent = new Seen();
        Seen orderly = new Seen();
        List<DefaultMQPushConsumer> consumers = List.of(concurrently(env, topic, concurrent), orderly(env, topic, orderly));
        for (DefaultMQPushConsumer consumer : consumers) {
            Env.awaitQueues(consumer, topic, MANY);
        }
        Sender sender = new Sender(env, topic);
        sender.awaitMore(200);
        declare(env, topic, FEW, mode);
        Expect.equal("queues that are written", FEW, writeQueues(env, topic));
        Wait.until("the sealed queues to go", 60, () -> readQueues(env, topic) == FEW);
        sender.awaitMore(200);
        for (DefaultMQPushConsumer consumer : consumers) {
            Env.awaitQueues(consumer, topic, FEW);
        }
        // In order, one change waits for the other.
        Wait.until("more queues again", 60, () -> {
            try {
                declare(env, topic, MANY, mode);
                return true;
            } catch (Exception e) {
                return false;
            }
        });
        Expect.equal("queues that are read", MANY, readQueues(env, topic));
        sender.awaitMore(400);
        for (DefaultMQPushConsumer consumer : consumers) {
            Env.awaitQueues(consumer, topic, MANY);
        }
        List<String> sent = sender.finish();
        for (Seen seen : List.of(concurrent, orderly)) {
            Wait.until("all messages", 60, () -> seen.distinct() >= sent.size(), () -> seen.distinct() + " of " + sent.size());
            Expect.sameBag("consumed", sent, seen.bodies());
        }
        if (mode.equals("ordered")) {
            inOrder(orderly.bodies());
        }
    }

    /** The numbers of each key ascend. */
    private static void inOrder(List<String> bodies) {
        Map<String, Integer> last = new HashMap<>();
        for (String body : bodies) {
            String[] parts = body.split(" ");
            int number = Integer.parseInt(parts[1]);
            Integer before = last.put(parts[0], number);
            if (before != null && before >= number) {
                throw new Mismatch("numbers of " + parts[0], "one behind " + before, number);
            }
        }
    }

    private static void declare(Env env, String topic, int queues, String mode) throws Exception {
        TopicConfig config = new TopicConfig(topic, queues, queues, READ_WRITE);
        config.getAttributes().put("+gantry.scale", mode);
        env.run.admin.createAndUpdateTopicConfig(env.run.brokerAddress, config);
    }

    private static int readQueues(Env env, String topic) {
        try {
            return env.run.admin.examineTopicRouteInfo(topic).getQueueDatas().get(0).getReadQueueNums();
        } catch (Exception e) {
            return -1;
        }
    }

    private static int writeQueues(Env env, String topic) throws Exception {
        return env.run.admin.examineTopicRouteInfo(topic).getQueueDatas().get(0).getWriteQueueNums();
    }

    private static DefaultMQPushConsumer concurrently(Env env, String topic, Seen seen) throws Exception {
        DefaultMQPushConsumer consumer = env.push(env.name("concurrent"), topic, "*");
        consumer.setPollNameServerInterval(ROUTE_MILLIS);
        consumer.registerMessageListener(Env.accept(seen));
        consumer.start();
        return consumer;
    }

    private static DefaultMQPushConsumer orderly(Env env, String topic, Seen seen) throws Exception {
        DefaultMQPushConsumer consumer = env.push(env.name("orderly"), topic, "*");
        consumer.setPollNameServerInterval(ROUTE_MILLIS);
        consumer.registerMessageListener((List<MessageExt> messages, ConsumeOrderlyContext context) -> {
            messages.forEach(seen::add);
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        return consumer;
    }

    /** Sends messages of a few keys, each key's in order, until it is told to finish. */
    private static final class Sender {
        private final Thread thread;
        private final AtomicBoolean finished = new AtomicBoolean();
        private final AtomicInteger count = new AtomicInteger();
        private final AtomicReference<Exception> failure = new AtomicReference<>();
        private final List<String> sent = new ArrayList<>();

        Sender(Env env, String topic) throws Exception {
            DefaultMQProducer producer = new DefaultMQProducer(env.name("producer"));
            env.run.configure(producer);
            producer.setPollNameServerInterval(ROUTE_MILLIS);
            producer.start();
            env.onClose(producer::shutdown);
            thread = new Thread(() -> {
                try {
                    while (!finished.get()) {
                        send(producer, topic, count.get());
                        count.incrementAndGet();
                        Thread.sleep(5);
                    }
                } catch (Exception e) {
                    failure.set(e);
                }
            });
            thread.start();
        }

        private void send(DefaultMQProducer producer, String topic, int number) throws Exception {
            String key = "key-" + number % KEYS;
            Message message = Env.message(topic, key + " " + number);
            MessageAccessor.putProperty(message, MessageConst.PROPERTY_SHARDING_KEY, key);
            Expect.equal("status", SendStatus.SEND_OK,
                    producer.send(message, new SelectMessageQueueByHash(), key).getSendStatus());
            sent.add(key + " " + number);
        }

        void awaitMore(int messages) throws Exception {
            int target = count.get() + messages;
            Wait.until(messages + " more messages", 30, () -> count.get() >= target || failure.get() != null);
            check();
        }

        List<String> finish() throws Exception {
            finished.set(true);
            thread.join();
            check();
            return sent;
        }

        private void check() throws Exception {
            if (failure.get() != null) {
                throw failure.get();
            }
        }
    }
}
