package gantry.suite;

/** One subject under test; {@code restarts} when it asks for a restart of the broker in the middle. */
record Scenario(String name, boolean restarts, Body body) {
    /** What a scenario does; any exception is its failure. */
    interface Body {
        void run(Env env) throws Exception;
    }

    static Scenario of(String name, Body body) {
        return new Scenario(name, false, body);
    }

    static Scenario restarting(String name, Body body) {
        return new Scenario(name, true, body);
    }
}
