package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;

/** Push consumption: clustering, broadcasting, orderly, by tag. */
final class Consuming {
    private Consuming() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("consume-clustering", Consuming::clustering),
                Scenario.of("consume-join-leave", Consuming::joinLeave),
                Scenario.of("consume-two-groups", Consuming::twoGroups),
                Scenario.of("consume-broadcasting", Consuming::broadcasting),
                Scenario.of("consume-orderly", Consuming::orderly),
                Scenario.of("consume-orderly-suspend", Consuming::orderlySuspend),
                Scenario.of("consume-tags", Consuming::tags),
                Scenario.of("consume-offsets-kept", Consuming::offsetsKept),
                Scenario.of("consume-new-group", Consuming::newGroup));
    }

    private static void clustering(Env env) throws Exception {
        String topic = env.topic(4);
        Seen first = new Seen();
        Seen second = new Seen();
        DefaultMQPushConsumer a = env.accepting(env.name("group"), topic, "*", first);
        DefaultMQPushConsumer b = env.accepting(env.name("group"), topic, "*", second);
        Env.awaitQueues(a, topic, 2);
        Env.awaitQueues(b, topic, 2);
        List<String> bodies = Env.bodies("shared", 200);
        env.send(topic, bodies);
        Wait.until("200 messages at both", 20, () -> first.size() + second.size() >= 200, () -> first.size() + second.size());
        Wait.quiet(1000);
        List<String> all = new ArrayList<>(first.bodies());
        all.addAll(second.bodies());
        Expect.sameBag("consumed by the group", bodies, all);
        Expect.equal("at the first", 100, first.size());
        Expect.equal("at the second", 100, second.size());
    }

    /** Members come and go: the others hear of it at once and take over. */
    private static void joinLeave(Env env) throws Exception {
        String topic = env.topic(4);
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer a = env.accepting(group, topic, "*", seen);
        Env.awaitQueues(a, topic, 4);
        env.send(topic, Env.bodies("one", 40));
        Wait.until("40 messages", 15, () -> seen.distinct() >= 40, seen::distinct);
        DefaultMQPushConsumer b = env.accepting(group, topic, "*", seen);
        Env.awaitQueues(b, topic, 2);
        Env.awaitQueues(a, topic, 2);
        env.send(topic, Env.bodies("two", 40));
        Wait.until("80 messages", 15, () -> seen.distinct() >= 80, seen::distinct);
        a.shutdown();
        Env.awaitQueues(b, topic, 4);
        env.send(topic, Env.bodies("three", 40));
        Wait.until("120 messages", 15, () -> seen.distinct() >= 120, seen::distinct);
        // A queue that changes hands is read from the last persisted offset, so copies are allowed here; losses are not.
        List<String> expected = new ArrayList<>(Env.bodies("one", 40));
        expected.addAll(Env.bodies("two", 40));
        expected.addAll(Env.bodies("three", 40));
        Expect.sameBag("consumed at least once", expected, Set.copyOf(seen.bodies()));
    }

    private static void twoGroups(Env env) throws Exception {
        String topic = env.topic(2);
        List<String> bodies = Env.bodies("both", 30);
        env.send(topic, bodies);
        Seen one = new Seen();
        Seen two = new Seen();
        env.accepting(env.name("one"), topic, "*", one);
        env.accepting(env.name("two"), topic, "*", two);
        Wait.until("30 messages at the first group", 15, () -> one.size() >= 30, one::size);
        Wait.until("30 messages at the second group", 15, () -> two.size() >= 30, two::size);
        Expect.sameBag("first group", bodies, one.bodies());
        Expect.sameBag("second group", bodies, two.bodies());
    }

    private static void broadcasting(Env env) throws Exception {
        String topic = env.topic(4);
        Seen[] seen = {new Seen(), new Seen()};
        for (Seen each : seen) {
            DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "*");
            Compat.broadcasting(consumer);
            consumer.registerMessageListener(Env.accept(each));
            consumer.start();
            Env.awaitQueues(consumer, topic, 4);
        }
        List<String> bodies = Env.bodies("all", 50);
        env.send(topic, bodies);
        for (Seen each : seen) {
            Wait.until("50 messages at each", 15, () -> each.size() >= 50, each::size);
        }
        Wait.quiet(500);
        Expect.sameBag("first", bodies, seen[0].bodies());
        Expect.sameBag("second", bodies, seen[1].bodies());
    }

    private static void orderly(Env env) throws Exception {
        String topic = env.topic(4);
        Seen seen = new Seen();
        Map<String, Set<String>> consumersOfKey = new ConcurrentHashMap<>();
        DefaultMQPushConsumer[] consumers = new DefaultMQPushConsumer[2];
        for (int i = 0; i < 2; i++) {
            String name = "consumer-" + i;
            consumers[i] = env.push(env.name("group"), topic, "*");
            consumers[i].registerMessageListener(
                    (org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly) (messages, context) -> {
                        messages.forEach(message -> {
                            seen.add(message);
                            consumersOfKey.computeIfAbsent(message.getUserProperty("key"), k -> ConcurrentHashMap.newKeySet())
                                    .add(name);
                        });
                        return ConsumeOrderlyStatus.SUCCESS;
                    });
            consumers[i].start();
        }
        Env.awaitQueues(consumers[0], topic, 2);
        Env.awaitQueues(consumers[1], topic, 2);
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 200; i++) {
            String key = "k" + i % 8;
            bodies.add(key + "/" + i);
            sendKeyed(env, topic, key, key + "/" + i);
        }
        // A queue's lock that another member just gave up is asked for again every 20 s at the latest.
        Wait.until("200 messages in order", 40, () -> seen.size() >= 200, seen::size);
        Wait.quiet(500);
        Expect.sameBag("consumed", bodies, seen.bodies());
        expectOrder(seen);
        consumersOfKey.forEach((key, names) -> Expect.equal("consumers of " + key, 1, names.size()));
    }

    /** A message that asks to wait is handed out again, and nothing of its queue overtakes it. */
    private static void orderlySuspend(Env env) throws Exception {
        String topic = env.topic(1);
        Seen accepted = new Seen();
        Seen refused = new Seen();
        DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "*");
        consumer.registerMessageListener(
                (org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly) (messages, context) -> {
                    if (Seen.text(messages.get(0)).endsWith("/3") && refused.size() < 2) {
                        refused.add(messages.get(0));
                        context.setSuspendCurrentQueueTimeMillis(200);
                        return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
                    }
                    messages.forEach(accepted::add);
                    return ConsumeOrderlyStatus.SUCCESS;
                });
        consumer.start();
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 10; i++) {
            bodies.add("k/" + i);
            sendKeyed(env, topic, "k", "k/" + i);
        }
        Wait.until("10 messages", 40, () -> accepted.size() >= 10, accepted::size);
        Expect.equal("accepted in order", bodies, accepted.bodies());
        Expect.equal("refused", List.of("k/3", "k/3"), refused.bodies());
    }

    private static void sendKeyed(Env env, String topic, String key, String body) throws Exception {
        Message message = Env.message(topic, body);
        message.putUserProperty("key", key);
        env.run.producer.send(message, new SelectMessageQueueByHash(), key);
    }

    private static void expectOrder(Seen seen) {
        Map<String, Integer> last = new HashMap<>();
        for (String body : seen.bodies()) {
            String[] parts = body.split("/");
            int n = Integer.parseInt(parts[1]);
            Expect.holds("order within " + parts[0] + " at " + n, last.getOrDefault(parts[0], -1) < n, last.get(parts[0]));
            last.put(parts[0], n);
        }
    }

    private static void tags(Env env) throws Exception {
        String topic = env.topic(2);
        Seen some = new Seen();
        Seen all = new Seen();
        env.accepting(env.name("some"), topic, "A || B", some);
        env.accepting(env.name("all"), topic, "*", all);
        List<String> expected = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            // The last two have the same hash code: the broker's filter lets both through, the client's must not.
            String tag = List.of("A", "B", "C", "", "AaAa", "BBBB").get(i % 6);
            String body = tag + "-" + i;
            env.send(new Message(topic, tag, body.getBytes(StandardCharsets.UTF_8)));
            if (tag.equals("A") || tag.equals("B")) {
                expected.add(body);
            }
        }
        Wait.until("20 messages with tag A or B", 15, () -> some.size() >= 20, some::size);
        Wait.until("60 messages", 15, () -> all.size() >= 60, all::size);
        Wait.quiet(500);
        Expect.sameBag("consumed by tag", expected, some.bodies());
        Expect.equal("consumed without filter", 60, all.size());
        Seen hash = new Seen();
        env.accepting(env.name("hash"), topic, "AaAa", hash);
        Wait.until("10 messages with tag AaAa", 15, () -> hash.size() >= 10, hash::size);
        Wait.quiet(500);
        Expect.holds("only tag AaAa", hash.bodies().stream().allMatch(b -> b.startsWith("AaAa")), hash.bodies());
    }

    /** A group that comes back gets what came since, and nothing again. */
    private static void offsetsKept(Env env) throws Exception {
        String topic = env.topic(4);
        String group = env.name("group");
        Seen before = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(group, topic, "*", before);
        List<String> early = Env.bodies("early", 30);
        env.send(topic, early);
        Wait.until("30 messages", 15, () -> before.size() >= 30, before::size);
        consumer.shutdown();
        List<String> late = Env.bodies("late", 20);
        env.send(topic, late);
        Seen after = new Seen();
        env.accepting(group, topic, "*", after);
        Wait.until("20 messages", 15, () -> after.size() >= 20, after::size);
        Wait.quiet(500);
        Expect.sameBag("before", early, before.bodies());
        Expect.sameBag("after", late, after.bodies());
    }

    /**
     * Where a group without offsets begins. On a queue that still has its very first message the broker answers 0, so that also
     * CONSUME_FROM_LAST_OFFSET reads all of it: a topic that is new together with its group loses nothing.
     */
    private static void newGroup(Env env) throws Exception {
        String topic = env.topic(2);
        List<String> bodies = Env.bodies("old", 10);
        env.send(topic, bodies);
        for (ConsumeFromWhere where : List.of(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
                ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET, ConsumeFromWhere.CONSUME_FROM_TIMESTAMP)) {
            Seen seen = new Seen();
            DefaultMQPushConsumer consumer = env.push(env.name(where.name()), topic, "*");
            consumer.setConsumeFromWhere(where);
            consumer.registerMessageListener(Env.accept(seen));
            consumer.start();
            Wait.until("10 messages with " + where, 15, () -> seen.size() >= 10, seen::size);
            Expect.sameBag("consumed with " + where, bodies, seen.bodies());
        }
    }
}
