package gantry.kafka;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.HdrHistogram.Histogram;
import org.HdrHistogram.HistogramIterationValue;

/** What a run found out. Made when the measured phase begins, printed when it has ended. */
final class Report {
    private final Duration cpuBefore = cpu();

    Report() {
        System.out.println("measuring");
        System.out.flush();
    }

    /** To standard output, as one JSON object in one line. */
    void print(Tally tally) throws IOException {
        double cpu = cpu().minus(cpuBefore).toNanos() / 1e9;
        double seconds = tally.seconds();
        Map<String, Object> fields = new LinkedHashMap<>();
        fields.put("messages", tally.messages);
        fields.put("errors", tally.errors);
        fields.put("first_error", tally.firstError);
        fields.put("seconds", seconds);
        fields.put("messages_per_second", tally.messages / seconds);
        fields.put("latency_ms", latency(tally.nanos));
        fields.put("histogram_us", pairs(tally.nanos));
        fields.put("series", Map.of("interval_ms", Tally.INTERVAL_MS, "messages", tally.series));
        Map<String, Object> client = new LinkedHashMap<>();
        client.put("cpu_seconds", cpu);
        client.put("cpu_seconds_per_million", tally.messages > 0 ? cpu * 1e6 / tally.messages : null);
        client.put("rss_anon_peak_mib", anonymousMib());
        fields.put("client", client);
        System.out.println(new ObjectMapper().writeValueAsString(fields));
    }

    private static Map<String, Double> latency(Histogram nanos) {
        Map<String, Double> latency = new LinkedHashMap<>();
        for (String percentile : List.of("50", "90", "99", "99.9", "99.99")) {
            latency.put("p" + percentile, nanos.getValueAtPercentile(Double.parseDouble(percentile)) / 1e6);
        }
        latency.put("max", nanos.getMaxValue() / 1e6);
        return latency;
    }

    private static List<List<Number>> pairs(Histogram nanos) {
        List<List<Number>> pairs = new ArrayList<>();
        for (HistogramIterationValue value : nanos.recordedValues()) {
            pairs.add(List.of(value.getValueIteratedTo() / 1e3, value.getCountAtValueIteratedTo()));
        }
        return pairs;
    }

    private static Duration cpu() {
        return ProcessHandle.current().info().totalCpuDuration().orElse(Duration.ZERO);
    }

    private static double anonymousMib() throws IOException {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("RssAnon:")) {
                return Long.parseLong(line.replaceAll("[^0-9]", "")) / 1024.0;
            }
        }
        return 0;
    }
}
