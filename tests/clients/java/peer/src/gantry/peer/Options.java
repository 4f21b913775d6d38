package gantry.peer;

import java.nio.file.Path;
import java.util.Properties;

/** What the command line asks for. */
record Options(int namesrvPort, int brokerPort, Path store, Properties set) {
    static final String USAGE = """
            usage: gantry.peer.ApachePeer --namesrv-port PORT --broker-port PORT --store DIR [--set KEY=VALUE]...
              --set takes any property of Apache's broker.conf, as in --set flushDiskType=SYNC_FLUSH
              PORT+1 (replication) and PORT-2 (the VIP channel) of the broker's port must be free too""";

    static Options parse(String[] args) {
        int namesrvPort = 0;
        int brokerPort = 0;
        Path store = null;
        Properties set = new Properties();
        for (int i = 0; i < args.length; i += 2) {
            if (i + 1 == args.length) {
                throw new IllegalArgumentException(args[i] + " needs a value");
            }
            String value = args[i + 1];
            switch (args[i]) {
                case "--namesrv-port" -> namesrvPort = port(value);
                case "--broker-port" -> brokerPort = port(value);
                case "--store" -> store = Path.of(value).toAbsolutePath();
                case "--set" -> {
                    int eq = value.indexOf('=');
                    if (eq < 1) {
                        throw new IllegalArgumentException("--set wants KEY=VALUE, got " + value);
                    }
                    set.setProperty(value.substring(0, eq), value.substring(eq + 1));
                }
                default -> throw new IllegalArgumentException("unknown option " + args[i]);
            }
        }
        if (namesrvPort == 0 || brokerPort == 0 || store == null) {
            throw new IllegalArgumentException("--namesrv-port, --broker-port and --store are required");
        }
        return new Options(namesrvPort, brokerPort, store, set);
    }

    private static int port(String text) {
        int port = Integer.parseInt(text);
        if (port < 3 || port > 65534) {
            throw new IllegalArgumentException("not a usable port: " + text);
        }
        return port;
    }
}
