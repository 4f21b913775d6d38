package gantry.kafka;

import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/**
 * Hands out operations until there are enough.
 *
 * <p>In an open loop each operation has a time at which it is due, fixed beforehand; its latency counts from
 * there, so that a broker that stalls is charged for all that had to wait.
 */
final class Schedule {
    /** An operation: how many messages it has, and when it was due ({@link System#nanoTime}). */
    record Turn(long number, int messages, long due) {}

    private final long start = System.nanoTime();
    private final AtomicLong next = new AtomicLong();
    private final long messages;
    private final long nanos;
    private final long mostNanos;
    private final int batch;
    private final double rate;

    /**
     * From now on until there are {@code messages} and {@code nanos} have passed, but for {@code mostNanos} at most;
     * a rate of 0 is a closed loop.
     */
    Schedule(long messages, long nanos, long mostNanos, int batch, double rate) {
        this.messages = messages;
        this.nanos = nanos;
        this.mostNanos = mostNanos;
        this.batch = batch;
        this.rate = rate;
    }

    /** The next operation; in an open loop it waits until that is due. Null when there are enough. */
    Turn next() {
        long number = next.getAndIncrement();
        long before = number * batch;
        long due;
        if (rate > 0) {
            due = start + (long) (before / rate * 1e9);
        } else {
            due = System.nanoTime();
        }
        long left = messages - before;
        if (left <= 0 && due - start >= nanos || due - start >= mostNanos) {
            return null;
        }
        if (rate > 0) {
            for (long wait = due - System.nanoTime(); wait > 0; wait = due - System.nanoTime()) {
                LockSupport.parkNanos(wait);
            }
        }
        return new Turn(number, nanos == 0 ? (int) Math.min(left, batch) : batch, due);
    }
}
