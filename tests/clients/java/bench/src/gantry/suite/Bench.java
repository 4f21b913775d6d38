package gantry.suite;

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * The official client as a load generator: closed loop, each thread sends its next message when the last one was answered.
 * Prints one JSON line: throughput over the measured part, and latencies of single calls in microseconds.
 */
public final class Bench {
    private static final int WARM_UP_DIVISOR = 10;

    private String namesrv;
    private String topic = "bench" + Long.toString(System.currentTimeMillis() / 1000, 36);
    private int messages = 100_000;
    private int size = 128;
    private int threads = 16;

    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err);
        System.setProperty("rmq.logback.configurationFile", "bench-logback.xml");
        Bench bench = new Bench();
        String mode;
        try {
            mode = bench.parse(args);
        } catch (RuntimeException e) {
            System.err.println(e.getMessage());
            System.err.println("usage: gantry.suite.Bench --namesrv HOST:PORT send|transaction|consume"
                    + " [--topic T] [--messages N] [--size BYTES] [--threads N]");
            System.exit(2);
            return;
        }
        out.println(switch (mode) {
            case "send" -> bench.send();
            case "transaction" -> bench.transaction();
            default -> bench.consume();
        });
        System.exit(0);
    }

    private String parse(String[] args) {
        String mode = null;
        for (int i = 0; i < args.length; i++) {
            switch (args[i]) {
                case "--namesrv" -> namesrv = args[++i];
                case "--topic" -> topic = args[++i];
                case "--messages" -> messages = Integer.parseInt(args[++i]);
                case "--size" -> size = Integer.parseInt(args[++i]);
                case "--threads" -> threads = Integer.parseInt(args[++i]);
                case "send", "transaction", "consume" -> mode = args[i];
                default -> throw new IllegalArgumentException("unknown argument " + args[i]);
            }
        }
        if (namesrv == null || mode == null) {
            throw new IllegalArgumentException("--namesrv and a mode are required");
        }
        return mode;
    }

    private void configure(ClientConfig client) {
        client.setNamesrvAddr(namesrv);
        client.setInstanceName("bench-" + ProcessHandle.current().pid());
    }

    /** One call of the client, true when it was acknowledged. */
    private interface Call {
        boolean go(Message message) throws Exception;
    }

    private String send() throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(topic + "_producer");
        configure(producer);
        producer.start();
        return closedLoop("send", message -> producer.send(message).getSendStatus() == SendStatus.SEND_OK);
    }

    private String transaction() throws Exception {
        TransactionMQProducer producer = new TransactionMQProducer(topic + "_transactions");
        configure(producer);
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }
        });
        producer.start();
        return closedLoop("transaction",
                message -> producer.sendMessageInTransaction(message, null).getSendStatus() == SendStatus.SEND_OK);
    }

    private String closedLoop(String mode, Call call) throws Exception {
        byte[] body = new byte[size];
        new Random(1).nextBytes(body);
        run(call, body, Math.max(threads, messages / WARM_UP_DIVISOR), new AtomicInteger());
        AtomicInteger failed = new AtomicInteger();
        long start = System.nanoTime();
        long[] nanos = run(call, body, messages, failed);
        double seconds = (System.nanoTime() - start) / 1e9;
        Arrays.sort(nanos);
        return String.format("{\"mode\":\"%s\",\"topic\":\"%s\",\"messages\":%d,\"size\":%d,\"threads\":%d,\"failed\":%d,"
                        + "\"seconds\":%.3f,\"per_second\":%.0f,\"p50_us\":%d,\"p99_us\":%d,\"p999_us\":%d,\"max_us\":%d}",
                mode, topic, messages, size, threads, failed.get(), seconds, messages / seconds, at(nanos, 0.5),
                at(nanos, 0.99), at(nanos, 0.999), at(nanos, 1));
    }

    private static long at(long[] sorted, double share) {
        return sorted[Math.min(sorted.length - 1, (int) (sorted.length * share))] / 1000;
    }

    private long[] run(Call call, byte[] body, int count, AtomicInteger failed) throws InterruptedException {
        long[] nanos = new long[count];
        AtomicInteger next = new AtomicInteger();
        Thread[] workers = new Thread[threads];
        for (int t = 0; t < threads; t++) {
            workers[t] = new Thread(() -> {
                for (int i = next.getAndIncrement(); i < count; i = next.getAndIncrement()) {
                    long start = System.nanoTime();
                    try {
                        if (!call.go(new Message(topic, body))) {
                            failed.incrementAndGet();
                        }
                    } catch (Exception e) {
                        failed.incrementAndGet();
                    }
                    nanos[i] = System.nanoTime() - start;
                }
            });
            workers[t].start();
        }
        for (Thread worker : workers) {
            worker.join();
        }
        return nanos;
    }

    /** Drains what is in the topic, from its first message on, with a new group. */
    private String consume() throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(topic + "_drain_" + System.currentTimeMillis());
        configure(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setConsumeMessageBatchMaxSize(32);
        consumer.setPullBatchSize(32);
        consumer.subscribe(topic, "*");
        CountDownLatch left = new CountDownLatch(messages);
        AtomicLong first = new AtomicLong();
        AtomicLong last = new AtomicLong();
        consumer.registerMessageListener((MessageListenerConcurrently) (list, context) -> {
            first.compareAndSet(0, System.nanoTime());
            last.set(System.nanoTime());
            list.forEach(message -> left.countDown());
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        boolean all = left.await(120, TimeUnit.SECONDS);
        double seconds = (last.get() - first.get()) / 1e9;
        long got = messages - left.getCount();
        return String.format("{\"mode\":\"consume\",\"topic\":\"%s\",\"messages\":%d,\"complete\":%b,\"seconds\":%.3f,"
                + "\"per_second\":%.0f}", topic, got, all, seconds, got / seconds);
    }
}
