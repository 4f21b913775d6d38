package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;

/** Finding messages by time, key and id; moving a group. */
final class Offsets {
    private Offsets() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("offset-search", Offsets::search),
                Scenario.of("query-by-key", Offsets::byKey),
                Scenario.of("view-message", Offsets::view),
                Scenario.of("offset-reset", Offsets::reset));
    }

    private static void search(Env env) throws Exception {
        String topic = env.topic(1);
        MessageQueue queue = env.run.queue(topic, 0);
        Expect.equal("min of an empty queue", 0L, env.run.admin.minOffset(queue));
        Expect.equal("max of an empty queue", 0L, env.run.admin.maxOffset(queue));
        env.send(topic, Env.bodies("early", 5));
        env.run.readTopic(topic, 5);
        Wait.quiet(50);
        long between = System.currentTimeMillis();
        Wait.quiet(50);
        env.send(topic, Env.bodies("late", 5));
        Wait.until("10 messages dispatched", 10, () -> env.run.admin.maxOffset(queue) == 10);
        Expect.equal("min", 0L, env.run.admin.minOffset(queue));
        Expect.equal("offset of the time between", 5L, env.run.admin.searchOffset(queue, between));
        Expect.equal("offset of time 0", 0L, env.run.admin.searchOffset(queue, 0));
        Expect.equal("offset of tomorrow", 10L, env.run.admin.searchOffset(queue, between + 86_400_000));
        long third = env.run.read(queue).get(7).getStoreTimestamp();
        long found = env.run.admin.searchOffset(queue, third);
        Expect.between("offset of message 7's own time", 5, 7, found);
    }

    private static void byKey(Env env) throws Exception {
        String topic = env.topic(4);
        long begin = System.currentTimeMillis() - 60_000;
        List<String> wanted = new ArrayList<>();
        for (int i = 0; i < 30; i++) {
            String keys = i % 10 == 0 ? "wanted other" + i : "other" + i;
            String body = "m-" + i;
            env.send(new Message(topic, "", keys, body.getBytes(StandardCharsets.UTF_8)));
            if (i % 10 == 0) {
                wanted.add(body);
            }
        }
        Wait.until("3 messages by key", 15, () -> query(env, topic, "wanted", begin).size() >= 3);
        Expect.sameBag("by key", wanted, query(env, topic, "wanted", begin));
        Expect.equal("by second key", List.of("m-20"), query(env, topic, "other20", begin));
        Expect.equal("by unknown key", List.of(), query(env, topic, "nobody", begin));
        long later = System.currentTimeMillis() + 3_600_000;
        Expect.equal("by key, outside the time asked for", List.of(),
                bodies(env, topic, "wanted", later, later + 1000));
    }

    private static List<String> query(Env env, String topic, String key, long begin) throws Exception {
        return bodies(env, topic, key, begin, System.currentTimeMillis() + 60_000);
    }

    private static List<String> bodies(Env env, String topic, String key, long begin, long end) throws Exception {
        try {
            QueryResult result = env.run.admin.queryMessage(topic, key, 32, begin, end);
            return Seen.texts(result.getMessageList());
        } catch (org.apache.rocketmq.client.exception.MQClientException e) {
            return List.of();  // the client's way to say that there are none
        }
    }

    private static void view(Env env) throws Exception {
        String topic = env.topic(2);
        List<SendResult> results = env.send(topic, Env.bodies("viewed", 6));
        for (int i = 0; i < 6; i++) {
            SendResult result = results.get(i);
            var byOffset = env.run.admin.viewMessage(topic, result.getOffsetMsgId());
            Expect.equal("body by offset id", "viewed-" + i, Seen.text(byOffset));
            Expect.equal("queue offset by offset id", result.getQueueOffset(), byOffset.getQueueOffset());
            String body = "viewed-" + i;
            Wait.until("message by unique id", 15, () -> {
                try {
                    return Seen.text(env.run.admin.viewMessage(topic, result.getMsgId())).equals(body);
                } catch (org.apache.rocketmq.client.exception.MQClientException e) {
                    return false;  // not indexed yet
                }
            });
        }
        // The address is right, the offset is far beyond the log.
        String nowhere = results.get(0).getOffsetMsgId().substring(0, 16) + "00000FFFFFFFFFFF";
        boolean refused = false;
        try {
            refused = env.run.admin.viewMessage(topic, nowhere) == null;
        } catch (Exception e) {
            refused = true;
        }
        Expect.equal("refused to view what is not there", true, refused);
        Expect.equal("still answers", "viewed-0", Seen.text(env.run.admin.viewMessage(topic, results.get(0).getOffsetMsgId())));
    }

    private static void reset(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(group, topic, "*", seen);
        Env.awaitQueues(consumer, topic, 2);
        env.send(topic, Env.bodies("early", 20));
        Wait.quiet(100);
        long between = System.currentTimeMillis();
        Wait.quiet(100);
        env.send(topic, Env.bodies("late", 20));
        Wait.until("40 messages", 15, () -> seen.size() >= 40, seen::size);
        // Offsets reach the broker within the persist interval.
        Wait.until("offsets at the broker", 10, () -> env.run.admin.examineConsumeStats(group, topic).computeTotalDiff() == 0);
        env.run.admin.resetOffsetByTimestamp(topic, group, between, true);
        // Wakes the pulls that wait. A client that is told to start elsewhere then drops the queue for 10 s and takes it back at
        // its next rebalance, up to 20 s later.
        env.send(topic, List.of("nudge", "nudge"));
        Wait.until("the late half again", 60, () -> seen.size() >= 62, seen::size);
        Wait.quiet(1500);
        List<String> expected = new ArrayList<>(Env.bodies("early", 20));
        expected.addAll(Env.bodies("late", 20));
        expected.addAll(List.of("nudge", "nudge"));
        expected.addAll(Env.bodies("late", 20));
        Expect.sameBag("consumed", expected, seen.bodies());
    }
}
