package gantry.suite;

import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.common.message.MessageExt;

/** Every way to send. */
final class Sending {
    private static final int BATCH_LIMIT = 512 * 1024;

    private Sending() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("send-sync", Sending::sync),
                Scenario.of("send-async", Sending::async),
                Scenario.of("send-oneway", Sending::oneway),
                Scenario.of("send-batch", Sending::batch),
                Scenario.of("send-batch-big", Sending::bigBatch),
                Scenario.of("send-properties", Sending::properties),
                Scenario.of("send-large", Sending::large),
                Scenario.of("send-selector", Sending::selector),
                Scenario.of("send-auto-create", Sending::autoCreate));
    }

    private static void sync(Env env) throws Exception {
        String topic = env.topic(4);
        List<String> bodies = Env.bodies("sync", 40);
        List<SendResult> results = env.send(topic, bodies);
        Map<Integer, Long> next = new HashMap<>();
        Set<String> ids = new HashSet<>();
        for (SendResult result : results) {
            int queue = result.getMessageQueue().getQueueId();
            Expect.equal("offset in queue " + queue, next.getOrDefault(queue, 0L), result.getQueueOffset());
            next.put(queue, result.getQueueOffset() + 1);
            ids.add(result.getMsgId());
            ids.add(result.getOffsetMsgId());
            InetSocketAddress host = (InetSocketAddress) MessageDecoder.decodeMessageId(result.getOffsetMsgId()).getAddress();
            Expect.equal("port in the offset id", Integer.parseInt(env.run.brokerAddress.replaceAll(".*:", "")), host.getPort());
        }
        Expect.equal("different ids", 80, ids.size());
        Expect.equal("queues used", 4, next.size());
        Expect.sameBag("stored", bodies, Seen.texts(env.run.readTopic(topic, bodies.size())));
    }

    private static void async(Env env) throws Exception {
        String topic = env.topic(4);
        List<String> bodies = Env.bodies("async", 100);
        CountDownLatch done = new CountDownLatch(bodies.size());
        AtomicReference<Object> refused = new AtomicReference<>();
        for (String body : bodies) {
            env.run.producer.send(Env.message(topic, body), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    if (result.getSendStatus() != SendStatus.SEND_OK) {
                        refused.set(result);
                    }
                    done.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    refused.set(e);
                    done.countDown();
                }
            });
        }
        Expect.holds("all answered within 20 s", done.await(20, TimeUnit.SECONDS), done.getCount() + " open");
        Expect.equal("refused", null, refused.get());
        Expect.sameBag("stored", bodies, Seen.texts(env.run.readTopic(topic, bodies.size())));
    }

    private static void oneway(Env env) throws Exception {
        String topic = env.topic(4);
        List<String> bodies = Env.bodies("oneway", 50);
        for (String body : bodies) {
            env.run.producer.sendOneway(Env.message(topic, body));
        }
        Expect.sameBag("stored", bodies, Seen.texts(env.run.readTopic(topic, bodies.size())));
    }

    private static void batch(Env env) throws Exception {
        String topic = env.topic(2);
        List<Message> batch = new ArrayList<>();
        for (int i = 0; i < 5; i++) {
            Message message = new Message(topic, "tag" + i, "key" + i, ("batch-" + i).getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("n", Integer.toString(i));
            message.setFlag(i);
            batch.add(message);
        }
        SendResult result = env.run.producer.send(batch);
        Expect.equal("send status", SendStatus.SEND_OK, result.getSendStatus());
        String[] unique = result.getMsgId().split(",");
        String[] physical = result.getOffsetMsgId().split(",");
        Expect.equal("unique ids", 5, unique.length);
        Expect.equal("offset ids", 5, physical.length);
        List<MessageExt> stored = env.run.readTopic(topic, 5);
        Expect.equal("stored in the one queue", Env.bodies("batch", 5), Seen.texts(stored));
        for (int i = 0; i < 5; i++) {
            MessageExt message = stored.get(i);
            Expect.equal("queue offset", result.getQueueOffset() + i, message.getQueueOffset());
            Expect.equal("tag", "tag" + i, message.getTags());
            Expect.equal("key", "key" + i, message.getKeys());
            Expect.equal("property n", Integer.toString(i), message.getUserProperty("n"));
            Expect.equal("flag", i, message.getFlag());
            Expect.equal("unique id", unique[i], message.getMsgId());
            MessageExt viewed = env.run.admin.viewMessage(topic, physical[i]);
            Expect.equal("body by offset id", "batch-" + i, Seen.text(viewed));
        }
    }

    /** A long list, cut into batches that a request may hold. */
    private static void bigBatch(Env env) throws Exception {
        String topic = env.topic(4);
        List<String> bodies = new ArrayList<>();
        List<Message> batch = new ArrayList<>();
        int size = 0;
        for (int i = 0; i < 1000; i++) {
            String body = "big-" + i + "-" + "x".repeat(2048);
            bodies.add(body);
            batch.add(Env.message(topic, body));
            size += body.length() + 64;
            if (size > BATCH_LIMIT || i == 999) {
                Expect.equal("send status", SendStatus.SEND_OK, env.run.producer.send(batch).getSendStatus());
                batch.clear();
                size = 0;
            }
        }
        Expect.sameBag("stored", bodies, Seen.texts(env.run.readTopic(topic, bodies.size())));
    }

    private static void properties(Env env) throws Exception {
        String topic = env.topic(1);
        String body = "Grüße, 世界 🚀 \0 end";
        Message message = new Message(topic, "täg", "first second", body.getBytes(StandardCharsets.UTF_8));
        message.setFlag(0x7eadbeef);
        message.putUserProperty("plain", "value");
        message.putUserProperty("ключ", "значение 🚀");
        message.putUserProperty("spaced", " a b ");
        message.setBuyerId("buyer");
        message.setWaitStoreMsgOK(true);
        long before = System.currentTimeMillis();
        SendResult result = env.send(message);
        long after = System.currentTimeMillis();
        MessageExt stored = env.run.readTopic(topic, 1).get(0);
        Expect.equal("body", body, Seen.text(stored));
        Expect.equal("tag", "täg", stored.getTags());
        Expect.equal("keys", "first second", stored.getKeys());
        Expect.equal("flag", 0x7eadbeef, stored.getFlag());
        Expect.equal("property plain", "value", stored.getUserProperty("plain"));
        Expect.equal("property ключ", "значение 🚀", stored.getUserProperty("ключ"));
        Expect.equal("property spaced", " a b ", stored.getUserProperty("spaced"));
        Expect.equal("buyer id", "buyer", stored.getBuyerId());
        Expect.equal("waits for the store", true, stored.isWaitStoreMsgOK());
        Expect.equal("unique id", result.getMsgId(), stored.getMsgId());
        Expect.equal("queue offset", result.getQueueOffset(), stored.getQueueOffset());
        Expect.equal("reconsume times", 0, stored.getReconsumeTimes());
        Expect.between("born time", before, after, stored.getBornTimestamp());
        Expect.between("store time", before, after, stored.getStoreTimestamp());
        Expect.equal("store host", env.run.brokerAddress, stored.getStoreHost().toString().replaceAll(".*/", ""));
        Expect.equal("physical offset", MessageDecoder.decodeMessageId(result.getOffsetMsgId()).getOffset(),
                stored.getCommitLogOffset());
    }

    private static void large(Env env) throws Exception {
        String topic = env.topic(1);
        byte[] random = new byte[1024 * 1024];
        new Random(7).nextBytes(random);
        byte[] repeated = new byte[1024 * 1024];
        Arrays.fill(repeated, (byte) 'r');
        byte[] justCompressed = new byte[5000];
        byte[] nearlyAll = new byte[4 * 1024 * 1024 - 4096];
        new Random(8).nextBytes(nearlyAll);
        List<byte[]> bodies = List.of(new byte[] {1}, new byte[4095], justCompressed, repeated, random);
        for (byte[] body : bodies) {
            env.send(new Message(topic, body));
        }
        Message asIs = new Message(topic, nearlyAll);
        env.run.producer.setCompressMsgBodyOverHowmuch(8 * 1024 * 1024);
        try {
            env.send(asIs);
        } finally {
            env.run.producer.setCompressMsgBodyOverHowmuch(4096);
        }
        List<MessageExt> stored = env.run.readTopic(topic, bodies.size() + 1);
        Expect.equal("messages", bodies.size() + 1, stored.size());
        for (int i = 0; i < bodies.size(); i++) {
            Expect.equal("body " + i, bodies.get(i), stored.get(i).getBody());
        }
        Expect.equal("body near the limit", nearlyAll, stored.get(bodies.size()).getBody());
        Expect.equal("compressed flag of the small one", 0, stored.get(0).getSysFlag() & 1);
        // The client takes the flag off when it unpacks; the stored size tells.
        Expect.holds("stored compressed", stored.get(3).getStoreSize() < 100_000, stored.get(3).getStoreSize());
    }

    private static void selector(Env env) throws Exception {
        String topic = env.topic(4);
        Map<String, Set<Integer>> queues = new HashMap<>();
        for (int i = 0; i < 60; i++) {
            String key = "order-" + i % 12;
            SendResult result = env.run.producer.send(Env.message(topic, key + "/" + i), new SelectMessageQueueByHash(), key);
            Expect.equal("send status", SendStatus.SEND_OK, result.getSendStatus());
            queues.computeIfAbsent(key, k -> new HashSet<>()).add(result.getMessageQueue().getQueueId());
        }
        queues.forEach((key, ids) -> Expect.equal("queues of " + key, 1, ids.size()));
        Map<String, Integer> last = new HashMap<>();
        for (MessageExt message : env.run.readTopic(topic, 60)) {
            String[] parts = Seen.text(message).split("/");
            int n = Integer.parseInt(parts[1]);
            Expect.holds("order within " + parts[0], last.getOrDefault(parts[0], -1) < n, last);
            last.put(parts[0], n);
        }
        SendResult chosen = env.run.producer.send(Env.message(topic, "chosen"), env.run.queue(topic, 3));
        Expect.equal("chosen queue", 3, chosen.getMessageQueue().getQueueId());
        env.run.readTopic(topic, 61);
        Expect.equal("last in queue 3", "chosen",
                Seen.texts(env.run.read(env.run.queue(topic, 3))).stream().reduce((a, b) -> b).orElse("nothing"));
    }

    private static void autoCreate(Env env) throws Exception {
        String topic = env.name("fresh");
        List<String> bodies = Env.bodies("auto", 8);
        env.send(topic, bodies);
        Wait.until("route of the new topic", 10, () -> {
            try {
                return env.run.admin.examineTopicRouteInfo(topic).getQueueDatas().size() == 1;
            } catch (Exception e) {
                return false;
            }
        });
        var data = env.run.admin.examineTopicRouteInfo(topic).getQueueDatas().get(0);
        Expect.equal("write queues", 4, data.getWriteQueueNums());
        Expect.equal("permission", 6, data.getPerm());
        Expect.sameBag("stored", bodies, Seen.texts(env.run.readTopic(topic, bodies.size())));
    }
}
