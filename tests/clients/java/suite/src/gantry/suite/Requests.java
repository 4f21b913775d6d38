package gantry.suite;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.RequestTimeoutException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Requests whose sender waits for the reply of a consumer. */
final class Requests {
    private static final int SYSTEM_ERROR = 1;
    private static final long PATIENCE_MILLIS = 20_000;

    private Requests() {
    }

    static List<Scenario> scenarios() {
        return List.of(
                Scenario.of("request-reply", Requests::reply),
                Scenario.of("request-timeout", Requests::timeout),
                Scenario.of("request-gone", Requests::gone),
                Scenario.restarting("request-restart", Requests::restart));
    }

    /** A consumer that replies to everything with {@code re: } and the body; {@code sent} gets what the broker answered. */
    private static void replying(Env env, String topic, List<SendResult> sent) throws Exception {
        DefaultMQProducer producer = env.producer("replier");
        DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            try {
                for (MessageExt request : messages) {
                    Message reply = MessageUtil.createReplyMessage(request, ("re: " + Seen.text(request)).getBytes(StandardCharsets.UTF_8));
                    reply.putUserProperty("n", "17");
                    SendResult result = producer.send(reply, 10_000);
                    synchronized (sent) {
                        sent.add(result);
                    }
                }
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            } catch (Exception e) {
                context.setDelayLevelWhenNextConsume(1);
                return ConsumeConcurrentlyStatus.RECONSUME_LATER;
            }
        });
        consumer.start();
        Env.awaitQueues(consumer, topic, 2);
    }

    private static void reply(Env env) throws Exception {
        String topic = env.topic(2);
        List<SendResult> sent = new ArrayList<>();
        replying(env, topic, sent);
        DefaultMQProducer producer = env.producer("producer");
        Message small = producer.request(Env.message(topic, "how much?"), PATIENCE_MILLIS);
        Expect.equal("reply", "re: how much?", text(small));
        Expect.equal("property of the reply", "17", small.getUserProperty("n"));
        String large = "large ".repeat(5_000);
        Expect.equal("large reply", "re: " + large, text(producer.request(Env.message(topic, large), PATIENCE_MILLIS)));
        CompletableFuture<Message> later = new CompletableFuture<>();
        producer.request(Env.message(topic, "and now?"), new RequestCallback() {
            @Override
            public void onSuccess(Message message) {
                // The client calls this without a message, too: when the request was sent.
                if (message != null) {
                    later.complete(message);
                }
            }

            @Override
            public void onException(Throwable e) {
                later.completeExceptionally(e);
            }
        }, PATIENCE_MILLIS);
        Expect.equal("reply to a callback", "re: and now?", text(later.get(PATIENCE_MILLIS, TimeUnit.MILLISECONDS)));
        List<String> wanted = new ArrayList<>(List.of("re: how much?", "re: " + large, "re: and now?"));
        List<String> stored = Seen.texts(env.run.readTopic(env.run.cluster + "_REPLY_TOPIC", 3));
        wanted.removeAll(stored);
        Expect.equal("replies that are not stored", List.of(), wanted);
        Wait.until("answers to the replies", 10, () -> {
            synchronized (sent) {
                return sent.size() == 3;
            }
        }, sent::size);
    }

    private static void timeout(Env env) throws Exception {
        String topic = env.topic(1);
        DefaultMQProducer producer = env.producer("producer");
        boolean timedOut = false;
        try {
            producer.request(Env.message(topic, "anybody?"), 500);
        } catch (RequestTimeoutException e) {
            timedOut = true;
        }
        Expect.equal("no reply in time", true, timedOut);
        Expect.equal("stored", List.of("anybody?"), Seen.texts(env.run.readTopic(topic, 1)));
    }

    /** The requester is gone when its reply comes: the replier is told so. */
    private static void gone(Env env) throws Exception {
        String topic = env.topic(1);
        AtomicReference<MessageExt> request = new AtomicReference<>();
        CountDownLatch received = new CountDownLatch(1);
        DefaultMQPushConsumer consumer = env.push(env.name("group"), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            request.set(messages.get(0));
            received.countDown();
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        DefaultMQProducer requester = env.producer("requester");
        Thread asking = new Thread(() -> {
            try {
                requester.request(Env.message(topic, "I am off"), PATIENCE_MILLIS);
            } catch (Exception e) {
                // It is shut down before the reply comes.
            }
        });
        asking.setDaemon(true);
        asking.start();
        Expect.equal("request received", true, received.await(30, TimeUnit.SECONDS));
        requester.shutdown();
        DefaultMQProducer replier = env.producer("replier");
        replier.setRetryTimesWhenSendFailed(0);
        Message reply = MessageUtil.createReplyMessage(request.get(), "too late".getBytes(StandardCharsets.UTF_8));
        Expect.refused("a reply to nobody", SYSTEM_ERROR, () -> replier.send(reply));
    }

    /** A request is under way while the broker restarts; requests after it are answered as those before. */
    private static void restart(Env env) throws Exception {
        String topic = env.topic(2);
        replying(env, topic, new ArrayList<>());
        DefaultMQProducer producer = env.producer("producer");
        Expect.equal("reply before", "re: before", text(producer.request(Env.message(topic, "before"), PATIENCE_MILLIS)));
        env.awaitRestart();
        Wait.until("reply after", 90, () -> {
            try {
                return text(producer.request(Env.message(topic, "after"), 5_000)).equals("re: after");
            } catch (Exception e) {
                return false;
            }
        });
    }

    private static String text(Message message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }
}
