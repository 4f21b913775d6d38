package gantry.rocketmq;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.rocketmq.example.benchmark.BatchProducer;
import org.apache.rocketmq.example.benchmark.Consumer;
import org.apache.rocketmq.example.benchmark.Producer;
import org.apache.rocketmq.example.benchmark.TransactionProducer;

/**
 * Runs Apache RocketMQ's benchmark classes as they are, reads what they print, and reports it as JSON.
 *
 * <pre>
 * Official HOST:PORT LOAD      a name server, and a JSON document
 * </pre>
 *
 * <p>Every figure that they print is of the last ten seconds. What they print first ends the warm-up; the first
 * figure that is printed {@link #MEASURED_NANOS} later is the one that counts. Of the time a request takes they
 * tell the mean, and the longest since the start: there are no percentiles.
 */
public final class Official {
    private static final long MEASURED_NANOS = TimeUnit.SECONDS.toNanos(10);
    private static final long SILENCE_SECONDS_MAX = 60;
    private static final String REPORT_EVERY_MS = "1000";
    private static final Pattern FIGURE = Pattern.compile("([A-Za-z0-9() ]+?): *([0-9.]+)");

    private Official() {}

    private interface Program {
        void main(String[] arguments) throws Exception;
    }

    /** What is printed, line by line. */
    private static final class Lines extends OutputStream {
        private final ByteArrayOutputStream begun = new ByteArrayOutputStream();
        private final BlockingQueue<String> lines = new LinkedBlockingQueue<>(10_000);

        @Override
        public synchronized void write(int character) {
            if (character != '\n') {
                begun.write(character);
            } else {
                // When nobody reads them, the newest are the ones to miss.
                lines.offer(begun.toString(StandardCharsets.UTF_8));
                begun.reset();
            }
        }

        String next() throws IOException, InterruptedException {
            String line = lines.poll(SILENCE_SECONDS_MAX, TimeUnit.SECONDS);
            if (line == null) {
                throw new IOException("the benchmark class says nothing any more; see what it said above");
            }
            return line;
        }
    }

    public static void main(String[] arguments) throws Exception {
        String nameServer = arguments[0];
        JsonNode load = new ObjectMapper().readTree(arguments[1]);
        PrintStream output = System.out;
        Lines printed = new Lines();
        System.setOut(new PrintStream(printed, true, StandardCharsets.UTF_8));
        String what = load.required("what").isTextual() ? load.required("what").asText() : "consume";
        List<String> common = List.of(
            "-n", nameServer, "-t", load.required("topic").asText(), "-ri", REPORT_EVERY_MS);
        List<String> sending = List.of(
            "-s", load.required("size").asText(), "-w", load.required("in_flight").asText());
        boolean batches = load.required("batch").asInt() > 1;
        switch (what) {
            case "produce" -> start(batches ? BatchProducer::main : Producer::main, common, sending,
                batches ? List.of("-b", load.required("batch").asText()) : List.of());
            case "transaction" -> start(TransactionProducer::main, common, sending, List.of());
            case "consume" -> {
                start(Producer::main, common, sending, List.of());
                start(Consumer::main, common, List.of(), List.of());
            }
            default -> throw new IllegalArgumentException(what + " cannot be measured");
        }
        String rate = what.equals("consume") ? "Consume TPS" : batches ? "Send MPS" : "Send TPS";
        output.println(measure(printed, rate, output));
        output.flush();
        // These classes never end by themselves.
        Runtime.getRuntime().halt(0);
    }

    @SafeVarargs
    private static void start(Program program, List<String>... arguments) {
        String[] all = List.of(arguments).stream().flatMap(List::stream).toArray(String[]::new);
        Thread thread = new Thread(() -> {
            try {
                program.main(all);
            } catch (Exception failed) {
                failed.printStackTrace();
                Runtime.getRuntime().halt(1);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    /** The report, as soon as ten seconds were measured. */
    private static String measure(Lines printed, String rate, PrintStream output)
            throws IOException, InterruptedException {
        long since = 0;
        Map<String, Double> before = Map.of();
        while (true) {
            Map<String, Double> figures = figures(printed.next());
            if (!figures.containsKey(rate)) {
                continue;
            }
            if (since == 0) {
                output.println("measuring");
                output.flush();
                since = System.nanoTime();
                before = figures;
            } else if (System.nanoTime() - since >= MEASURED_NANOS) {
                return report(rate, figures, failures(figures) - failures(before), (System.nanoTime() - since) / 1e9);
            }
        }
    }

    private static String report(String rate, Map<String, Double> figures, long errors, double seconds)
            throws IOException {
        double perSecond = figures.get(rate);
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("messages", Math.round(perSecond * seconds));
        report.put("errors", errors);
        report.put("first_error", errors > 0 ? "the benchmark class counts failures and does not name them" : null);
        report.put("seconds", seconds);
        report.put("messages_per_second", perSecond);
        Map<String, Object> latency = new LinkedHashMap<>();
        for (String name : List.of("Average RT(ms)", "AVG RT(ms)", "AVG(B2C) RT(ms)")) {
            if (figures.containsKey(name)) {
                latency.put("mean", figures.get(name));
            }
        }
        report.put("latency_ms", latency);
        return new ObjectMapper().writeValueAsString(report);
    }

    /** Failures since the start. */
    private static long failures(Map<String, Double> figures) {
        double failures = 0;
        for (String name : List.of("Send Failed", "Response Failed", "Consume Fail")) {
            failures += figures.getOrDefault(name, 0.0);
        }
        return (long) failures;
    }

    /** Name and value of everything in a line like {@code Send TPS: 100 | Average RT(ms):   1.250}. */
    private static Map<String, Double> figures(String line) {
        Map<String, Double> figures = new LinkedHashMap<>();
        for (String part : line.split("\\|")) {
            Matcher figure = FIGURE.matcher(part.trim());
            if (figure.matches()) {
                figures.put(figure.group(1), Double.valueOf(figure.group(2)));
            }
        }
        return figures;
    }
}
