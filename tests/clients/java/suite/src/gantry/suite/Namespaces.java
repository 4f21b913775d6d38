package gantry.suite;

import java.util.List;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;

/** Clients with a namespace: topics, groups, retries and dead letters are {@code namespace%name}. */
final class Namespaces {
    private Namespaces() {
    }

    static List<Scenario> scenarios() {
        return List.of(Scenario.of("namespace", Namespaces::retried));
    }

    /** A message is refused twice: it goes through the retry topic to the dead letters, all of them the namespace's. */
    @SuppressWarnings("deprecation")
    private static void retried(Env env) throws Exception {
        String space = env.name("space");
        String topic = env.name("topic");
        String group = env.name("group");
        env.run.createTopic(space + "%" + topic, 1, 6);
        Seen seen = new Seen();
        // As it is at the delivery: a client that sends a message back puts the namespace into it again.
        Queue<String> named = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        env.run.configure(consumer);
        consumer.setNamespace(space);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(1);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            messages.forEach(message -> named.add(message.getTopic()));
            messages.forEach(seen::add);
            context.setDelayLevelWhenNextConsume(1);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        env.onClose(consumer::shutdown);
        DefaultMQProducer producer = new DefaultMQProducer(env.name("producer"));
        env.run.configure(producer);
        producer.setNamespace(space);
        producer.start();
        env.onClose(producer::shutdown);
        producer.send(Env.message(topic, "refused"));

        Wait.until("2 deliveries", 40, () -> seen.size() >= 2, seen::bodies);
        for (String name : named) {
            Expect.equal("topic as the consumer sees it", topic, name);
        }
        String dead = "%DLQ%" + space + "%" + group;
        Wait.until("the dead-letter topic", 30, () -> topics(env).contains(dead), () -> topics(env));
        Expect.holds("the retry topic is the namespace's", topics(env).contains("%RETRY%" + space + "%" + group), null);
        List<MessageExt> letters = env.run.readTopic(dead, 1);
        Expect.equal("dead letter", "refused", Seen.text(letters.get(0)));
    }

    private static Set<String> topics(Env env) {
        try {
            return env.run.admin.fetchAllTopicList().getTopicList();
        } catch (Exception e) {
            return Set.of();
        }
    }
}
