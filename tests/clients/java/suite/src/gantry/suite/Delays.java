package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Delayed messages, and what goes through them: retries and the dead-letter topic. */
final class Delays {
    /** How late a message may be on a busy machine; that it is not early is exact. */
    private static final long LATE_MILLIS = 10_000;

    private Delays() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("delay-levels", Delays::levels),
                Scenario.of("delay-many", Delays::many),
                Scenario.of("retry-schedule", Delays::retrySchedule),
                Scenario.of("retry", Delays::retry),
                Scenario.of("dead-letter", Delays::deadLetter),
                Scenario.of("dead-letter-at-once", Delays::deadLetterAtOnce));
    }

    private static void levels(Env env) throws Exception {
        String topic = env.topic(2);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(env.name("group"), topic, "*", seen);
        Env.awaitQueues(consumer, topic, 2);
        int[] levels = {3, 1, 2};
        long[] delays = {10_000, 1_000, 5_000};
        for (int i = 0; i < levels.length; i++) {
            Message message = new Message(topic, "tag", "key" + levels[i], ("level-" + levels[i]).getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("kept", "yes");
            message.setDelayTimeLevel(levels[i]);
            env.send(message);
        }
        Wait.until("3 delayed messages", 30, () -> seen.size() >= 3, seen::bodies);
        Wait.quiet(500);
        Expect.equal("in the order in which they are due", List.of("level-1", "level-2", "level-3"), seen.bodies());
        for (int i = 0; i < levels.length; i++) {
            String body = "level-" + levels[i];
            Seen.Delivery delivery = seen.all().stream().filter(d -> d.body().equals(body)).findFirst().orElseThrow();
            MessageExt message = delivery.message();
            Expect.between("milliseconds from sending " + body + " to its arrival", delays[i], delays[i] + LATE_MILLIS,
                    delivery.atMillis() - message.getBornTimestamp());
            Expect.equal("topic", topic, message.getTopic());
            Expect.equal("tag", "tag", message.getTags());
            Expect.equal("key", "key" + levels[i], message.getKeys());
            Expect.equal("property", "yes", message.getUserProperty("kept"));
        }
    }

    private static void many(Env env) throws Exception {
        String topic = env.topic(4);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(env.name("group"), topic, "*", seen);
        Env.awaitQueues(consumer, topic, 4);
        List<String> bodies = Env.bodies("delayed", 100);
        for (String body : bodies) {
            Message message = Env.message(topic, body);
            message.setDelayTimeLevel(1);
            env.send(message);
        }
        Wait.until("100 delayed messages", 20, () -> seen.size() >= 100, seen::size);
        Wait.quiet(1000);
        Expect.sameBag("consumed", bodies, seen.bodies());
        for (Seen.Delivery delivery : seen.all()) {
            Expect.between("milliseconds from sending " + delivery.body() + " to its arrival", 1000, 1000 + LATE_MILLIS,
                    delivery.atMillis() - delivery.message().getBornTimestamp());
        }
    }

    /** Refuses every message until it was refused so often, then accepts; all attempts land in {@code seen}. */
    private static MessageListenerConcurrently refusing(Seen seen, int times, int delayLevel) {
        return (messages, context) -> {
            messages.forEach(seen::add);
            context.setDelayLevelWhenNextConsume(delayLevel);
            return messages.get(0).getReconsumeTimes() < times ? ConsumeConcurrentlyStatus.RECONSUME_LATER
                    : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        };
    }

    private static void retry(Env env) throws Exception {
        String topic = env.topic(2);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "tag");
        consumer.registerMessageListener(refusing(seen, 2, 1));
        consumer.start();
        for (int i = 0; i < 5; i++) {
            env.send(new Message(topic, "tag", "key" + i, ("retried-" + i).getBytes(StandardCharsets.UTF_8)));
        }
        Wait.until("3 attempts of 5 messages", 30, () -> seen.size() >= 15, seen::size);
        Wait.quiet(2500);
        Expect.equal("attempts", 15, seen.size());
        for (int i = 0; i < 5; i++) {
            String body = "retried-" + i;
            List<MessageExt> attempts = seen.all().stream().filter(d -> d.body().equals(body)).map(Seen.Delivery::message).toList();
            Expect.equal("reconsume times of " + body, List.of(0, 1, 2),
                    attempts.stream().map(MessageExt::getReconsumeTimes).toList());
            for (MessageExt attempt : attempts) {
                Expect.equal("topic as the listener sees it", topic, attempt.getTopic());
                Expect.equal("tag", "tag", attempt.getTags());
                Expect.equal("key", "key" + i, attempt.getKeys());
                Expect.equal("unique id", attempts.get(0).getMsgId(), attempt.getMsgId());
            }
        }
    }

    /** Without a level of the listener's choice the first retry comes after level 3, 10 s. */
    private static void retrySchedule(Env env) throws Exception {
        String topic = env.topic(1);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "*");
        consumer.registerMessageListener(refusing(seen, 1, 0));
        consumer.start();
        env.send(topic, List.of("once more"));
        Wait.until("2 attempts", 45, () -> seen.size() >= 2, seen::size);
        long waited = seen.all().get(1).atMillis() - seen.all().get(0).atMillis();
        // A new group's retry topic comes with its first heartbeat; the client takes it up at its next rebalance, 20 s later.
        Expect.between("milliseconds between the attempts", 10_000, 30_000 + LATE_MILLIS, waited);
        Expect.equal("reconsume times", 1, seen.all().get(1).message().getReconsumeTimes());
    }

    private static void deadLetter(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.push(group, topic, "*");
        consumer.setMaxReconsumeTimes(2);
        consumer.registerMessageListener(refusing(seen, Integer.MAX_VALUE, 1));
        consumer.start();
        List<String> bodies = Env.bodies("dead", 3);
        for (String body : bodies) {
            env.send(new Message(topic, "tag", "key of " + body, body.getBytes(StandardCharsets.UTF_8)));
        }
        List<MessageExt> dead = awaitDead(env, group, 3);
        Wait.quiet(2500);
        Expect.equal("attempts", 9, seen.size());
        Expect.equal("reconsume times seen", "0 0 0 1 1 1 2 2 2", seen.all().stream()
                .map(d -> Integer.toString(d.message().getReconsumeTimes())).sorted().collect(Collectors.joining(" ")));
        Expect.sameBag("dead letters", bodies, Seen.texts(dead));
        for (MessageExt message : dead) {
            Expect.equal("tag", "tag", message.getTags());
            Expect.equal("keys", "key of " + Seen.text(message), message.getKeys());
        }
    }

    private static void deadLetterAtOnce(Env env) throws Exception {
        String topic = env.topic(1);
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.push(group, topic, "*");
        consumer.registerMessageListener(refusing(seen, Integer.MAX_VALUE, -1));
        consumer.start();
        env.send(topic, List.of("poison"));
        List<MessageExt> dead = awaitDead(env, group, 1);
        Expect.equal("attempts", 1, seen.size());
        Expect.equal("dead letters", List.of("poison"), Seen.texts(dead));
    }

    private static List<MessageExt> awaitDead(Env env, String group, int count) throws Exception {
        List<MessageExt> dead = new ArrayList<>();
        Wait.until(count + " dead letters of " + group, 40, () -> {
            dead.clear();
            try {
                dead.addAll(env.run.readTopic("%DLQ%" + group));
            } catch (org.apache.rocketmq.client.exception.MQClientException e) {
                return false;  // the topic comes with the first dead letter
            }
            return dead.size() >= count;
        }, dead::size);
        return dead;
    }
}
