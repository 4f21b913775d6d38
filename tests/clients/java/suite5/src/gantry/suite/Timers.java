package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Messages with a time of their own, and their recall. */
final class Timers {
    /** How late a message may be on a busy machine; that it is not early is exact. */
    private static final long LATE_MILLIS = 10_000;
    private static final long DAY_MILLIS = 24 * 3600 * 1000L;
    private static final int MESSAGE_ILLEGAL = 13;
    private static final int ILLEGAL_OPERATION = 604;

    private Timers() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("timer", Timers::each),
                Scenario.of("timer-far", Timers::far),
                Scenario.of("timer-recall", Timers::recall),
                Scenario.restarting("timer-restart", Timers::restart));
    }

    private static Message message(String topic, String body) {
        return new Message(topic, "tag", "key-" + body, body.getBytes(StandardCharsets.UTF_8));
    }

    private static void each(Env env) throws Exception {
        String topic = env.topic(2);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(env.name("group"), topic, "*", seen);
        Env.awaitQueues(consumer, topic, 2);
        Message seconds = message(topic, "seconds");
        seconds.setDelayTimeSec(3);
        Message millis = message(topic, "millis");
        millis.setDelayTimeMs(1_500);
        Message at = message(topic, "at");
        long start = System.currentTimeMillis();
        at.setDeliverTimeMs(start + 2_200);
        Message past = message(topic, "past");
        past.setDeliverTimeMs(start - DAY_MILLIS);
        for (Message message : List.of(seconds, millis, at)) {
            Expect.holds("recall handle", env.send(message).getRecallHandle() != null, null);
        }
        Expect.equal("recall handle of a message of the past", null, env.send(past).getRecallHandle());
        Wait.until("4 messages", 30, () -> seen.size() >= 4, seen::bodies);
        Wait.quiet(500);
        // Two are due so long after their sends, and two queues are read side by side: only the times are certain.
        Map<String, Long> delays = Map.of("past", 0L, "millis", 1_500L, "at", 2_200L, "seconds", 3_000L);
        Expect.equal("messages", new TreeSet<>(delays.keySet()), new TreeSet<>(seen.bodies()));
        for (Seen.Delivery delivery : seen.all()) {
            MessageExt message = delivery.message();
            long delay = delays.get(delivery.body());
            Expect.between("milliseconds from sending " + delivery.body() + " to its arrival", delay,
                    delay + LATE_MILLIS, delivery.atMillis() - start);
            Expect.equal("topic", topic, message.getTopic());
            Expect.equal("tag", "tag", message.getTags());
            Expect.equal("key", "key-" + delivery.body(), message.getKeys());
        }
    }

    private static void far(Env env) throws Exception {
        String topic = env.topic(1);
        DefaultMQProducer producer = env.producer("producer");
        Message far = message(topic, "far");
        far.setDelayTimeMs(40 * DAY_MILLIS);
        Expect.holds("recall handle", producer.send(far).getRecallHandle() != null, null);
        Message farther = message(topic, "farther");
        farther.setDelayTimeMs(400 * DAY_MILLIS);
        Expect.refused("a message beyond the longest delay", MESSAGE_ILLEGAL, () -> producer.send(farther));
    }

    private static void recall(Env env) throws Exception {
        String topic = env.topic(2);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(env.name("group"), topic, "*", seen);
        Env.awaitQueues(consumer, topic, 2);
        DefaultMQProducer producer = env.producer("producer");
        List<SendResult> results = new ArrayList<>();
        for (int i = 0; i < 6; i++) {
            Message message = message(topic, "message-" + i);
            message.setDelayTimeMs(3_000);
            results.add(producer.send(message));
        }
        for (int i = 0; i < 6; i += 2) {
            String handle = results.get(i).getRecallHandle();
            Expect.equal("id of what was recalled", results.get(i).getMsgId(), producer.recallMessage(topic, handle));
        }
        String again = results.get(0).getRecallHandle();
        Expect.equal("id of what was recalled twice", results.get(0).getMsgId(), producer.recallMessage(topic, again));
        Wait.until("3 messages", 30, () -> seen.size() >= 3, seen::bodies);
        Wait.quiet(1_500);
        Expect.sameBag("consumed", List.of("message-1", "message-3", "message-5"), seen.bodies());
        Expect.refused("a recall of what was delivered", ILLEGAL_OPERATION,
                () -> producer.recallMessage(topic, results.get(1).getRecallHandle()));
    }

    private static void restart(Env env) throws Exception {
        String topic = env.topic(2);
        DefaultMQProducer producer = env.producer("producer");
        List<String> kept = new ArrayList<>();
        for (int i = 0; i < 40; i++) {
            Message message = message(topic, "message-" + i);
            message.setDelayTimeMs(500 + i * 100);
            SendResult result = producer.send(message);
            if (i % 4 == 3 && i >= 20) {
                producer.recallMessage(topic, result.getRecallHandle());
            } else {
                kept.add("message-" + i);
            }
        }
        env.awaitRestart();
        Seen seen = new Seen();
        env.accepting(env.name("group"), topic, "*", seen);
        Wait.until(kept.size() + " messages", 60, () -> seen.size() >= kept.size(), seen::bodies);
        Wait.quiet(2_000);
        Expect.sameBag("consumed", kept, seen.bodies());
    }
}
