package gantry.suite;

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * The store exchange: {@code write} fills one broker, {@code read} shows what another one makes of the files.
 *
 * <p>{@code write} prints one JSON line per acknowledged send ({@code "kind"} says which sort) and per group's offset.
 * {@code read} prints one line {@code "kind":"message"} per visible message of every topic, one {@code "kind":"offset"} per
 * committed offset. The two share {@code topic}, {@code uniqKey}, {@code sha1}, {@code tags}, {@code keys} and {@code flag}; for
 * all kinds but delayed messages and transactions, whose answer tells another queue's offset, also {@code queueId} and
 * {@code queueOffset}.
 *
 * <p>{@code read --settle SECONDS} first answers the checks of the open transactions: those whose body ends in {@code commit} are
 * committed, the others rolled back; it consumes the retried message ({@code "kind":"retried"}) and waits for the delayed ones.
 */
public final class Store {
    /** 1 minute: the broker is stopped before that. */
    private static final int PENDING_LEVEL = 5;
    private static final long OP_BATCH_MILLIS = 5_000;
    private static final String[] TOPICS = {"normal", "batch", "delayed", "transactions", "retry", "offsets"};

    private final Env env;
    private final PrintStream out;
    private final String group;

    private Store(Env env, PrintStream out) {
        this.env = env;
        this.out = out;
        group = env.name("group");
    }

    public static void main(String[] args) throws Exception {
        PrintStream out = Main.quietOutput();
        String namesrv = null;
        String prefix = null;
        String what = null;
        int settle = 0;
        for (int i = 0; i < args.length; i++) {
            switch (args[i]) {
                case "--namesrv" -> namesrv = Options.value(args, i++);
                case "--prefix" -> prefix = Options.value(args, i++);
                case "--settle" -> settle = Integer.parseInt(Options.value(args, i++));
                default -> what = args[i];
            }
        }
        if (namesrv == null || prefix == null || what == null || !List.of("write", "read").contains(what)) {
            System.err.println("usage: gantry.suite.Store --namesrv HOST:PORT --prefix RUNID write|read [--settle SECONDS]");
            System.exit(2);
        }
        int code = 0;
        try (Run run = new Run(namesrv, prefix);
                Env env = new Env(run, "store", false, () -> null)) {
            Store store = new Store(env, out);
            if (what.equals("write")) {
                store.write();
            } else {
                store.read(settle);
            }
        } catch (Exception e) {
            e.printStackTrace();
            code = 1;
        }
        System.exit(code);
    }

    private void write() throws Exception {
        writeNormal();
        writeBatch();
        writeOffsets();
        writeRetry();
        writeDelayed();
        writeTransactions();
    }

    private void writeNormal() throws Exception {
        String topic = env.topic("normal", 4, 6);
        for (int i = 0; i < 40; i++) {
            String body = "normal-" + i + "-" + "x".repeat(i * 37);
            Message message = new Message(topic, "tag" + i % 3, "key" + i + " all", body.getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("n", Integer.toString(i));
            message.putUserProperty("unicode", "Grüße 世界 🚀");
            message.setFlag(i);
            acknowledged("normal", message, env.send(message));
        }
        Message large = Env.message(topic, "compressed ".repeat(10_000));
        byte[] body = large.getBody();
        acknowledged("normal", large, body, env.send(large));
    }

    private void writeBatch() throws Exception {
        String topic = env.topic("batch", 2, 6);
        List<Message> batch = new ArrayList<>();
        for (int i = 0; i < 5; i++) {
            batch.add(new Message(topic, "tag", "batch-key" + i, ("batch-" + i).getBytes(StandardCharsets.UTF_8)));
        }
        SendResult result = env.run.producer.send(batch);
        String[] unique = result.getMsgId().split(",");
        String[] physical = result.getOffsetMsgId().split(",");
        for (int i = 0; i < 5; i++) {
            print("batch", batch.get(i), batch.get(i).getBody(), unique[i], physical[i],
                    result.getMessageQueue().getQueueId(), result.getQueueOffset() + i);
        }
    }

    private void writeDelayed() throws Exception {
        String topic = env.topic("delayed", 2, 6);
        for (int i = 0; i < 6; i++) {
            Message message = new Message(topic, "tag", "delayed-key" + i, ("delayed-" + i).getBytes(StandardCharsets.UTF_8));
            message.setDelayTimeLevel(i < 3 ? PENDING_LEVEL : 4);
            acknowledged("delayed", message, env.send(message));
        }
    }

    private void writeTransactions() throws Exception {
        String topic = env.topic("transactions", 2, 6);
        // Checks stay unanswered here: the broker that gets the files must ask again.
        TransactionMQProducer producer = env.transactional(env.name("producers"), new Transactions.Decider(message ->
                switch (message.getUserProperty("end")) {
                    case "committed" -> LocalTransactionState.COMMIT_MESSAGE;
                    case "rolled back" -> LocalTransactionState.ROLLBACK_MESSAGE;
                    default -> LocalTransactionState.UNKNOW;
                }, message -> LocalTransactionState.UNKNOW));
        for (String end : List.of("committed", "rolled back", "open")) {
            for (int i = 0; i < 8; i++) {
                String body = end + "-" + i + (end.equals("open") ? i % 2 == 0 ? "-commit" : "-rollback" : "");
                Message message = new Message(topic, "tag", end + i, body.getBytes(StandardCharsets.UTF_8));
                message.putUserProperty("end", end);
                acknowledged(end, message, Transactions.begin(producer, message));
            }
        }
        Transactions.awaitVisible(env, topic, 8);
        // Apache's broker writes down its answers every 3 s; those that it did not are lost when it stops.
        Wait.quiet(OP_BATCH_MILLIS);
    }

    /** A group that consumed half of a topic. */
    private void writeOffsets() throws Exception {
        String topic = env.topic("offsets", 2, 6);
        for (String body : Env.bodies("consumed", 20)) {
            Message message = Env.message(topic, body);
            acknowledged("consumed", message, env.send(message));
        }
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(group, topic, "*", seen);
        Wait.until("20 messages", 30, () -> seen.size() >= 20, seen::size);
        consumer.shutdown();
        for (String body : Env.bodies("unread", 10)) {
            Message message = Env.message(topic, body);
            acknowledged("unread", message, env.send(message));
        }
        offsets(topic);
    }

    /** A message whose consumer asked for it later: it waits for its next attempt. */
    private void writeRetry() throws Exception {
        String topic = env.topic("retry", 1, 6);
        String retryGroup = env.name("retry-group");
        AtomicInteger refused = new AtomicInteger();
        DefaultMQPushConsumer consumer = env.push(retryGroup, topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            refused.incrementAndGet();
            context.setDelayLevelWhenNextConsume(PENDING_LEVEL);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        Message message = new Message(topic, "tag", "retry-key", "retried".getBytes(StandardCharsets.UTF_8));
        acknowledged("retry", message, env.send(message));
        Wait.until("refusal", 30, () -> refused.get() == 1);
        // The consumer moves on once the broker has taken the message back.
        Wait.until("offset after the refusal", 15,
                () -> env.run.admin.examineConsumeStats(retryGroup, topic).computeTotalDiff() == 0);
        consumer.shutdown();
    }

    private void read(int settleSeconds) throws Exception {
        if (settleSeconds > 0) {
            settle(settleSeconds);
        }
        for (String name : TOPICS) {
            String topic = env.name(name);
            for (MessageExt message : env.run.readTopic(topic)) {
                LinkedHashMap<String, Object> line = new LinkedHashMap<>();
                line.put("kind", "message");
                describe(line, topic, message.getMsgId(), message.getTags(), message.getKeys(), message.getBody());
                line.put("queueId", message.getQueueId());
                line.put("queueOffset", message.getQueueOffset());
                line.put("flag", message.getFlag());
                line.put("reconsumeTimes", message.getReconsumeTimes());
                line.put("bornTimestamp", message.getBornTimestamp());
                line.put("storeTimestamp", message.getStoreTimestamp());
                line.put("commitLogOffset", message.getCommitLogOffset());
                Map<String, String> properties = new TreeMap<>(message.getProperties());
                // These two the client adds when it pulls.
                properties.remove(MessageConst.PROPERTY_MIN_OFFSET);
                properties.remove(MessageConst.PROPERTY_MAX_OFFSET);
                line.put("properties", properties);
                out.println(Json.line(line));
            }
        }
        offsets(env.name("offsets"));
        keyed("normal", "all", 40);
        keyed("batch", "batch-key3", 1);
        keyed("transactions", "committed3", 1);
    }

    /** How many messages the key index finds. */
    private void keyed(String name, String key, int most) {
        int found;
        try {
            found = env.run.admin.queryMessage(env.name(name), key, most, 0, Long.MAX_VALUE / 2).getMessageList().size();
        } catch (Exception e) {
            found = 0;
        }
        LinkedHashMap<String, Object> line = new LinkedHashMap<>();
        line.put("kind", "key");
        line.put("topic", env.name(name));
        line.put("key", key);
        line.put("found", found);
        out.println(Json.line(line));
    }

    private void settle(int seconds) throws Exception {
        String topic = env.name("transactions");
        TransactionMQProducer producer = env.transactional(env.name("producers"), new Transactions.Decider(
                m -> LocalTransactionState.UNKNOW,
                message -> Seen.text(message).endsWith("commit") || message.getUserProperty("end").equals("committed")
                        ? LocalTransactionState.COMMIT_MESSAGE : LocalTransactionState.ROLLBACK_MESSAGE));
        // A producer is known to a broker once it has a route to it.
        producer.send(Env.message(env.topic("hello", 1, 6), "hello"));
        Seen retried = new Seen();
        env.accepting(env.name("retry-group"), env.name("retry"), "*", retried);
        long deadline = System.currentTimeMillis() + seconds * 1000L;
        while (System.currentTimeMillis() < deadline
                && (retried.size() < 1 || env.run.readTopic(topic).size() < 12
                || env.run.readTopic(env.name("delayed")).size() < 6)) {
            Thread.sleep(100);
        }
        for (Seen.Delivery delivery : retried.all()) {
            LinkedHashMap<String, Object> line = new LinkedHashMap<>();
            line.put("kind", "retried");
            MessageExt message = delivery.message();
            describe(line, message.getTopic(), message.getMsgId(), message.getTags(), message.getKeys(), message.getBody());
            line.put("reconsumeTimes", message.getReconsumeTimes());
            out.println(Json.line(line));
        }
    }

    private void offsets(String topic) throws Exception {
        var table = env.run.admin.examineConsumeStats(group, topic).getOffsetTable();
        for (int id = 0; id < 2; id++) {
            MessageQueue queue = env.run.queue(topic, id);
            LinkedHashMap<String, Object> line = new LinkedHashMap<>();
            line.put("kind", "offset");
            line.put("group", group);
            line.put("topic", topic);
            line.put("queueId", id);
            line.put("committed", table.get(queue).getConsumerOffset());
            line.put("max", table.get(queue).getBrokerOffset());
            out.println(Json.line(line));
        }
    }

    private void acknowledged(String kind, Message message, SendResult result) {
        acknowledged(kind, message, message.getBody(), result);
    }

    private void acknowledged(String kind, Message message, byte[] body, SendResult result) {
        print(kind, message, body, result.getMsgId(), result.getOffsetMsgId(), result.getMessageQueue().getQueueId(),
                result.getQueueOffset());
    }

    private void print(String kind, Message message, byte[] body, String unique, String physical, int queue, long offset) {
        LinkedHashMap<String, Object> line = new LinkedHashMap<>();
        line.put("kind", kind);
        describe(line, message.getTopic(), unique, message.getTags(), message.getKeys(), body);
        line.put("offsetMsgId", physical);
        line.put("queueId", queue);
        line.put("queueOffset", offset);
        line.put("flag", message.getFlag());
        Map<String, String> own = new TreeMap<>(message.getProperties());
        own.keySet().removeIf(MessageConst.STRING_HASH_SET::contains);
        line.put("userProperties", own);
        out.println(Json.line(line));
    }

    private static void describe(Map<String, Object> line, String topic, String unique, String tags, String keys, byte[] body) {
        line.put("topic", topic);
        line.put("uniqKey", unique);
        line.put("tags", tags);
        line.put("keys", keys);
        line.put("bodyLength", body.length);
        line.put("sha1", Json.sha1(body));
        line.put("body", body.length <= 100 ? new String(body, StandardCharsets.UTF_8) : null);
    }
}
