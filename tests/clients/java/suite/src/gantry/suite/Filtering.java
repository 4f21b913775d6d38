package gantry.suite;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Consumers that select messages by their properties, with SQL92. */
final class Filtering {
    private static final int SUBSCRIPTION_PARSE_FAILED = 23;

    private Filtering() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("filter-push", Filtering::push),
                Scenario.of("filter-lite-pull", Filtering::litePull),
                Scenario.of("filter-pull", Filtering::pull),
                Scenario.of("filter-refused", Filtering::refused),
                Scenario.of("filter-mixed", Filtering::mixed));
    }

    /** Messages numbered 0 to count - 1 with a tag, a number and, in every other one, a colour. */
    private static List<String> send(Env env, String topic, String prefix, int count) throws Exception {
        List<String> bodies = Env.bodies(prefix, count);
        for (int i = 0; i < count; i++) {
            Message message = Env.message(topic, bodies.get(i));
            message.setTags(i % 3 == 0 ? "TagA" : "TagB");
            message.putUserProperty("number", String.valueOf(i));
            if (i % 2 == 0) {
                message.putUserProperty("colour", "it's " + (i % 4 == 0 ? "red" : "blue"));
            }
            env.send(message);
        }
        return bodies;
    }

    private static List<String> pick(List<String> bodies, int... numbers) {
        List<String> picked = new ArrayList<>();
        for (int number : numbers) {
            picked.add(bodies.get(number));
        }
        return picked;
    }

    private static void push(Env env) throws Exception {
        String topic = env.topic(2);
        List<String> bodies = send(env, topic, "before", 20);
        Seen some = new Seen();
        Seen byTag = new Seen();
        DefaultMQPushConsumer consumer = env.push(env.name("some"), topic, "*");
        consumer.subscribe(topic, MessageSelector.bySql(
                "number BETWEEN 4 AND 12 AND colour IS NOT NULL AND NOT (colour = 'it''s blue')"));
        consumer.registerMessageListener(Env.accept(some));
        consumer.start();
        DefaultMQPushConsumer tagged = env.push(env.name("tagged"), topic, "*");
        tagged.subscribe(topic, MessageSelector.bySql("TAGS IN ('TagA', 'TagC') OR number = 1"));
        tagged.registerMessageListener(Env.accept(byTag));
        tagged.start();
        Wait.until("3 messages", 15, () -> some.size() >= 3, some::size);
        Wait.until("8 messages", 15, () -> byTag.size() >= 8, byTag::size);
        List<String> late = send(env, topic, "late", 10);
        Wait.until("5 messages", 15, () -> some.size() >= 5, some::size);
        Wait.until("13 messages", 15, () -> byTag.size() >= 13, byTag::size);
        Wait.quiet(500);
        List<String> expected = pick(bodies, 4, 8, 12);
        expected.addAll(pick(late, 4, 8));
        Expect.sameBag("consumed by number and colour", expected, some.bodies());
        expected = pick(bodies, 0, 1, 3, 6, 9, 12, 15, 18);
        expected.addAll(pick(late, 0, 1, 3, 6, 9));
        Expect.sameBag("consumed by tag or number", expected, byTag.bodies());
    }

    /** Members of one group that subscribe differently: what one of them wants reaches the group from every queue. */
    private static void mixed(Env env) throws Exception {
        String topic = env.topic(4);
        Seen seen = new Seen();
        DefaultMQPushConsumer byTag = env.push(env.name("group"), topic, "TagA");
        byTag.registerMessageListener(Env.accept(seen));
        byTag.start();
        DefaultMQPushConsumer bySql = env.push(env.name("group"), topic, "*");
        bySql.subscribe(topic, MessageSelector.bySql("TAGS = 'TagB' AND number > 30"));
        bySql.registerMessageListener(Env.accept(seen));
        bySql.start();
        Env.awaitQueues(byTag, topic, 2);
        Env.awaitQueues(bySql, topic, 2);
        List<String> bodies = send(env, topic, "m", 60);
        Set<String> wanted = new TreeSet<>();
        for (int i = 0; i < 60; i++) {
            if (i % 3 == 0 || i > 30) {
                wanted.add(bodies.get(i));
            }
        }
        long deadline = System.nanoTime() + 30_000_000_000L;
        while (!seen.bodies().containsAll(wanted) && System.nanoTime() < deadline) {
            Wait.quiet(100);
        }
        Set<String> missing = new TreeSet<>(wanted);
        missing.removeAll(seen.bodies());
        env.defect("messages that one member wants and none gets", missing.size(), wanted.size());
    }

    private static void litePull(Env env) throws Exception {
        String topic = env.topic(2);
        List<String> bodies = send(env, topic, "m", 20);
        DefaultLitePullConsumer consumer = env.litePull(env.name("group"));
        consumer.subscribe(topic, MessageSelector.bySql("number >= 10 AND TAGS = 'TagA'"));
        consumer.start();
        List<String> found = new ArrayList<>();
        Wait.until("3 messages by polling", 20, () -> {
            for (MessageExt message : consumer.poll(200)) {
                found.add(Seen.text(message));
            }
            return found.size() >= 3;
        }, found::size);
        Expect.sameBag("polled", pick(bodies, 12, 15, 18), found);
    }

    /** The shared reader selects once it knows the broker's version, which the answer to a heartbeat tells. */
    @SuppressWarnings("deprecation")
    private static void awaitVersion(Env env, MessageQueue queue) throws Exception {
        Wait.until("the broker's version at the reader", 15, () -> {
            try {
                env.run.reader.pull(queue, MessageSelector.bySql("TRUE"), 0, 1);
                return true;
            } catch (MQClientException e) {
                return false;
            }
        });
    }

    @SuppressWarnings("deprecation")
    private static void pull(Env env) throws Exception {
        String topic = env.topic(1);
        send(env, topic, "m", 20);
        env.run.readTopic(topic, 20);
        MessageQueue queue = env.run.queue(topic, 0);
        awaitVersion(env, queue);
        PullResult found = env.run.reader.pull(queue, MessageSelector.bySql("number > 14 AND colour IS NULL"), 0, 2);
        Expect.equal("status", PullStatus.FOUND, found.getPullStatus());
        Expect.equal("found", List.of("m-15", "m-17"), Seen.texts(found.getMsgFoundList()));
        PullResult none = env.run.reader.pull(queue, MessageSelector.bySql("number = 99"), 3, 32);
        Expect.equal("status without match", PullStatus.NO_MATCHED_MSG, none.getPullStatus());
        Expect.equal("next offset without match", 20L, none.getNextBeginOffset());
        PullResult failing = env.run.reader.pull(queue, MessageSelector.bySql("colour > 5 OR colour <= 5"), 0, 32);
        Expect.equal("status where no text is a number", PullStatus.NO_MATCHED_MSG, failing.getPullStatus());
        PullResult end = env.run.reader.pull(queue, MessageSelector.bySql("number = 99"), 20, 32);
        Expect.equal("status at the end", PullStatus.NO_NEW_MSG, end.getPullStatus());
    }

    @SuppressWarnings("deprecation")
    private static void refused(Env env) throws Exception {
        String topic = env.topic(1);
        env.send(topic, List.of("m"));
        awaitVersion(env, env.run.queue(topic, 0));
        List<String> all = List.of("a == 1", "a > 'x'", "a = 'x", "a IN (1)");
        int answered = 0;
        for (String wrong : all) {
            try {
                env.run.reader.pull(env.run.queue(topic, 0), MessageSelector.bySql(wrong), 0, 32);
                answered++;
            } catch (MQBrokerException e) {
                Expect.equal("code of a pull by " + wrong, SUBSCRIPTION_PARSE_FAILED, e.getResponseCode());
            }
            DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "*");
            consumer.subscribe(topic, MessageSelector.bySql(wrong));
            consumer.registerMessageListener(Env.accept(new Seen()));
            Expect.refused("a consumer with " + wrong, SUBSCRIPTION_PARSE_FAILED, consumer::start);
        }
        env.defect("pulls by a wrong expression that were not refused", answered, all.size());
    }
}
