package gantry.suite;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.trace.TraceView;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Message traces: clients write what they did, and read it back. */
final class Tracing {
    private static final String TOPIC = "RMQ_SYS_TRACE_TOPIC";
    private static final int MESSAGES = 64;

    private Tracing() {
    }

    static List<Scenario> scenarios() {
        return List.of(Scenario.of("trace", Tracing::timeline), Scenario.of("trace-own-topic", Tracing::ownTopic));
    }

    /** All that was written of one message. */
    private static List<TraceView> views(Env env, String topic, String id) {
        List<TraceView> views = new ArrayList<>();
        try {
            for (MessageExt message : env.run.admin.queryMessage(topic, id, MESSAGES, 0, Long.MAX_VALUE).getMessageList()) {
                views.addAll(TraceView.decodeFromTraceTransData(id, message));
            }
        } catch (Exception e) {
            // Nothing was written yet.
        }
        return views;
    }

    private static Set<String> kinds(List<TraceView> views) {
        Set<String> kinds = new TreeSet<>();
        views.forEach(view -> kinds.add(view.getMsgType() + " " + view.getGroupName() + " " + view.getStatus()));
        return kinds;
    }

    private static void expect(Env env, String topic, String id, Set<String> kinds) throws Exception {
        Wait.until("traces of " + id, 30, () -> kinds(views(env, topic, id)).equals(kinds), () -> kinds(views(env, topic, id)));
    }

    @SuppressWarnings("deprecation")
    private static void timeline(Env env) throws Exception {
        String topic = env.topic(1);
        String group = env.name("group");
        Seen seen = new Seen();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group, true, null);
        env.run.configure(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(Env.accept(seen));
        consumer.start();
        env.onClose(consumer::shutdown);

        String plain = env.name("producer");
        DefaultMQProducer producer = new DefaultMQProducer(plain, true, null);
        env.run.configure(producer);
        producer.start();
        env.onClose(producer::shutdown);
        String sent = producer.send(new Message(topic, "tag", "key", "plain".getBytes())).getMsgId();

        String transactional = env.name("transactional");
        TransactionMQProducer transactions = new TransactionMQProducer(null, transactional, null, true, null);
        env.run.configure(transactions);
        transactions.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }
        });
        transactions.start();
        env.onClose(transactions::shutdown);
        String committed = transactions.sendMessageInTransaction(Env.message(topic, "committed"), null).getMsgId();

        Wait.until("2 messages", 30, () -> seen.size() >= 2, seen::bodies);
        Set<String> consumed = Set.of("SubBefore " + group + " success", "SubAfter " + group + " success");
        Set<String> expected = new HashSet<>(consumed);
        expected.add("Pub " + plain + " success");
        expect(env, TOPIC, sent, expected);
        expected = new HashSet<>(consumed);
        expected.add("Pub " + transactional + " success");
        expected.add("EndTransaction " + transactional + " success");
        expect(env, TOPIC, committed, expected);
    }

    private static void ownTopic(Env env) throws Exception {
        String topic = env.topic(1);
        String traces = env.topic("traces", 1, 6);
        String group = env.name("producer");
        DefaultMQProducer producer = new DefaultMQProducer(group, true, traces);
        env.run.configure(producer);
        producer.start();
        env.onClose(producer::shutdown);
        String id = producer.send(Env.message(topic, "traced")).getMsgId();
        expect(env, traces, id, Set.of("Pub " + group + " success"));
    }
}
