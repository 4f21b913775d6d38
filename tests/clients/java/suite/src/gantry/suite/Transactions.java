package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Function;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.producer.TransactionSendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * Transactions. The broker is expected to check early and often (2 s each).
 *
 * <p>Apache's broker 5.5.0 writes down answers in batches (transactionOpBatchInterval, 3 s by default). A check before that puts
 * the half message back at another offset, which the answer does not name: so it checks what was answered, and can commit it
 * twice. Both fail these scenarios, unless the run tolerates defects; with a short batch interval they are not seen.
 */
final class Transactions {
    private static final int PATIENCE_SECONDS = 45;

    private Transactions() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("transaction-mixed", Transactions::mixed),
                Scenario.of("transaction-other-member", Transactions::otherMember),
                Scenario.of("transaction-immunity", Transactions::immunity),
                Scenario.of("transaction-checked-twice", Transactions::checkedTwice),
                Scenario.of("transaction-checked-commit", Transactions::checkedCommit),
                Scenario.of("transaction-checked-rollback", Transactions::checkedRollback),
                Scenario.of("transaction-commit", Transactions::commit),
                Scenario.of("transaction-rollback", Transactions::rollback));
    }

    /** Answers local transactions and checks by the message's properties, and counts the checks. */
    static final class Decider implements TransactionListener {
        final Map<String, Integer> checks = new ConcurrentHashMap<>();
        final Map<String, Long> firstCheck = new ConcurrentHashMap<>();
        private final Function<Message, LocalTransactionState> local;
        private final Function<MessageExt, LocalTransactionState> check;

        Decider(Function<Message, LocalTransactionState> local, Function<MessageExt, LocalTransactionState> check) {
            this.local = local;
            this.check = check;
        }

        @Override
        public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return local.apply(message);
        }

        @Override
        public LocalTransactionState checkLocalTransaction(MessageExt message) {
            String body = Seen.text(message);
            firstCheck.putIfAbsent(body, System.currentTimeMillis());
            checks.merge(body, 1, Integer::sum);
            return check.apply(message);
        }

        int checked() {
            return checks.size();
        }
    }

    static Decider always(LocalTransactionState local, LocalTransactionState check) {
        return new Decider(m -> local, m -> check);
    }

    static TransactionSendResult begin(TransactionMQProducer producer, Message message) throws Exception {
        TransactionSendResult result = producer.sendMessageInTransaction(message, null);
        Expect.equal("status of the half message", SendStatus.SEND_OK, result.getSendStatus());
        return result;
    }

    /** What consumers may see now; fails on a body that is there too often or was never committed. */
    static void expectVisible(Env env, String topic, List<String> expected) throws Exception {
        List<String> found = Seen.texts(env.run.readTopic(topic));
        Map<String, Integer> copies = new HashMap<>();
        found.forEach(body -> copies.merge(body, 1, Integer::sum));
        Expect.sameBag("visible", expected, copies.keySet());
        env.defect("transactions stored twice", (int) copies.values().stream().filter(n -> n > 1).count(), expected.size());
    }

    static void awaitVisible(Env env, String topic, int count) throws Exception {
        Wait.until(count + " committed messages", PATIENCE_SECONDS,
                () -> Set.copyOf(Seen.texts(env.run.readTopic(topic))).size() >= count,
                () -> {
                    try {
                        return Set.copyOf(Seen.texts(env.run.readTopic(topic))).size();
                    } catch (Exception e) {
                        return e;
                    }
                });
    }

    private static void commit(Env env) throws Exception {
        String topic = env.topic(2);
        List<Integer> duringLocal = new ArrayList<>();
        Decider decider = new Decider(message -> {
            try {
                Thread.sleep(100);
                duringLocal.add((int) env.run.readTopic(topic).stream().filter(m -> Seen.text(m).equals(
                        new String(message.getBody(), StandardCharsets.UTF_8))).count());
            } catch (Exception e) {
                duringLocal.add(-1);
            }
            return LocalTransactionState.COMMIT_MESSAGE;
        }, m -> LocalTransactionState.COMMIT_MESSAGE);
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        Seen seen = new Seen();
        env.accepting(env.name("consumer"), topic, "tag", seen);
        List<String> bodies = Env.bodies("committed", 10);
        Map<String, TransactionSendResult> results = new HashMap<>();
        for (String body : bodies) {
            Message message = new Message(topic, "tag", "key " + body, body.getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("kept", "yes");
            results.put(body, begin(producer, message));
        }
        Wait.until("10 committed messages", 20, () -> seen.size() >= 10, seen::size);
        Wait.quiet(6000);
        Expect.sameBag("consumed", bodies, seen.bodies());
        Expect.equal("visible during the local transaction", 0, duringLocal.stream().mapToInt(Math::abs).sum());
        env.defect("checks of committed transactions", decider.checked(), 10);
        expectVisible(env, topic, bodies);
        for (Seen.Delivery delivery : seen.all()) {
            MessageExt message = delivery.message();
            TransactionSendResult result = results.get(delivery.body());
            Expect.equal("local state", LocalTransactionState.COMMIT_MESSAGE, result.getLocalTransactionState());
            Expect.equal("topic", topic, message.getTopic());
            Expect.equal("key", "key " + delivery.body(), message.getKeys());
            Expect.equal("property", "yes", message.getUserProperty("kept"));
            Expect.equal("unique id", result.getMsgId(), message.getMsgId());
            Expect.equal("transaction id", result.getTransactionId(), message.getTransactionId());
            Expect.equal("queue", result.getMessageQueue().getQueueId(), message.getQueueId());
        }
    }

    private static void rollback(Env env) throws Exception {
        String topic = env.topic(2);
        Decider decider = always(LocalTransactionState.ROLLBACK_MESSAGE, LocalTransactionState.ROLLBACK_MESSAGE);
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        for (String body : Env.bodies("rolled back", 10)) {
            begin(producer, Env.message(topic, body));
        }
        Wait.quiet(8000);
        env.defect("checks of rolled back transactions", decider.checked(), 10);
        expectVisible(env, topic, List.of());
    }

    private static void checkedCommit(Env env) throws Exception {
        String topic = env.topic(2);
        Decider decider = always(LocalTransactionState.UNKNOW, LocalTransactionState.COMMIT_MESSAGE);
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        List<String> bodies = Env.bodies("unknown", 20);
        for (String body : bodies) {
            begin(producer, Env.message(topic, body));
        }
        awaitVisible(env, topic, bodies.size());
        Wait.quiet(8000);
        Expect.equal("checked", 20, decider.checked());
        expectVisible(env, topic, bodies);
    }

    private static void checkedRollback(Env env) throws Exception {
        String topic = env.topic(2);
        Decider decider = always(LocalTransactionState.UNKNOW, LocalTransactionState.ROLLBACK_MESSAGE);
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        for (String body : Env.bodies("unknown", 20)) {
            begin(producer, Env.message(topic, body));
        }
        Wait.until("20 checked", PATIENCE_SECONDS, () -> decider.checked() >= 20, decider::checked);
        Wait.quiet(8000);
        expectVisible(env, topic, List.of());
    }

    /** The first check is not answered either: the second one decides. */
    private static void checkedTwice(Env env) throws Exception {
        String topic = env.topic(1);
        Map<String, Integer> asked = new ConcurrentHashMap<>();
        Decider decider = new Decider(m -> LocalTransactionState.UNKNOW, message -> {
            boolean again = asked.merge(Seen.text(message), 1, Integer::sum) > 1;
            if (!again) {
                return LocalTransactionState.UNKNOW;
            }
            return Seen.text(message).startsWith("commit") ? LocalTransactionState.COMMIT_MESSAGE
                    : LocalTransactionState.ROLLBACK_MESSAGE;
        });
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        for (int i = 0; i < 5; i++) {
            begin(producer, Env.message(topic, "commit-" + i));
            begin(producer, Env.message(topic, "rollback-" + i));
        }
        awaitVisible(env, topic, 5);
        Wait.until("10 checked twice", PATIENCE_SECONDS,
                () -> decider.checks.values().stream().filter(n -> n >= 2).count() == 10, () -> decider.checks);
        Wait.quiet(6000);
        expectVisible(env, topic, Env.bodies("commit", 5));
    }

    private static void mixed(Env env) throws Exception {
        String topic = env.topic(4);
        Decider decider = new Decider(
                message -> switch (message.getUserProperty("end")) {
                    case "commit" -> LocalTransactionState.COMMIT_MESSAGE;
                    case "rollback" -> LocalTransactionState.ROLLBACK_MESSAGE;
                    default -> LocalTransactionState.UNKNOW;
                },
                message -> message.getUserProperty("end").endsWith("commit") ? LocalTransactionState.COMMIT_MESSAGE
                        : LocalTransactionState.ROLLBACK_MESSAGE);
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        Seen seen = new Seen();
        env.accepting(env.name("consumer"), topic, "*", seen);
        List<String> expected = new ArrayList<>();
        List<String> ends = List.of("commit", "rollback", "check commit", "check rollback");
        for (int i = 0; i < 100; i++) {
            String end = ends.get(i % 4);
            Message message = Env.message(topic, end + "-" + i);
            message.putUserProperty("end", end);
            begin(producer, message);
            if (i % 2 == 0) {
                expected.add(end + "-" + i);
            }
        }
        awaitVisible(env, topic, 50);
        Wait.until("50 checked", PATIENCE_SECONDS, () -> checkedOf(decider, "check") >= 50, decider::checked);
        Wait.quiet(8000);
        env.defect("checks of answered transactions", checkedOf(decider, "commit") + checkedOf(decider, "rollback"), 50);
        expectVisible(env, topic, expected);
        Wait.until("50 consumed", 10, () -> seen.distinct() >= 50, seen::distinct);
        Expect.sameBag("consumed", expected, Set.copyOf(seen.bodies()));
    }

    private static int checkedOf(Decider decider, String prefix) {
        return (int) decider.checks.keySet().stream().filter(body -> body.startsWith(prefix)).count();
    }

    /** The producer that began is gone; another one of its group answers. */
    private static void otherMember(Env env) throws Exception {
        String topic = env.topic(1);
        String group = env.name("group");
        TransactionMQProducer gone = env.transactional(group, always(LocalTransactionState.UNKNOW, LocalTransactionState.UNKNOW));
        begin(gone, Env.message(topic, "commit"));
        begin(gone, Env.message(topic, "rollback"));
        Decider decider = new Decider(m -> LocalTransactionState.UNKNOW, message -> Seen.text(message).equals("commit")
                ? LocalTransactionState.COMMIT_MESSAGE : LocalTransactionState.ROLLBACK_MESSAGE);
        gone.shutdown();
        TransactionMQProducer heir = env.transactional(group, decider);
        // A producer is known to a broker once it has sent there.
        heir.send(Env.message(env.topic("hello", 1, 6), "hello"));
        awaitVisible(env, topic, 1);
        Wait.until("2 checked", PATIENCE_SECONDS, () -> decider.checked() >= 2, () -> decider.checks);
        Wait.quiet(4000);
        expectVisible(env, topic, List.of("commit"));
    }

    /** A message may ask for more time before its first check. */
    private static void immunity(Env env) throws Exception {
        String topic = env.topic(1);
        AtomicLong born = new AtomicLong();
        Decider decider = always(LocalTransactionState.UNKNOW, LocalTransactionState.COMMIT_MESSAGE);
        TransactionMQProducer producer = env.transactional(env.name("group"), decider);
        Message message = Env.message(topic, "patient");
        message.putUserProperty(MessageConst.PROPERTY_CHECK_IMMUNITY_TIME_IN_SECONDS, "8");
        born.set(System.currentTimeMillis());
        begin(producer, message);
        awaitVisible(env, topic, 1);
        Expect.between("milliseconds before the first check", 7_900, 8_000 + 20_000, decider.firstCheck.get("patient") - born.get());
        Wait.quiet(4000);
        expectVisible(env, topic, List.of("patient"));
    }
}
