package gantry.suite;

import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.Objects;
import java.util.TreeMap;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;

/** Comparisons whose failure says what was expected and what was found. */
final class Expect {
    /** Something that is expected to be refused. */
    interface Action {
        void run() throws Exception;
    }

    private Expect() {
    }

    static void equal(String what, Object expected, Object found) {
        if (!Objects.deepEquals(expected, found)) {
            throw new Mismatch(what, expected, found);
        }
    }

    static void holds(String what, boolean condition, Object found) {
        if (!condition) {
            throw new Mismatch(what, "so", found);
        }
    }

    static void between(String what, long least, long most, long found) {
        if (found < least || found > most) {
            throw new Mismatch(what, least + " to " + most, found);
        }
    }

    /** The same elements the same number of times, in any order; names only the difference. */
    static void sameBag(String what, Collection<String> expected, Collection<String> found) {
        TreeMap<String, Integer> difference = new TreeMap<>();
        expected.forEach(e -> difference.merge(e, -1, Integer::sum));
        found.forEach(f -> difference.merge(f, 1, Integer::sum));
        difference.values().removeIf(n -> n == 0);
        if (!difference.isEmpty()) {
            throw new Mismatch(what, expected.size() + " messages once each",
                    found.size() + ", and per message too many or too few: " + difference);
        }
    }

    /** Refused by the broker with one of these response codes. */
    static String refused(String what, List<Integer> codes, Action action) throws Exception {
        try {
            action.run();
        } catch (MQBrokerException e) {
            if (codes.contains(e.getResponseCode())) {
                return e.getErrorMessage();
            }
            throw new Mismatch(what, "response code " + codes, e.getResponseCode() + " " + e.getErrorMessage());
        } catch (MQClientException e) {
            if (codes.contains(e.getResponseCode())) {
                return e.getErrorMessage();
            }
            if (e.getCause() instanceof MQBrokerException cause && codes.contains(cause.getResponseCode())) {
                return cause.getErrorMessage();
            }
            throw new Mismatch(what, "response code " + codes, e.getResponseCode() + " " + e.getMessage());
        }
        throw new Mismatch(what, "response code " + codes, "success");
    }

    static String refused(String what, int code, Action action) throws Exception {
        return refused(what, Arrays.asList(code), action);
    }
}
