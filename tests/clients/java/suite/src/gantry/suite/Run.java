package gantry.suite;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** What all scenarios of one run share: the broker, and one administrator, plain producer and reader. */
final class Run implements AutoCloseable {
    private static final AtomicLong INSTANCES = new AtomicLong();

    final String namesrv;
    final String prefix;
    final DefaultMQAdminExt admin;
    final DefaultMQProducer producer;
    final DefaultMQPullConsumer reader;
    final String brokerName;
    final String brokerAddress;
    final String cluster;

    @SuppressWarnings("deprecation")
    Run(String namesrv, String prefix) throws Exception {
        this.namesrv = namesrv;
        this.prefix = prefix;
        admin = new DefaultMQAdminExt(15_000);
        admin.setAdminExtGroup(prefix + "_admin");
        configure(admin);
        admin.start();
        var info = admin.examineBrokerClusterInfo();
        var table = info.getBrokerAddrTable();
        if (table.isEmpty()) {
            throw new Mismatch("brokers known to the name server " + namesrv, "one", "none");
        }
        var broker = table.values().iterator().next();
        brokerName = broker.getBrokerName();
        brokerAddress = broker.selectBrokerAddr();
        cluster = broker.getCluster();

        producer = new DefaultMQProducer(prefix + "_plain");
        configure(producer);
        producer.setSendMsgTimeout(10_000);
        producer.setMaxMessageSize(4 * 1024 * 1024);
        producer.start();

        reader = new DefaultMQPullConsumer(prefix + "_reader");
        configure(reader);
        reader.start();
    }

    /** Settings of every client: an instance of its own, and short intervals so that no wait is for a timer's sake. */
    void configure(ClientConfig client) {
        client.setNamesrvAddr(namesrv);
        client.setInstanceName(prefix + "-" + ProcessHandle.current().pid() + "-" + INSTANCES.incrementAndGet());
        client.setPollNameServerInterval(2_000);
        client.setHeartbeatBrokerInterval(2_000);
        client.setPersistConsumerOffsetInterval(1_000);
    }

    /** Creates a topic and waits until its route is there. */
    void createTopic(String topic, int queues, int perm) throws Exception {
        admin.createAndUpdateTopicConfig(brokerAddress, new TopicConfig(topic, queues, queues, perm));
        Wait.until("route of " + topic, 10, () -> {
            try {
                var route = admin.examineTopicRouteInfo(topic);
                return route.getQueueDatas().get(0).getReadQueueNums() == queues;
            } catch (Exception e) {
                return false;
            }
        });
    }

    MessageQueue queue(String topic, int queueId) {
        return new MessageQueue(topic, brokerName, queueId);
    }

    /** All messages of one queue from its first to its last offset. */
    List<MessageExt> read(MessageQueue queue) throws Exception {
        List<MessageExt> found = new ArrayList<>();
        long at = admin.minOffset(queue);
        long end = admin.maxOffset(queue);
        while (at < end) {
            PullResult page = reader.pull(queue, "*", at, 32);
            if (page.getPullStatus() == PullStatus.FOUND) {
                found.addAll(page.getMsgFoundList());
            } else if (page.getNextBeginOffset() <= at) {
                throw new Mismatch("pull of " + queue + " at " + at + " (end " + end + ")", "messages", page);
            }
            at = page.getNextBeginOffset();
        }
        return found;
    }

    /** All messages of a topic, queue by queue. */
    List<MessageExt> readTopic(String topic) throws Exception {
        int queues = admin.examineTopicRouteInfo(topic).getQueueDatas().get(0).getReadQueueNums();
        List<MessageExt> found = new ArrayList<>();
        for (int id = 0; id < queues; id++) {
            found.addAll(read(queue(topic, id)));
        }
        return found;
    }

    /** All messages of a topic, once there are so many: an acknowledged message may take a moment to reach its queue. */
    List<MessageExt> readTopic(String topic, int atLeast) throws Exception {
        List<MessageExt> found = new ArrayList<>();
        Wait.until(atLeast + " messages in " + topic, 10, () -> {
            found.clear();
            found.addAll(readTopic(topic));
            return found.size() >= atLeast;
        }, found::size);
        return found;
    }

    @Override
    @SuppressWarnings("deprecation")
    public void close() {
        reader.shutdown();
        producer.shutdown();
        admin.shutdown();
    }
}
