package gantry.kafka;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.function.Consumer;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Loads an Apache Kafka broker with Kafka's own client.
 *
 * <pre>
 * Driver topic HOST:PORT NAME PARTITIONS
 * Driver load  HOST:PORT LOAD [KEY=VALUE …]     LOAD is a JSON document; settings of Kafka's client
 * Driver wait  HOST:PORT TOPIC                  a consumer that waits for messages, until it is killed
 * </pre>
 *
 * <p>A load prints {@code measuring} when the warm-up is over, and the report as JSON.
 */
public final class Driver {
    /** Kafka's controller refuses operations of 10,000 records or more. */
    private static final int PARTITIONS_AT_ONCE = 5_000;

    private Driver() {}

    public static void main(String[] arguments) throws Exception {
        String server = arguments[1];
        switch (arguments[0]) {
            case "topic" -> createTopic(server, arguments[2], Integer.parseInt(arguments[3]));
            case "load" -> {
                Load load = Load.read(arguments[2]);
                Properties settings = settings(server);
                for (String setting : List.of(arguments).subList(3, arguments.length)) {
                    int equals = setting.indexOf('=');
                    settings.put(setting.substring(0, equals), setting.substring(equals + 1));
                }
                measure(load, settings);
            }
            case "wait" -> {
                try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings(server))) {
                    Drain.assign(consumer, arguments[2]);
                    while (true) {
                        consumer.poll(Drain.POLL);
                    }
                }
            }
            default -> throw new IllegalArgumentException(arguments[0] + " is no command");
        }
    }

    private static void measure(Load load, Properties settings) throws Exception {
        switch (load.what()) {
            case "produce" -> {
                try (Produce produce = new Produce(load, settings)) {
                    produce.run(load.warmUp());
                    Report report = new Report();
                    report.print(produce.run(load.measured()));
                }
            }
            case "transaction" -> {
                try (Transact transact = new Transact(load, settings)) {
                    transact.run(load.warmUp());
                    Report report = new Report();
                    report.print(transact.run(load.measured()));
                }
            }
            case "consume" -> {
                try (Drain drain = new Drain(load, settings)) {
                    drain.run(load.warmup());
                    Report report = new Report();
                    report.print(drain.run(load.messages() > 0 ? load.messages() : Long.MAX_VALUE));
                }
            }
            default -> throw new IllegalArgumentException(load.what() + " cannot be measured");
        }
    }

    private static void createTopic(String server, String name, int partitions) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", server);
        try (Admin admin = Admin.create(settings)) {
            int first = Math.min(partitions, PARTITIONS_AT_ONCE);
            NewTopic topic = new NewTopic(name, Optional.of(first), Optional.of((short) 1));
            admin.createTopics(List.of(topic)).all().get();
            for (int count = first; count < partitions; ) {
                count = Math.min(partitions, count + PARTITIONS_AT_ONCE);
                admin.createPartitions(Map.of(name, NewPartitions.increaseTo(count))).all().get();
            }
        } catch (ExecutionException failed) {
            if (!(failed.getCause() instanceof TopicExistsException)) {
                throw failed;
            }
        }
    }

    /** Kafka's defaults, but that nothing waits for company in its batch. */
    private static Properties settings(String server) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", server);
        settings.put(ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
        settings.put(ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
        settings.put(ProducerConfig.ACKS_CONFIG, "all");
        settings.put(ProducerConfig.LINGER_MS_CONFIG, "0");
        settings.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        settings.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        settings.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "latest");
        return settings;
    }

    /** Does it with each in a thread of its own, and waits for all. */
    static <T> void inParallel(List<T> with, Consumer<T> what) throws InterruptedException {
        List<Thread> threads = new ArrayList<>();
        for (T one : with) {
            Thread thread = new Thread(() -> what.accept(one));
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) {
            thread.join();
        }
    }
}
