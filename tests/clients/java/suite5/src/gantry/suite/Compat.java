package gantry.suite;

import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** What client 5.x names differently from the other version. */
final class Compat {
    /** The clients' major version. */
    static final int MAJOR = 5;

    private Compat() {
    }

    /** Scenarios that only this version can run. */
    static List<Scenario> scenarios() {
        return Stream.of(Timers.scenarios(), Popping.scenarios(), Scaling.scenarios(), Groups.scenarios()).flatMap(List::stream).toList();
    }

    static void broadcasting(DefaultMQPushConsumer consumer) {
        consumer.setMessageModel(MessageModel.BROADCASTING);
    }

    static void createGroup(DefaultMQAdminExt admin, String broker, String group, int maxRetries, boolean consumable)
            throws Exception {
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        config.setRetryMaxTimes(maxRetries);
        config.setConsumeEnable(consumable);
        admin.createAndUpdateSubscriptionGroupConfig(broker, config);
    }

    static Set<String> groups(DefaultMQAdminExt admin, String broker) throws Exception {
        return admin.getAllSubscriptionGroup(broker, 5000).getSubscriptionGroupTable().keySet();
    }

    static void deleteTopicInNames(DefaultMQAdminExt admin, String names, String cluster, String topic) throws Exception {
        admin.deleteTopicInNameServer(Set.of(names), cluster, topic);
    }
}
