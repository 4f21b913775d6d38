package gantry.suite;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Consumers that ask by themselves. */
final class Pulling {
    private Pulling() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("pull-assign", Pulling::assign),
                Scenario.of("pull-subscribe", Pulling::subscribe),
                Scenario.of("pull-answers", Pulling::answers),
                Scenario.of("pull-long-poll", Pulling::longPoll));
    }

    private static List<String> poll(DefaultLitePullConsumer consumer, int count) throws Exception {
        List<String> found = new ArrayList<>();
        Wait.until(count + " messages by polling", 20, () -> {
            for (MessageExt message : consumer.poll(200)) {
                found.add(Seen.text(message));
            }
            return found.size() >= count;
        }, () -> found.size());
        return found;
    }

    private static void assign(Env env) throws Exception {
        String topic = env.topic(4);
        List<String> bodies = Env.bodies("pulled", 40);
        env.send(topic, bodies);
        DefaultLitePullConsumer consumer = env.litePull(env.name("group"));
        consumer.start();
        Collection<MessageQueue> queues = consumer.fetchMessageQueues(topic);
        Expect.equal("queues", 4, queues.size());
        consumer.assign(queues);
        for (MessageQueue queue : queues) {
            consumer.seekToBegin(queue);
        }
        Expect.sameBag("from the beginning", bodies, poll(consumer, 40));
        consumer.commitSync();
        for (MessageQueue queue : queues) {
            awaitCommitted(env, consumer, queue, 10L);
        }

        for (MessageQueue queue : queues) {
            consumer.seekToEnd(queue);
        }
        env.send(topic, Env.bodies("late", 4));
        Expect.sameBag("from the end", Env.bodies("late", 4), poll(consumer, 4));

        MessageQueue one = queues.iterator().next();
        env.run.readTopic(topic, 44);
        List<String> stored = Seen.texts(env.run.read(one));
        consumer.seek(one, 7);
        Expect.equal("from offset 7", stored.subList(7, stored.size()), poll(consumer, stored.size() - 7));
    }

    private static void awaitCommitted(Env env, DefaultLitePullConsumer consumer, MessageQueue queue, long offset)
            throws Exception {
        Wait.until("committed offset of " + queue.getQueueId(), 10, () -> consumer.committed(queue) == offset);
    }

    private static void subscribe(Env env) throws Exception {
        String topic = env.topic(4);
        String group = env.name("group");
        env.send(topic, Env.bodies("first", 20));
        DefaultLitePullConsumer consumer = env.litePull(group);
        consumer.subscribe(topic, "*");
        consumer.start();
        Expect.sameBag("first round", Env.bodies("first", 20), poll(consumer, 20));
        consumer.commitSync();
        for (int id = 0; id < 4; id++) {
            awaitCommitted(env, consumer, env.run.queue(topic, id), env.run.admin.maxOffset(env.run.queue(topic, id)));
        }
        consumer.shutdown();

        env.send(topic, Env.bodies("second", 20));
        DefaultLitePullConsumer heir = env.litePull(group);
        heir.subscribe(topic, "*");
        heir.start();
        Expect.sameBag("second round", Env.bodies("second", 20), poll(heir, 20));
    }

    @SuppressWarnings("deprecation")
    private static void answers(Env env) throws Exception {
        String topic = env.topic(1);
        MessageQueue queue = env.run.queue(topic, 0);
        PullResult empty = env.run.reader.pull(queue, "*", 0, 32);
        Expect.holds("empty queue", empty.getPullStatus() != PullStatus.FOUND, empty);
        env.send(topic, Env.bodies("m", 10));
        env.run.readTopic(topic, 10);
        PullResult found = env.run.reader.pull(queue, "*", 4, 3);
        Expect.equal("status", PullStatus.FOUND, found.getPullStatus());
        Expect.equal("found", List.of("m-4", "m-5", "m-6"), Seen.texts(found.getMsgFoundList()));
        Expect.equal("next offset", 7L, found.getNextBeginOffset());
        Expect.equal("min offset", 0L, found.getMinOffset());
        Expect.equal("max offset", 10L, found.getMaxOffset());
        PullResult end = env.run.reader.pull(queue, "*", 10, 32);
        Expect.equal("status at the end", PullStatus.NO_NEW_MSG, end.getPullStatus());
        PullResult beyond = env.run.reader.pull(queue, "*", 1_000_000, 32);
        Expect.equal("status beyond the end", PullStatus.OFFSET_ILLEGAL, beyond.getPullStatus());
        Expect.equal("next offset beyond the end", 10L, beyond.getNextBeginOffset());
        PullResult filtered = env.run.reader.pull(queue, "nothing has this tag", 0, 32);
        Expect.equal("status without match", PullStatus.NO_MATCHED_MSG, filtered.getPullStatus());
        Expect.equal("next offset without match", 10L, filtered.getNextBeginOffset());
        Expect.refused("queue 7 of 1", List.of(1, 29), () -> env.run.reader.pull(env.run.queue(topic, 7), "*", 0, 32));
        Expect.refused("unknown topic", 17, () -> env.run.reader.pull(env.run.queue(env.name("nowhere"), 0), "*", 0, 32));
    }

    /** A pull that waits at the end of a queue is answered when a message comes, not when its time is over. */
    @SuppressWarnings("deprecation")
    private static void longPoll(Env env) throws Exception {
        String topic = env.topic(1);
        env.send(topic, List.of("before"));
        env.run.readTopic(topic, 1);
        for (int i = 0; i < 3; i++) {
            String body = "wakes-" + i;
            long at = i + 1;
            Thread sender = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    env.send(Env.message(topic, body));
                } catch (Exception e) {
                    env.note("sender: " + e);
                }
            });
            sender.start();
            long start = System.currentTimeMillis();
            PullResult result = env.run.reader.pullBlockIfNotFound(env.run.queue(topic, 0), "*", at, 32);
            long waited = System.currentTimeMillis() - start;
            sender.join();
            Expect.equal("status", PullStatus.FOUND, result.getPullStatus());
            Expect.equal("found", List.of(body), Seen.texts(result.getMsgFoundList()));
            Expect.between("milliseconds waited", 400, 5000, waited);
        }
        env.run.readTopic(topic, 4);
        Expect.equal("max offset", 4L, env.run.admin.maxOffset(env.run.queue(topic, 0)));
    }
}
