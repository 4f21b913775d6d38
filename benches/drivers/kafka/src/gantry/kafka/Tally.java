package gantry.kafka;

import java.util.ArrayList;
import java.util.List;
import org.HdrHistogram.Histogram;

/** What was done in a phase, from when this is made on. Shared by all threads that do it. */
final class Tally {
    static final long INTERVAL_MS = 100;
    private static final long MOST_NANOS = 3_600_000_000_000L;

    /** How long each operation took that succeeded. */
    final Histogram nanos = new Histogram(1000, MOST_NANOS, 3);
    /** Messages of each interval. */
    final List<Long> series = new ArrayList<>();
    long messages;
    long errors;
    String firstError;
    private final long start = System.nanoTime();
    private long end = start;

    /** An operation that was due at {@code since} ended now; {@code why} is null when it succeeded. */
    synchronized void ended(long since, int messages, Throwable why) {
        end = System.nanoTime();
        if (why != null) {
            errors++;
            if (firstError == null) {
                firstError = why.toString();
            }
            return;
        }
        this.messages += messages;
        nanos.recordValue(Math.min(Math.max(end - since, 0), MOST_NANOS));
        int interval = (int) ((end - start) / (INTERVAL_MS * 1_000_000));
        while (series.size() <= interval) {
            series.add(0L);
        }
        series.set(interval, series.get(interval) + messages);
    }

    /** Until the last operation ended. */
    synchronized double seconds() {
        return Math.max((end - start) / 1e9, 1e-9);
    }
}
