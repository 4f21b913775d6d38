package gantry.suite;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.MessageQueue;

/** What operators' tools ask for. */
final class Administration {
    private Administration() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("admin-topic", Administration::topic),
                Scenario.of("admin-group", Administration::group),
                Scenario.of("admin-connections", Administration::connections),
                Scenario.of("admin-consume-stats", Administration::consumeStats),
                Scenario.of("admin-broker", Administration::broker));
    }

    private static void topic(Env env) throws Exception {
        var admin = env.run.admin;
        String topic = env.topic(3);
        var route = admin.examineTopicRouteInfo(topic);
        Expect.equal("brokers in the route", 1, route.getBrokerDatas().size());
        Expect.equal("broker", env.run.brokerName, route.getBrokerDatas().get(0).getBrokerName());
        Expect.equal("cluster", env.run.cluster, route.getBrokerDatas().get(0).getCluster());
        Expect.equal("address", env.run.brokerAddress, route.getBrokerDatas().get(0).selectBrokerAddr());
        Expect.equal("read queues", 3, route.getQueueDatas().get(0).getReadQueueNums());
        Expect.equal("write queues", 3, route.getQueueDatas().get(0).getWriteQueueNums());
        Expect.equal("permission", 6, route.getQueueDatas().get(0).getPerm());
        Expect.holds("topic is listed", admin.fetchAllTopicList().getTopicList().contains(topic), "not");

        long before = System.currentTimeMillis();
        env.send(topic, Env.bodies("counted", 7));
        Map<Integer, Long> sent = new HashMap<>();
        env.run.readTopic(topic, 7).forEach(message -> sent.merge(message.getQueueId(), 1L, Long::sum));
        var stats = admin.examineTopicStats(topic).getOffsetTable();
        Expect.equal("queues with figures", 3, stats.size());
        long total = 0;
        for (var each : stats.entrySet()) {
            Expect.equal("min offset", 0L, each.getValue().getMinOffset());
            Expect.equal("max offset", sent.getOrDefault(each.getKey().getQueueId(), 0L), each.getValue().getMaxOffset());
            Expect.between("last update", before, System.currentTimeMillis(), each.getValue().getLastUpdateTimestamp());
            total += each.getValue().getMaxOffset();
        }
        Expect.equal("messages", 7L, total);

        env.run.createTopic(topic, 5, 6);
        Expect.equal("read queues after the change", 5,
                admin.examineTopicRouteInfo(topic).getQueueDatas().get(0).getReadQueueNums());
        Expect.equal("messages after the change", 7, env.run.readTopic(topic).size());

        admin.deleteTopicInBroker(Set.of(env.run.brokerAddress), topic);
        Compat.deleteTopicInNames(admin, env.run.namesrv, env.run.cluster, topic);
        Wait.until("topic is gone from the list", 10, () -> !admin.fetchAllTopicList().getTopicList().contains(topic));
        Expect.refused("route of a deleted topic", 17, () -> admin.examineTopicRouteInfo(topic));
    }

    private static void group(Env env) throws Exception {
        var admin = env.run.admin;
        String group = env.name("group");
        Compat.createGroup(admin, env.run.brokerAddress, group, 5, true);
        Expect.holds("group is listed", Compat.groups(admin, env.run.brokerAddress).contains(group), "not");
        var config = admin.examineSubscriptionGroupConfig(env.run.brokerAddress, group);
        Expect.equal("name", group, config.getGroupName());
        Expect.equal("retries", 5, config.getRetryMaxTimes());
        Expect.equal("consumable", true, config.isConsumeEnable());
        Compat.createGroup(admin, env.run.brokerAddress, group, 7, false);
        config = admin.examineSubscriptionGroupConfig(env.run.brokerAddress, group);
        Expect.equal("retries after the change", 7, config.getRetryMaxTimes());
        Expect.equal("consumable after the change", false, config.isConsumeEnable());
        admin.deleteSubscriptionGroup(env.run.brokerAddress, group);
        // Apache's broker 5.5.0 looks the deleted group up once more, which creates it again with the defaults.
        boolean again = Compat.groups(admin, env.run.brokerAddress).contains(group);
        env.defect("deleted groups that are there again", again ? 1 : 0, 1);
    }

    private static void connections(Env env) throws Exception {
        var admin = env.run.admin;
        String topic = env.topic(1);
        String group = env.name("group");
        DefaultMQPushConsumer consumer = env.accepting(group, topic, "A || B", new Seen());
        Wait.until("consumer is connected", 10, () -> {
            try {
                return admin.examineConsumerConnectionInfo(group).getConnectionSet().size() == 1;
            } catch (org.apache.rocketmq.client.exception.MQBrokerException e) {
                return false;  // 206: not online yet
            }
        });
        var connection = admin.examineConsumerConnectionInfo(group);
        var one = connection.getConnectionSet().iterator().next();
        Expect.equal("language", "JAVA", one.getLanguage().name());
        Expect.holds("client id names the instance", one.getClientId().contains(env.run.prefix), one.getClientId());
        Expect.holds("address", one.getClientAddr().startsWith("127.0.0.1:"), one.getClientAddr());
        Expect.equal("type", "CONSUME_PASSIVELY", connection.getConsumeType().name());
        Expect.equal("model", "CLUSTERING", connection.getMessageModel().name());
        Expect.equal("from", "CONSUME_FROM_FIRST_OFFSET", connection.getConsumeFromWhere().name());
        var subscription = connection.getSubscriptionTable().get(topic);
        Expect.equal("subscription", "A || B", subscription.getSubString());
        Expect.equal("tags", Set.of("A", "B"), subscription.getTagsSet());
        Expect.holds("retry topic is subscribed", connection.getSubscriptionTable().containsKey("%RETRY%" + group),
                connection.getSubscriptionTable().keySet());

        DefaultMQProducer producer = env.producer("producer");
        producer.send(Env.message(topic, "hello"));
        Wait.until("producer is connected", 10, () -> {
            try {
                return admin.examineProducerConnectionInfo(env.name("producer"), topic).getConnectionSet().size() == 1;
            } catch (org.apache.rocketmq.client.exception.MQBrokerException e) {
                return false;
            }
        });

        consumer.shutdown();
        producer.shutdown();
        Wait.until("consumer is gone", 10, () -> {
            try {
                return admin.examineConsumerConnectionInfo(group).getConnectionSet().isEmpty();
            } catch (org.apache.rocketmq.client.exception.MQBrokerException e) {
                return e.getResponseCode() == 206;
            }
        });
        Wait.until("producer is gone", 10, () -> {
            try {
                return admin.examineProducerConnectionInfo(env.name("producer"), topic).getConnectionSet().isEmpty();
            } catch (org.apache.rocketmq.client.exception.MQBrokerException e) {
                return true;
            }
        });
    }

    private static void consumeStats(Env env) throws Exception {
        String topic = env.topic(2);
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = env.accepting(group, topic, "*", seen);
        env.send(topic, Env.bodies("m", 20));
        Wait.until("20 messages", 15, () -> seen.size() >= 20, seen::size);
        consumer.shutdown();
        env.send(topic, Env.bodies("behind", 6));
        Wait.until("lag of 6", 10, () -> env.run.admin.examineConsumeStats(group, topic).computeTotalDiff() == 6,
                () -> {
                    try {
                        return env.run.admin.examineConsumeStats(group, topic).computeTotalDiff();
                    } catch (Exception e) {
                        return e;
                    }
                });
        var table = env.run.admin.examineConsumeStats(group, topic).getOffsetTable();
        long broker = 0;
        long consumed = 0;
        for (int id = 0; id < 2; id++) {
            MessageQueue queue = env.run.queue(topic, id);
            broker += table.get(queue).getBrokerOffset();
            consumed += table.get(queue).getConsumerOffset();
        }
        Expect.equal("broker offsets", 26L, broker);
        Expect.equal("consumer offsets", 20L, consumed);
    }

    private static void broker(Env env) throws Exception {
        var admin = env.run.admin;
        var cluster = admin.examineBrokerClusterInfo();
        Expect.equal("broker in its cluster", Set.of(env.run.brokerName), cluster.getClusterAddrTable().get(env.run.cluster));
        Map<String, String> figures = admin.fetchBrokerRuntimeStats(env.run.brokerAddress).getTable();
        for (String key : List.of("brokerVersionDesc", "bootTimestamp", "putMessageTimesTotal", "putTps", "getTransferredTps",
                "msgPutTotalTodayNow", "msgGetTotalTodayNow", "commitLogMaxOffset", "commitLogMinOffset",
                "commitLogDiskRatio", "dispatchBehindBytes", "runtime", "sendThreadPoolQueueSize",
                "earliestMessageTimeStamp")) {
            Expect.holds("runtime figure " + key, figures.containsKey(key), figures.keySet());
        }
        Properties config = admin.getBrokerConfig(env.run.brokerAddress);
        Expect.equal("brokerName", env.run.brokerName, config.getProperty("brokerName"));
        Expect.equal("brokerId", "0", config.getProperty("brokerId"));
        Expect.equal("brokerClusterName", env.run.cluster, config.getProperty("brokerClusterName"));
        Expect.holds("flushDiskType", Set.of("ASYNC_FLUSH", "SYNC_FLUSH").contains(config.getProperty("flushDiskType")),
                config.getProperty("flushDiskType"));
    }
}
