package gantry.suite;

/** What was expected, and what was found instead. */
final class Mismatch extends RuntimeException {
    private static final long serialVersionUID = 1L;

    Mismatch(String what, Object expected, Object found) {
        super(what + ": expected " + shown(expected) + ", found " + shown(found));
    }

    private static String shown(Object value) {
        String text = value instanceof byte[] bytes ? bytes.length + " bytes " + Json.sha1(bytes) : String.valueOf(value);
        return text.length() <= 600 ? text : text.substring(0, 600) + "… (" + text.length() + " characters)";
    }
}
