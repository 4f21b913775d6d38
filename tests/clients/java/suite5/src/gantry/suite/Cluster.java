package gantry.suite;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * Sends to and reads from a topic that several brokers have, while these come and go.
 *
 * <p>{@code Cluster NAMESRV TOPIC BROKER…}: sends all the time, in turn waiting and not. Prints {@code READY} once messages were
 * sent to and read from each of the brokers. A line {@code stop} ends the sending; when all that was acknowledged has been read,
 * or after 60 s, {@code sent=N read=N twice=N late=BROKERS} is printed: messages acknowledged, those of them that were read, those
 * read more than once, and the brokers that took the last 50. Every failed send is a line {@code ERROR …}. Every 20th message is
 * refused by the consumer once, so that its broker must keep it for a retry.
 */
public final class Cluster {
    private static final int LATE = 50;

    private final PrintStream out;
    private final Set<String> sent = ConcurrentHashMap.newKeySet();
    private final Map<String, Integer> read = new ConcurrentHashMap<>();
    private final Set<String> sentTo = new ConcurrentSkipListSet<>();
    private final Set<String> readFrom = new ConcurrentSkipListSet<>();
    private final Queue<String> late = new ConcurrentLinkedQueue<>();
    private final AtomicBoolean stop = new AtomicBoolean();
    private final AtomicInteger open = new AtomicInteger();

    private Cluster(PrintStream out) {
        this.out = out;
    }

    public static void main(String[] args) throws Exception {
        PrintStream out = Main.quietOutput();
        Set<String> brokers = new TreeSet<>(java.util.Arrays.asList(args).subList(2, args.length));
        new Cluster(out).run(args[0], args[1], brokers);
        // The clients leave threads behind: only exit ends the process.
        System.exit(0);
    }

    private void run(String namesrv, String topic, Set<String> brokers) throws Exception {
        DefaultMQPushConsumer consumer = consumer(namesrv, topic);
        DefaultMQProducer producer = new DefaultMQProducer("ClusterProducer");
        producer.setNamesrvAddr(namesrv);
        producer.setPollNameServerInterval(1000);
        producer.start();
        Thread input = new Thread(this::awaitStop, "input");
        input.setDaemon(true);
        input.start();
        boolean ready = false;
        for (int number = 0; !stop.get(); number++) {
            send(producer, topic, number);
            if (!ready && sentTo.containsAll(brokers) && readFrom.containsAll(brokers)) {
                ready = true;
                out.println("READY");
            }
            Thread.sleep(5);
        }
        long deadline = System.nanoTime() + 60_000_000_000L;
        while ((open.get() > 0 || !read.keySet().containsAll(sent)) && System.nanoTime() < deadline) {
            Thread.sleep(20);
        }
        long found = sent.stream().filter(read::containsKey).count();
        long twice = read.values().stream().filter(times -> times > 1).count();
        out.println("sent=" + sent.size() + " read=" + found + " twice=" + twice + " late="
                + String.join(",", new TreeSet<>(late)));
        producer.shutdown();
        consumer.shutdown();
    }

    private DefaultMQPushConsumer consumer(String namesrv, String topic) throws Exception {
        Set<String> refused = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("ClusterConsumer");
        consumer.setNamesrvAddr(namesrv);
        consumer.setPollNameServerInterval(1000);
        consumer.setPersistConsumerOffsetInterval(1000);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            // The level of the first delay: one second.
            context.setDelayLevelWhenNextConsume(1);
            for (MessageExt message : messages) {
                readFrom.add(message.getBrokerName());
                String key = message.getKeys();
                if (key.endsWith("0") && Integer.parseInt(key) % 20 == 0 && refused.add(key)) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
                read.merge(key, 1, Integer::sum);
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        return consumer;
    }

    private void send(DefaultMQProducer producer, String topic, int number) {
        String key = Integer.toString(number);
        Message message = new Message(topic, null, key, key.getBytes(StandardCharsets.UTF_8));
        try {
            if (number % 2 == 0) {
                note(key, producer.send(message));
                return;
            }
            open.incrementAndGet();
            producer.send(message, new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    note(key, result);
                    open.decrementAndGet();
                }

                @Override
                public void onException(Throwable e) {
                    fail(key, e);
                    open.decrementAndGet();
                }
            });
        } catch (Exception e) {
            fail(key, e);
        }
    }

    private void note(String key, SendResult result) {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            fail(key, new IllegalStateException(result.toString()));
            return;
        }
        String broker = result.getMessageQueue().getBrokerName();
        sent.add(key);
        sentTo.add(broker);
        late.add(broker);
        if (late.size() > LATE) {
            late.poll();
        }
    }

    private void fail(String key, Throwable e) {
        out.println(("ERROR message " + key + ": " + e).replace('\n', ' '));
    }

    private void awaitStop() {
        try {
            var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = in.readLine(); line != null && !line.equals("stop"); line = in.readLine()) {
                continue;
            }
        } catch (java.io.IOException e) {
            // As at the end of the input.
        }
        stop.set(true);
    }
}
