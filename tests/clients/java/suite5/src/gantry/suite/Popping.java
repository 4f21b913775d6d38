package gantry.suite;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageRequestMode;

/** Push consumers that pop: the broker says so, and assigns the queues. */
final class Popping {
    private static final int POP_SHARE_NONE = 0;
    private static final int TIMEOUT_MILLIS = 10_000;

    private Popping() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("pop-shared", Popping::shared),
                Scenario.of("pop-tags", Popping::tags),
                Scenario.of("pop-mixed", Popping::mixed),
                Scenario.of("pop-retry", Popping::retry),
                Scenario.of("pop-dead", Popping::dead),
                Scenario.of("pop-priority", Popping::priority),
                Scenario.restarting("pop-restart", Popping::restart));
    }

    /** A consumer that is not started yet, of a group that pops. */
    private static DefaultMQPushConsumer popping(Env env, String group, String topic, String tags) throws Exception {
        env.run.admin.setMessageRequestMode(env.run.brokerAddress, topic, group, MessageRequestMode.POP, POP_SHARE_NONE,
                TIMEOUT_MILLIS);
        DefaultMQPushConsumer consumer = env.push(group, topic, tags);
        consumer.setClientRebalance(false);
        return consumer;
    }

    private static void accepting(Env env, String group, String topic, String tags, Seen seen) throws Exception {
        DefaultMQPushConsumer consumer = popping(env, group, topic, tags);
        consumer.registerMessageListener(Env.accept(seen));
        consumer.start();
    }

    /** All that was sent is acknowledged: the group's offsets are at the ends. */
    private static void awaitDone(Env env, String group, String topic, long messages) throws Exception {
        Wait.until("offsets of " + group, 30, () -> {
            var table = env.run.admin.examineConsumeStats(group, topic).getOffsetTable();
            return table.values().stream().mapToLong(at -> at.getConsumerOffset()).sum() == messages
                    && table.values().stream().allMatch(at -> at.getConsumerOffset() == at.getBrokerOffset());
        }, () -> {
            try {
                return env.run.admin.examineConsumeStats(group, topic).getOffsetTable();
            } catch (Exception e) {
                return e;
            }
        });
    }

    /** Both members take from all queues, and nothing twice. */
    private static void shared(Env env) throws Exception {
        String topic = env.topic(4);
        String group = env.name("group");
        Seen first = new Seen();
        Seen second = new Seen();
        accepting(env, group, topic, "*", first);
        accepting(env, group, topic, "*", second);
        List<String> bodies = Env.bodies("shared", 400);
        env.send(topic, bodies);
        Wait.until("400 messages at both", 40, () -> first.size() + second.size() >= 400, () -> first.size() + second.size());
        awaitDone(env, group, topic, 400);
        List<String> all = new ArrayList<>(first.bodies());
        all.addAll(second.bodies());
        Expect.sameBag("consumed by the group", bodies, all);
    }

    private static void tags(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        Seen seen = new Seen();
        accepting(env, group, topic, "a || b", seen);
        List<String> wanted = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            var message = Env.message(topic, "m-" + i);
            message.setTags(List.of("a", "b", "c").get(i % 3));
            env.send(message);
            if (i % 3 != 2) {
                wanted.add("m-" + i);
            }
        }
        Wait.until("40 messages", 30, () -> seen.size() >= 40, seen::size);
        awaitDone(env, group, topic, 60);
        Expect.sameBag("consumed", wanted, seen.bodies());
    }

    /** Members that want different messages get theirs, also those that they refuse once. */
    private static void mixed(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        Map<String, Seen> seen = Map.of("a", new Seen(), "b", new Seen());
        for (var member : seen.entrySet()) {
            DefaultMQPushConsumer consumer = popping(env, group, topic, member.getKey());
            consumer.setConsumeMessageBatchMaxSize(1);
            consumer.registerMessageListener((List<MessageExt> messages, ConsumeConcurrentlyContext context) -> {
                messages.forEach(member.getValue()::add);
                boolean refuses = messages.stream()
                        .anyMatch(message -> Seen.text(message).endsWith("-0") && message.getReconsumeTimes() < 1);
                return refuses ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            consumer.start();
        }
        Wait.until("both members", 20,
                () -> env.run.admin.examineConsumerConnectionInfo(group).getConnectionSet().size() == 2, () -> "one");
        for (int i = 0; i < 40; i++) {
            for (String tag : List.of("a", "b")) {
                var message = Env.message(topic, tag + "-" + i);
                message.setTags(tag);
                env.send(message);
            }
        }
        Wait.until("all of both", 60, () -> seen.values().stream().allMatch(one -> one.size() >= 41),
                () -> seen.values().stream().map(Seen::size).toList());
        awaitDone(env, group, topic, 80);
        for (String tag : List.of("a", "b")) {
            List<String> wanted = Env.bodies(tag, 40);
            wanted.add(tag + "-0");
            Expect.sameBag("consumed by " + tag, wanted, seen.get(tag).bodies());
        }
    }

    /** What is refused comes again, with its count, from the client's first delay (10 s) on. */
    private static void retry(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        Seen seen = new Seen();
        Map<String, Integer> counts = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = popping(env, group, topic, "*");
        consumer.setConsumeMessageBatchMaxSize(1);
        consumer.registerMessageListener((List<MessageExt> messages, ConsumeConcurrentlyContext context) -> {
            for (MessageExt message : messages) {
                seen.add(message);
                counts.put(Seen.text(message), message.getReconsumeTimes());
                if (Seen.text(message).equals("bad-1") && message.getReconsumeTimes() < 1) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        env.send(topic, Env.bodies("bad", 4));
        Wait.until("5 deliveries", 60, () -> seen.size() >= 5, seen::bodies);
        awaitDone(env, group, topic, 4);
        Expect.sameBag("consumed", List.of("bad-0", "bad-1", "bad-1", "bad-2", "bad-3"), seen.bodies());
        Expect.equal("reconsume times", 1, counts.get("bad-1"));
        Expect.equal("topic", topic, seen.all().get(4).message().getTopic());
    }

    /** What is refused once more than the group allows is a dead letter. */
    private static void dead(Env env) throws Exception {
        String topic = env.topic(1);
        String group = env.name("group");
        Compat.createGroup(env.run.admin, env.run.brokerAddress, group, 0, true);
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = popping(env, group, topic, "*");
        consumer.registerMessageListener((List<MessageExt> messages, ConsumeConcurrentlyContext context) -> {
            messages.forEach(seen::add);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        env.send(topic, List.of("poison"));
        String graveyard = "%DLQ%" + group;
        Wait.until("a dead letter", 60, () -> {
            try {
                return env.run.admin.maxOffset(env.run.queue(graveyard, 0)) == 1;
            } catch (Exception e) {
                return false;
            }
        });
        Expect.equal("dead letters", List.of("poison"), Seen.texts(env.run.read(env.run.queue(graveyard, 0))));
        Expect.equal("deliveries", 1, seen.size());
    }

    /** Queues stand for priorities, and the highest is popped first. */
    private static void priority(Env env) throws Exception {
        String topic = env.name("");
        TopicConfig config = new TopicConfig(topic, 4, 4, 6);
        config.getAttributes().put("+message.type", "PRIORITY");
        env.run.admin.createAndUpdateTopicConfig(env.run.brokerAddress, config);
        List<String> expected = new ArrayList<>();
        for (int priority : List.of(0, 7, 3, 1)) {
            Message message = Env.message(topic, "priority-" + priority);
            message.setPriority(priority);
            Expect.equal("queue", Math.min(priority, 3), env.send(message).getMessageQueue().getQueueId());
        }
        for (int priority : List.of(7, 3, 1, 0)) {
            expected.add("priority-" + priority);
        }
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = popping(env, group, topic, "*");
        consumer.setConsumeThreadMin(1);
        consumer.setConsumeThreadMax(1);
        consumer.registerMessageListener(Env.accept(seen));
        consumer.start();
        Wait.until("4 messages", 40, () -> seen.size() >= 4, seen::bodies);
        Expect.equal("order", expected, seen.bodies());
    }

    /** Acknowledged before the restart is done; everything else comes. */
    private static void restart(Env env) throws Exception {
        String topic = env.topic(4);
        String group = env.name("group");
        Seen seen = new Seen();
        accepting(env, group, topic, "*", seen);
        List<String> bodies = Env.bodies("before", 100);
        env.send(topic, bodies);
        Wait.until("100 messages", 30, () -> seen.size() >= 100, seen::size);
        awaitDone(env, group, topic, 100);
        env.awaitRestart();
        List<String> after = Env.bodies("after", 100);
        for (String body : after) {
            Wait.until("the broker takes " + body, 30, () -> {
                try {
                    env.send(topic, List.of(body));
                    return true;
                } catch (Exception e) {
                    return false;
                }
            });
        }
        List<String> all = new ArrayList<>(bodies);
        all.addAll(after);
        Wait.until("200 messages", 60, () -> seen.distinct() >= 200, seen::distinct);
        Expect.sameBag("consumed before", bodies, seen.bodies().stream().filter(body -> body.startsWith("before")).toList());
        Expect.holds("all came", seen.bodies().containsAll(all), seen.size());
    }
}
