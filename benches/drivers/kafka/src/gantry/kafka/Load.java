package gantry.kafka;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.concurrent.TimeUnit;

/** What is asked for: the JSON document of a load, as the program that compares writes it. */
record Load(
        String what, int groups, String topic, int queues, int size, int batch, int inFlight, int connections,
        double rate, long warmup, long messages, long nanos) {
    /** Kafka's client stays with a partition for 16 KiB; with more partitions than these not all would be used. */
    private static final int LEFT_TO_CLIENT = 8;
    /** The compiler of this JVM has done most of its work by then. */
    private static final long WARM_UP_NANOS = TimeUnit.SECONDS.toNanos(4);
    /** A slow broker needs no more. */
    private static final long WARM_UP_NANOS_MAX = TimeUnit.SECONDS.toNanos(20);

    static Load read(String json) throws JsonProcessingException {
        JsonNode load = new ObjectMapper().readTree(json);
        JsonNode what = load.required("what");
        JsonNode extent = load.required("extent");
        boolean named = what.isTextual();
        return new Load(
            named ? what.asText() : what.fieldNames().next(),
            named ? 1 : what.path("consume").path("groups").asInt(1),
            load.required("topic").asText(),
            load.required("queues").asInt(),
            load.required("size").asInt(),
            load.required("batch").asInt(),
            load.required("in_flight").asInt(),
            load.required("connections").asInt(),
            load.path("rate").asDouble(0),
            load.required("warmup").asLong(),
            extent.path("messages").asLong(0),
            extent.path("millis").asLong(0) * 1_000_000);
    }

    /** The body of every message: no zeroes, which a file system might leave out. */
    byte[] body() {
        byte[] body = new byte[size];
        for (int at = 0; at < size; at++) {
            body[at] = (byte) ('a' + at % 26);
        }
        return body;
    }

    /** What comes before the measured phase: so many messages and, if there are any, time for the JVM's compiler. */
    Schedule warmUp() {
        return new Schedule(warmup, warmup > 0 ? WARM_UP_NANOS : 0, WARM_UP_NANOS_MAX, batch, rate);
    }

    Schedule measured() {
        return new Schedule(messages, nanos, Long.MAX_VALUE, batch, rate);
    }

    /** The partition of an operation's messages; null leaves it to the client. */
    Integer partition(long number) {
        return queues > LEFT_TO_CLIENT ? (int) (number % queues) : null;
    }
}
