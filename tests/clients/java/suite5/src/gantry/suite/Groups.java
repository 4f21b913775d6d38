package gantry.suite;

import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.store.RemoteBrokerOffsetStore;
import org.apache.rocketmq.client.impl.MQClientManager;
import org.apache.rocketmq.remoting.protocol.subscription.CustomizedRetryPolicy;
import org.apache.rocketmq.remoting.protocol.subscription.GroupRetryPolicy;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;

/** What groups ask of the broker by their configuration. Gantry's attributes: against Apache's broker these scenarios fail. */
final class Groups {
    private Groups() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("group-start", Groups::start),
                Scenario.of("group-retry", Groups::retry),
                Scenario.of("group-broadcast", Groups::broadcast));
    }

    private static void declare(Env env, String group, Map<String, String> attributes, GroupRetryPolicy retry) throws Exception {
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        config.setAttributes(attributes);
        config.setGroupRetryPolicy(retry);
        env.run.admin.createAndUpdateSubscriptionGroupConfig(env.run.brokerAddress, config);
    }

    /** A new group begins where its operator said, not where its consumers ask for. */
    private static void start(Env env) throws Exception {
        String topic = env.topic(2);
        env.send(topic, Env.bodies("old", 10));
        Thread.sleep(50);
        long time = System.currentTimeMillis();
        env.send(topic, Env.bodies("middle", 10));
        declare(env, env.name("last"), Map.of("+gantry.start", "last"), new GroupRetryPolicy());
        declare(env, env.name("time"), Map.of("+gantry.start", Long.toString(time)), new GroupRetryPolicy());
        Seen last = new Seen();
        Env.awaitQueues(env.accepting(env.name("last"), topic, "*", last), topic, 2);
        Seen since = new Seen();
        Env.awaitQueues(env.accepting(env.name("time"), topic, "*", since), topic, 2);
        env.send(topic, Env.bodies("new", 10));
        Wait.until("10 messages since the end", 15, () -> last.size() >= 10, last::size);
        Wait.until("20 messages since the time", 15, () -> since.size() >= 20, since::size);
        Wait.quiet(500);
        Expect.sameBag("from the end", Env.bodies("new", 10), last.bodies());
        List<String> later = Env.bodies("middle", 10);
        later.addAll(Env.bodies("new", 10));
        Expect.sameBag("from the time", later, since.bodies());
    }

    /** Refused messages come again after the delays of the group's own policy. */
    private static void retry(Env env) throws Exception {
        String topic = env.topic(1);
        String group = env.name("group");
        long[] delays = {600, 1_700};
        GroupRetryPolicy policy = new GroupRetryPolicy();
        policy.setCustomizedRetryPolicy(new CustomizedRetryPolicy(delays));
        declare(env, group, Map.of(), policy);
        Map<Integer, Long> seen = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = env.push(group, topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            int times = messages.get(0).getReconsumeTimes();
            seen.putIfAbsent(times, System.currentTimeMillis());
            return times < delays.length ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        // A retry topic that is new is found by chance of when queues are shared out: not to be measured.
        Env.awaitQueues(consumer, "%RETRY%" + group, 1);
        env.send(topic, List.of("refused"));
        Wait.until("two retries", 30, () -> seen.containsKey(delays.length), () -> seen);
        for (int times = 0; times < delays.length; times++) {
            long waited = seen.get(times + 1) - seen.get(times);
            if (waited < delays[times] || waited >= 9_000) {
                throw new Mismatch("wait before retry " + (times + 1), delays[times] + " ms or a little more", waited);
            }
        }
    }

    /** A broadcasting consumer may keep its offsets with the broker, under a name of its own. */
    private static void broadcast(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        declare(env, group, Map.of("+gantry.broadcast.offsets", "broker"), new GroupRetryPolicy());
        for (String bodies : List.of("one", "two")) {
            Seen seen = new Seen();
            DefaultMQPushConsumer consumer = env.push(group, topic, "*");
            Compat.broadcasting(consumer);
            consumer.setOffsetStore(new RemoteBrokerOffsetStore(
                    MQClientManager.getInstance().getOrCreateMQClientInstance(consumer), "%BROADCAST%" + group + "%till"));
            consumer.registerMessageListener(Env.accept(seen));
            consumer.start();
            Env.awaitQueues(consumer, topic, 2);
            env.send(topic, Env.bodies(bodies, 20));
            Wait.until("20 messages", 15, () -> seen.size() >= 20, seen::size);
            Wait.quiet(500);
            Expect.sameBag("at the member " + bodies, Env.bodies(bodies, 20), seen.bodies());
            consumer.shutdown();
        }
    }
}
