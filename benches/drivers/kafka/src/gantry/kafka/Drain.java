package gantry.kafka;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;

/** Reads a topic from its first message on, to where it ended at the start, once for every group. */
final class Drain implements AutoCloseable {
    static final Duration POLL = Duration.ofSeconds(10);

    private final List<Reader> readers = new ArrayList<>();

    /** A group of one consumer that has all partitions; nothing is committed. */
    private static final class Reader {
        private final KafkaConsumer<byte[], byte[]> consumer;
        private long left;

        private Reader(String topic, Properties settings) {
            consumer = new KafkaConsumer<>(settings);
            List<TopicPartition> partitions = assign(consumer, topic);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            consumer.beginningOffsets(partitions).forEach((partition, begin) -> left += ends.get(partition) - begin);
        }

        /** Reads {@code most} messages, or all that are left; the latency is that of a poll. */
        private void read(long most, Tally tally) {
            for (long read = 0; left > 0 && read < most; ) {
                long since = System.nanoTime();
                ConsumerRecords<byte[], byte[]> records = consumer.poll(POLL);
                if (records.isEmpty()) {
                    String why = left + " messages did not come within " + POLL;
                    tally.ended(since, 0, new IllegalStateException(why));
                    return;
                }
                read += records.count();
                left -= records.count();
                tally.ended(since, records.count(), null);
            }
        }
    }

    /** Gives a consumer all partitions. */
    static List<TopicPartition> assign(KafkaConsumer<byte[], byte[]> consumer, String topic) {
        List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
            .map(info -> new TopicPartition(topic, info.partition()))
            .toList();
        consumer.assign(partitions);
        return partitions;
    }

    Drain(Load load, Properties settings) {
        for (int group = 0; group < load.groups(); group++) {
            readers.add(new Reader(load.topic(), settings));
        }
    }

    /** Every group reads {@code most} messages, or all that are left. */
    Tally run(long most) throws InterruptedException {
        Tally tally = new Tally();
        Driver.inParallel(readers, reader -> reader.read(most, tally));
        return tally;
    }

    @Override
    public void close() {
        readers.forEach(reader -> reader.consumer.close());
    }
}
