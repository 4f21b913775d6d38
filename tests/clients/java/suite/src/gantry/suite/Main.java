package gantry.suite;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Phaser;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * Runs the scenarios against a broker and prints one line for each: {@code ok NAME}, {@code FAIL NAME: expected …, found …} or
 * {@code skip NAME: …}, and at last {@code N passed, N failed}. The exit code is 0 when none failed, 1 otherwise, 2 for bad
 * arguments.
 *
 * <p>Most scenarios wait for delays, so several run at a time. Those that need a restart of the broker run afterwards, all
 * together: when the last of them is ready for it, {@code RESTART-PLEASE} is printed, and a line {@code restarted} is awaited
 * on standard input.
 */
public final class Main {
    private final Options options;
    private final PrintStream out;
    private final BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    private final AtomicInteger passed = new AtomicInteger();
    private final AtomicInteger failed = new AtomicInteger();

    private Main(Options options, PrintStream out) {
        this.options = options;
        this.out = out;
    }

    public static void main(String[] args) {
        PrintStream out = quietOutput();
        Options options;
        try {
            options = Options.parse(args);
        } catch (IllegalArgumentException e) {
            System.err.println(e.getMessage());
            System.err.println(Options.USAGE);
            System.exit(2);
            return;
        }
        List<Scenario> scenarios = scenarios();
        if (options.list()) {
            scenarios.forEach(s -> out.println(s.name()));
            return;
        }
        Set<String> names = scenarios.stream().map(Scenario::name).collect(Collectors.toSet());
        for (String name : options.only()) {
            if (!names.contains(name)) {
                System.err.println("no scenario " + name);
                System.exit(2);
            }
        }
        scenarios.removeIf(s -> !options.only().isEmpty() && !options.only().contains(s.name()));
        // The clients leave threads behind: only exit ends the process.
        System.exit(new Main(options, out).run(scenarios));
    }

    /** Keeps standard output for our own lines, and the clients' logs and offset files out of the home directory. */
    static PrintStream quietOutput() {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err);
        System.setProperty("rmq.logback.configurationFile", "suite-logback.xml");
        System.setProperty("logback.configurationFile", "suite-logback.xml");
        System.setProperty("rocketmq.client.logUseSlf4j", "true");
        System.setProperty("rocketmq.client.localOffsetStoreDir",
                System.getProperty("java.io.tmpdir") + "/gantry-suite-offsets-" + ProcessHandle.current().pid());
        return out;
    }

    static List<Scenario> scenarios() {
        return Stream.of(Transactions.scenarios(), Delays.scenarios(), Consuming.scenarios(), Pulling.scenarios(),
                        Filtering.scenarios(), Sending.scenarios(), Offsets.scenarios(), Administration.scenarios(),
                        Refusals.scenarios(), Requests.scenarios(), Restarts.scenarios(), Tracing.scenarios(), Namespaces.scenarios(),
                        Compat.scenarios())
                .flatMap(List::stream)
                .collect(Collectors.toCollection(ArrayList::new));
    }

    private int run(List<Scenario> scenarios) {
        try (Run run = new Run(options.namesrv(), options.prefix())) {
            List<Scenario> plain = scenarios.stream().filter(s -> !s.restarts()).toList();
            all(plain, options.threads(), s -> one(run, s, () -> {
                throw new IllegalStateException("not declared as restarting");
            }));
            restarting(run, scenarios.stream().filter(Scenario::restarts).toList());
        } catch (Exception e) {
            out.println("FAIL setup: " + describe(e));
            failed.incrementAndGet();
        }
        out.println(passed + " passed, " + failed + " failed");
        return failed.get() == 0 ? 0 : 1;
    }

    private void restarting(Run run, List<Scenario> scenarios) throws Exception {
        if (scenarios.isEmpty()) {
            return;
        }
        if (!options.restart()) {
            scenarios.forEach(s -> out.println("skip " + s.name() + ": needs a restart of the broker"));
            return;
        }
        Phaser ready = new Phaser(scenarios.size()) {
            @Override
            protected boolean onAdvance(int phase, int parties) {
                if (phase == 0 && parties > 0) {
                    restart();
                }
                return parties == 0;
            }
        };
        all(scenarios, scenarios.size(), s -> {
            AtomicInteger arrived = new AtomicInteger();
            one(run, s, () -> {
                arrived.set(1);
                ready.awaitAdvanceInterruptibly(ready.arrive());
                return null;
            });
            if (arrived.get() == 0) {
                // It failed before it got there: the others must not wait for it.
                ready.arriveAndDeregister();
            }
        });
    }

    private void restart() {
        out.println("RESTART-PLEASE");
        try {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                if (line.strip().equals("restarted")) {
                    return;
                }
            }
        } catch (IOException e) {
            // As at the end of the input: nobody restarts anything.
        }
        out.println("note: standard input ended, so the broker was not restarted");
    }

    private void one(Run run, Scenario scenario, Callable<Void> restart) {
        long start = System.nanoTime();
        String line;
        List<String> notes;
        Env env = new Env(run, scenario.name(), options.tolerant(), restart);
        try (env) {
            scenario.body().run(env);
            passed.incrementAndGet();
            line = "ok " + scenario.name();
        } catch (Throwable e) {
            failed.incrementAndGet();
            line = "FAIL " + scenario.name() + ": " + describe(e);
        }
        notes = env.notes();
        synchronized (out) {
            out.println(line);
            notes.forEach(note -> out.println("note " + scenario.name() + ": " + note));
        }
        System.err.printf("%6.1f s  %s%n", (System.nanoTime() - start) / 1e9, scenario.name());
    }

    private static void all(List<Scenario> scenarios, int threads, java.util.function.Consumer<Scenario> each)
            throws InterruptedException {
        ExecutorService pool = Executors.newFixedThreadPool(Math.max(1, threads));
        scenarios.forEach(s -> pool.execute(() -> each.accept(s)));
        pool.shutdown();
        pool.awaitTermination(10, TimeUnit.MINUTES);
    }

    private static String describe(Throwable e) {
        if (e instanceof Mismatch) {
            return e.getMessage();
        }
        StackTraceElement at = null;
        for (StackTraceElement element : e.getStackTrace()) {
            if (element.getClassName().startsWith("gantry.")) {
                at = element;
                break;
            }
        }
        String causes = "";
        for (Throwable cause = e.getCause(); cause != null; cause = cause.getCause()) {
            causes += ", because of " + cause;
        }
        return ("expected no exception, found " + e + " at " + at + causes).replace('\n', ' ');
    }
}
