package gantry.suite;

import java.util.Set;

/** What the command line asks for. */
record Options(String namesrv, String prefix, Set<String> only, boolean restart, boolean tolerant, int threads, boolean list) {
    static final String USAGE = """
            usage: gantry.suite.Main --namesrv HOST:PORT [--prefix RUNID] [--only NAME,NAME…] [--no-restart]
                     [--tolerate-defects] [--threads N] [--list]
              --prefix               begins every topic and group name; by default made from the time
              --no-restart           skip the scenarios that ask for a restart of the broker
              --tolerate-defects     note what Apache's broker is known to do wrong instead of failing
              --threads N            scenarios at a time (default 8)""";

    static Options parse(String[] args) {
        String namesrv = null;
        String prefix = "r" + Long.toString(System.currentTimeMillis() / 1000, 36);
        Set<String> only = Set.of();
        boolean restart = true;
        boolean tolerant = false;
        boolean list = false;
        int threads = 8;
        for (int i = 0; i < args.length; i++) {
            switch (args[i]) {
                case "--namesrv" -> namesrv = value(args, i++);
                case "--prefix" -> prefix = value(args, i++);
                case "--only" -> only = Set.of(value(args, i++).split(","));
                case "--threads" -> threads = Integer.parseInt(value(args, i++));
                case "--no-restart" -> restart = false;
                case "--tolerate-defects" -> tolerant = true;
                case "--list" -> list = true;
                default -> throw new IllegalArgumentException("unknown option " + args[i]);
            }
        }
        if (namesrv == null && !list) {
            throw new IllegalArgumentException("--namesrv is required");
        }
        return new Options(namesrv, prefix, only, restart, tolerant, threads, list);
    }

    static String value(String[] args, int i) {
        if (i + 1 >= args.length) {
            throw new IllegalArgumentException(args[i] + " needs a value");
        }
        return args[i + 1];
    }
}
