package gantry.suite;

import java.util.concurrent.Callable;
import java.util.function.Supplier;

/** Waits on conditions, with deadlines. */
final class Wait {
    private static final long STEP_MILLIS = 20;

    private Wait() {
    }

    /** Waits until the condition holds; fails after that many seconds. */
    static void until(String what, int seconds, Callable<Boolean> condition) throws Exception {
        until(what, seconds, condition, () -> "not yet");
    }

    /** Waits until the condition holds; fails after that many seconds with what is there by then. */
    static void until(String what, int seconds, Callable<Boolean> condition, Supplier<Object> state) throws Exception {
        long deadline = System.nanoTime() + seconds * 1_000_000_000L;
        while (!condition.call()) {
            if (System.nanoTime() > deadline) {
                throw new Mismatch(what, "within " + seconds + " s", state.get());
            }
            Thread.sleep(STEP_MILLIS);
        }
    }

    /** Time for something that must not happen to happen. */
    static void quiet(long millis) throws InterruptedException {
        Thread.sleep(millis);
    }
}
