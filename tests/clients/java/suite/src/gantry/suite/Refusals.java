package gantry.suite;

import java.util.List;
import java.util.Random;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;

/** What the broker refuses, with which code, and that it goes on after it. */
final class Refusals {
    private static final int SYSTEM_ERROR = 1;
    private static final int MESSAGE_ILLEGAL = 13;
    private static final int NO_PERMISSION = 16;
    private static final int TOPIC_NOT_EXIST = 17;
    private static final int INVALID_PARAMETER = 29;
    private static final int READ = 4;
    private static final int WRITE = 2;

    private Refusals() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("refuse-too-large", Refusals::tooLarge),
                Scenario.of("refuse-topic-name", Refusals::topicName),
                Scenario.of("refuse-permission", Refusals::permission),
                Scenario.of("refuse-queue", Refusals::queue),
                Scenario.of("refuse-unknown-topic", Refusals::unknownTopic));
    }

    private static void tooLarge(Env env) throws Exception {
        String topic = env.topic(1);
        DefaultMQProducer producer = env.producer("producer");
        producer.setMaxMessageSize(16 * 1024 * 1024);
        producer.setCompressMsgBodyOverHowmuch(16 * 1024 * 1024);
        byte[] body = new byte[5 * 1024 * 1024];
        new Random(5).nextBytes(body);
        Expect.refused("body of 5 MiB", MESSAGE_ILLEGAL, () -> producer.send(new Message(topic, body), env.run.queue(topic, 0)));
        Message wide = Env.message(topic, "wide");
        wide.putUserProperty("wide", "x".repeat(33_000));
        Expect.refused("properties of 33 KB", List.of(MESSAGE_ILLEGAL, SYSTEM_ERROR),
                () -> producer.send(wide, env.run.queue(topic, 0)));
        producer.send(Env.message(topic, "fits"));
        Expect.equal("stored", List.of("fits"), Seen.texts(env.run.readTopic(topic, 1)));
    }

    private static void topicName(Env env) throws Exception {
        List<Integer> codes = List.of(SYSTEM_ERROR, INVALID_PARAMETER);
        for (String bad : List.of("has a space", "has/slash", "../up", "x".repeat(200))) {
            Expect.refused("topic " + bad, codes,
                    () -> env.run.admin.createAndUpdateTopicConfig(env.run.brokerAddress, new TopicConfig(bad, 1, 1, 6)));
        }
        for (String reserved : List.of("TBW102", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC")) {
            Expect.refused("topic " + reserved, codes,
                    () -> env.run.admin.createAndUpdateTopicConfig(env.run.brokerAddress, new TopicConfig(reserved, 1, 1, 6)));
        }
    }

    @SuppressWarnings("deprecation")
    private static void permission(Env env) throws Exception {
        String readable = env.topic("readable", 1, READ);
        // The route tells the client that there is no queue to write to; Apache's broker itself does not look.
        boolean refused = false;
        try {
            env.run.producer.send(Env.message(readable, "no"));
        } catch (org.apache.rocketmq.client.exception.MQClientException e) {
            refused = true;
        }
        Expect.equal("refused to send to a topic that may be read only", true, refused);
        String writable = env.topic("writable", 1, WRITE);
        SendResult sent = env.run.producer.send(Env.message(writable, "yes"), env.run.queue(writable, 0));
        Expect.equal("offset", 0L, sent.getQueueOffset());
        Expect.refused("pulling from a topic that may be written only", NO_PERMISSION,
                () -> env.run.reader.pull(env.run.queue(writable, 0), "*", 0, 32));
    }

    private static void queue(Env env) throws Exception {
        String topic = env.topic(2);
        Expect.refused("queue 9 of 2", List.of(SYSTEM_ERROR, INVALID_PARAMETER),
                () -> env.run.producer.send(Env.message(topic, "no"), env.run.queue(topic, 9)));
        env.send(topic, List.of("yes"));
        Expect.equal("stored", List.of("yes"), Seen.texts(env.run.readTopic(topic, 1)));
    }

    private static void unknownTopic(Env env) throws Exception {
        String nowhere = env.name("nowhere");
        Expect.refused("route", TOPIC_NOT_EXIST, () -> env.run.admin.examineTopicRouteInfo(nowhere));
        Expect.refused("figures", TOPIC_NOT_EXIST, () -> env.run.admin.examineTopicStats(nowhere));
    }
}
