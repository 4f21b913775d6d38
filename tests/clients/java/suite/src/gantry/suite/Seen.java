package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;
import org.apache.rocketmq.common.message.MessageExt;

/** What a consumer was handed, in order, with the time. */
final class Seen {
    /** One delivery. */
    record Delivery(MessageExt message, String body, long atMillis) {
    }

    private final List<Delivery> deliveries = new ArrayList<>();

    synchronized void add(MessageExt message) {
        deliveries.add(new Delivery(message, text(message), System.currentTimeMillis()));
    }

    synchronized List<Delivery> all() {
        return List.copyOf(deliveries);
    }

    synchronized int size() {
        return deliveries.size();
    }

    List<String> bodies() {
        return all().stream().map(Delivery::body).toList();
    }

    /** How many different bodies. */
    int distinct() {
        return new TreeSet<>(bodies()).size();
    }

    static String text(MessageExt message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    static List<String> texts(List<MessageExt> messages) {
        return messages.stream().map(Seen::text).toList();
    }
}
