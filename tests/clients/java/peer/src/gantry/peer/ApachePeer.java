package gantry.peer;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.auth.config.AuthConfig;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.broker.BrokerPathConfigHelper;
import org.apache.rocketmq.common.BrokerConfig;
import org.apache.rocketmq.common.MQVersion;
import org.apache.rocketmq.common.MixAll;
import org.apache.rocketmq.common.namesrv.NamesrvConfig;
import org.apache.rocketmq.namesrv.NamesrvController;
import org.apache.rocketmq.remoting.netty.NettyClientConfig;
import org.apache.rocketmq.remoting.netty.NettyServerConfig;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.store.config.MessageStoreConfig;

/**
 * The real Apache name server and broker in one process.
 *
 * <p>Prints {@code ready} once the name server answers routes to the broker. Stops on SIGTERM, on a line {@code stop} or at
 * the end of standard input: offsets, queues and checkpoint are written and the abort marker is removed.
 *
 * <p>The controllers are built here and not by Apache's own start-up classes, which set the listen port back to their default
 * and print to standard output.
 */
public final class ApachePeer {
    private static final long READY_DEADLINE_MILLIS = 60_000;

    private final Options options;
    private final AtomicBoolean stopped = new AtomicBoolean();
    private NamesrvController names;
    private BrokerController broker;

    private ApachePeer(Options options) {
        this.options = options;
    }

    public static void main(String[] args) {
        // Only our own lines belong on standard output; Apache's libraries print there now and then.
        PrintStream out = System.out;
        System.setOut(System.err);
        Options options;
        try {
            options = Options.parse(args);
        } catch (IllegalArgumentException e) {
            System.err.println(e.getMessage());
            System.err.println(Options.USAGE);
            System.exit(2);
            return;
        }
        ApachePeer peer = new ApachePeer(options);
        try {
            peer.start();
        } catch (Throwable e) {
            e.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
        Runtime.getRuntime().addShutdownHook(new Thread(peer::stop, "stop"));
        out.println("ready");
        out.flush();
        awaitStop();
        System.exit(0);
    }

    private void start() throws Exception {
        System.setProperty("rmq.logback.configurationFile", "peer-logback.xml");
        System.setProperty("rocketmq.home.dir", options.store().toString());
        System.setProperty(RemotingCommand.REMOTING_VERSION_KEY, Integer.toString(MQVersion.CURRENT_VERSION));
        Files.createDirectories(options.store());
        startNames();
        startBroker();
        awaitRoute();
    }

    private void startNames() throws Exception {
        NamesrvConfig config = new NamesrvConfig();
        // Beside the store, not in it: a store that is compared or opened elsewhere holds the broker's files only.
        String beside = options.store() + ".namesrv/";
        config.setKvConfigPath(beside + "kvConfig.json");
        config.setConfigStorePath(beside + "namesrv.properties");
        NettyServerConfig server = new NettyServerConfig();
        server.setBindAddress("127.0.0.1");
        server.setListenPort(options.namesrvPort());
        names = new NamesrvController(config, server);
        if (!names.initialize()) {
            throw new IOException("the name server did not initialize");
        }
        names.start();
    }

    private void startBroker() throws Exception {
        Properties set = new Properties();
        set.setProperty("brokerClusterName", "DefaultCluster");
        set.setProperty("brokerName", "broker-a");
        set.setProperty("brokerIP1", "127.0.0.1");
        set.setProperty("brokerIP2", "127.0.0.1");
        set.setProperty("bindAddress", "127.0.0.1");
        set.setProperty("namesrvAddr", "127.0.0.1:" + options.namesrvPort());
        set.setProperty("storePathRootDir", options.store().toString());
        set.setProperty("storePathCommitLog", options.store().resolve("commitlog").toString());
        set.setProperty("listenPort", Integer.toString(options.brokerPort()));
        set.setProperty("haListenPort", Integer.toString(options.brokerPort() + 1));
        // Machines that run tests have nearly full disks; at the default of 75 % Apache drops files early.
        set.setProperty("diskMaxUsedSpaceRatio", "95");
        set.putAll(options.set());
        String names = set.getProperty("namesrvAddr");
        if (names.startsWith(";")) {
            set.setProperty("namesrvAddr", "127.0.0.1:" + options.namesrvPort() + names);
        }

        BrokerConfig config = new BrokerConfig();
        NettyServerConfig server = new NettyServerConfig();
        NettyClientConfig client = new NettyClientConfig();
        MessageStoreConfig store = new MessageStoreConfig();
        AuthConfig auth = new AuthConfig();
        for (Object target : new Object[] {config, server, client, store, auth}) {
            MixAll.properties2Object(set, target);
        }
        config.setBrokerId(MixAll.MASTER_ID);
        auth.setConfigName(config.getBrokerName());
        auth.setClusterName(config.getBrokerClusterName());
        auth.setAuthConfigPath(options.store() + ".auth");
        BrokerPathConfigHelper.setBrokerConfigPath(options.store() + ".namesrv/broker.properties");

        broker = new BrokerController(config, server, client, store, auth);
        broker.getConfiguration().registerConfig(set);
        if (!broker.initialize()) {
            throw new IOException("the broker did not initialize; its store is " + options.store());
        }
        broker.start();
    }

    private void awaitRoute() throws Exception {
        long deadline = System.currentTimeMillis() + READY_DEADLINE_MILLIS;
        while (names.getRouteInfoManager().pickupTopicRouteData("SELF_TEST_TOPIC") == null) {
            if (System.currentTimeMillis() > deadline) {
                throw new IOException("the broker did not register within " + READY_DEADLINE_MILLIS + " ms");
            }
            Thread.sleep(20);
        }
    }

    private static void awaitStop() {
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                if (line.strip().equals("stop")) {
                    return;
                }
            }
        } catch (IOException e) {
            // A broken standard input means the same as its end.
        }
    }

    private void stop() {
        if (stopped.compareAndSet(false, true)) {
            broker.shutdown();
            names.shutdown();
        }
    }
}
