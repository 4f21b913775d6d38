package gantry.kafka;

import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;

/** Sends messages; those of one operation are handed to the client together, and the client batches them. */
final class Produce implements AutoCloseable {
    private final Load load;
    private final byte[] body;
    private final List<KafkaProducer<byte[], byte[]>> producers = new ArrayList<>();

    Produce(Load load, Properties settings) {
        this.load = load;
        body = load.body();
        for (int connection = 0; connection < load.connections(); connection++) {
            producers.add(new KafkaProducer<>(settings));
        }
    }

    /** Sends until the schedule ends and everything is answered. */
    Tally run(Schedule schedule) throws InterruptedException {
        Tally tally = new Tally();
        Semaphore free = new Semaphore(load.inFlight());
        while (true) {
            free.acquire();
            Schedule.Turn turn = schedule.next();
            if (turn == null) {
                break;
            }
            send(turn, tally, free);
        }
        // Nothing more comes: nobody shall wait for a batch to fill up.
        producers.forEach(KafkaProducer::flush);
        return tally;
    }

    private void send(Schedule.Turn turn, Tally tally, Semaphore free) {
        KafkaProducer<byte[], byte[]> producer = producers.get((int) (turn.number() % producers.size()));
        Integer partition = load.partition(turn.number());
        AtomicInteger open = new AtomicInteger(turn.messages());
        AtomicReference<Exception> failed = new AtomicReference<>();
        for (int message = 0; message < turn.messages(); message++) {
            producer.send(new ProducerRecord<>(load.topic(), partition, null, body), (metadata, why) -> {
                if (why != null) {
                    failed.set(why);
                }
                if (open.decrementAndGet() == 0) {
                    tally.ended(turn.due(), turn.messages(), failed.get());
                    free.release();
                }
            });
        }
    }

    @Override
    public void close() {
        producers.forEach(KafkaProducer::close);
    }
}
