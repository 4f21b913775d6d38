package gantry.suite;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.remoting.RPCHook;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * Runs lines of mqadmin, one after the other in this process, while a consumer of the group {@code AdminJava} is online as
 * {@code 127.0.0.1@live}.
 *
 * <p>{@code Admin NAMESRV TOPIC SCRIPT}: each line of the file SCRIPT is a command with its arguments, separated by tabs. Before
 * each, {@code > COMMAND} is printed, then its output with {@code | } before each line, then {@code < CODE CODE …} with the
 * request codes that the tool sent. A command that takes longer than 30 s is left alone; then the last line is {@code < stuck}.
 * The line {@code help} prints the list of all commands.
 */
public final class Admin {
    private static final long WITHIN_SECONDS = 30;

    private Admin() {
    }

    public static void main(String[] args) throws Exception {
        PrintStream out = Main.quietOutput();
        DefaultMQPushConsumer consumer = consumer(args[0], args[1]);
        for (String line : Files.readAllLines(Path.of(args[2]))) {
            run(line.split("\t"), out);
        }
        consumer.shutdown();
        // The tools leave threads behind: only exit ends the process.
        System.exit(0);
    }

    private static DefaultMQPushConsumer consumer(String namesrv, String topic) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("AdminJava");
        consumer.setNamesrvAddr(namesrv);
        consumer.setClientIP("127.0.0.1");
        consumer.setInstanceName("live");
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently) (messages, context) -> ConsumeConcurrentlyStatus.CONSUME_SUCCESS);
        consumer.start();
        return consumer;
    }

    private static void run(String[] command, PrintStream out) throws IOException, InterruptedException {
        ByteArrayOutputStream said = new ByteArrayOutputStream();
        PrintStream capture = new PrintStream(said, true, StandardCharsets.UTF_8);
        Set<Integer> codes = new TreeSet<>();
        RPCHook hook = new RPCHook() {
            @Override
            public void doBeforeRequest(String address, RemotingCommand request) {
                synchronized (codes) {
                    codes.add(request.getCode());
                }
            }

            @Override
            public void doAfterResponse(String address, RemotingCommand request, RemotingCommand response) {
            }
        };
        PrintStream before = System.out;
        PrintStream beforeErr = System.err;
        System.setOut(capture);
        System.setErr(capture);
        String[] arguments = command[0].equals("help") ? new String[0] : command;
        Thread thread = new Thread(() -> MQAdminStartup.main0(arguments, hook), "command");
        thread.setDaemon(true);
        thread.start();
        thread.join(TimeUnit.SECONDS.toMillis(WITHIN_SECONDS));
        System.setOut(before);
        System.setErr(beforeErr);
        out.println("> " + command[0]);
        said.toString(StandardCharsets.UTF_8).lines().forEach(line -> out.println("| " + line));
        if (thread.isAlive()) {
            out.println("< stuck");
            return;
        }
        synchronized (codes) {
            StringBuilder all = new StringBuilder("<");
            codes.forEach(code -> all.append(' ').append(code));
            out.println(all);
        }
    }
}
