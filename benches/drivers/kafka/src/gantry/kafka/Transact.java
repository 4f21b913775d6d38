package gantry.kafka;

import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.UUID;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Transactions of one message each, all committed. A producer has one open transaction at most: as many producers
 * are needed as transactions are in flight.
 */
final class Transact implements AutoCloseable {
    private final String topic;
    private final byte[] body;
    private final List<KafkaProducer<byte[], byte[]>> producers = new ArrayList<>();

    Transact(Load load, Properties settings) throws InterruptedException {
        topic = load.topic();
        body = load.body();
        String run = UUID.randomUUID().toString();
        for (int lane = 0; lane < load.inFlight(); lane++) {
            Properties own = new Properties();
            own.putAll(settings);
            own.put(ProducerConfig.TRANSACTIONAL_ID_CONFIG, run + "-" + lane);
            producers.add(new KafkaProducer<>(own));
        }
        Driver.inParallel(producers, KafkaProducer::initTransactions);
    }

    /** Begins, sends and commits until the schedule ends; a producer whose transaction fails does no more. */
    Tally run(Schedule schedule) throws InterruptedException {
        Tally tally = new Tally();
        Driver.inParallel(producers, producer -> {
            for (Schedule.Turn turn = schedule.next(); turn != null; turn = schedule.next()) {
                try {
                    producer.beginTransaction();
                    producer.send(new ProducerRecord<>(topic, body));
                    producer.commitTransaction();
                } catch (RuntimeException why) {
                    tally.ended(turn.due(), 0, why);
                    return;
                }
                tally.ended(turn.due(), 1, null);
            }
        });
        return tally;
    }

    @Override
    public void close() {
        producers.forEach(KafkaProducer::close);
    }
}
