package gantry.suite;

import java.io.PrintStream;
import java.util.List;
import org.apache.rocketmq.client.AccessChannel;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.trace.TraceBean;
import org.apache.rocketmq.client.trace.TraceContext;
import org.apache.rocketmq.client.trace.TraceDataEncoder;
import org.apache.rocketmq.client.trace.TraceType;
import org.apache.rocketmq.client.trace.TraceView;
import org.apache.rocketmq.client.trace.TraceTransferBean;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageType;

/**
 * Golden lines of message traces: {@code Traces} prints what the client's encoder makes of fixed records, one a line, with
 * {@code |} and {@code $} for its separators; {@code Traces TEXT ID} reads such a text with the client's decoder and prints of
 * each record of the message ID: type, group, status, keys and time.
 */
public final class Traces {
    private Traces() {
    }

    public static void main(String[] args) {
        PrintStream out = Main.quietOutput();
        if (args.length == 0) {
            for (TraceType type : TraceType.values()) {
                out.println(shown(TraceDataEncoder.encoderFromContextBean(context(type))));
            }
            TraceContext cloud = context(TraceType.SubAfter);
            cloud.setAccessChannel(AccessChannel.CLOUD);
            out.println(shown(TraceDataEncoder.encoderFromContextBean(cloud)));
            TraceContext bare = context(TraceType.Pub);
            bare.getTraceBeans().get(0).setTags(null);
            bare.getTraceBeans().get(0).setKeys(null);
            out.println(shown(TraceDataEncoder.encoderFromContextBean(bare)));
        } else {
            MessageExt message = new MessageExt();
            message.setBody(args[0].replace('|', '\u0001').replace('$', '\u0002').getBytes());
            for (TraceView view : TraceView.decodeFromTraceTransData(args[1], message)) {
                out.println(String.join(" ", view.getMsgType(), view.getGroupName(), view.getStatus(), view.getKeys(),
                        Long.toString(view.getTimeStamp())));
            }
        }
        System.exit(0);
    }

    private static String shown(TraceTransferBean bean) {
        return bean.getTransData().replace('\u0001', '|').replace('\u0002', '$');
    }

    private static TraceContext context(TraceType type) {
        TraceBean bean = new TraceBean();
        bean.setTopic("topic");
        bean.setMsgId("7F0000010001ID");
        bean.setOffsetMsgId("7F00000100002A9F0000000000000007");
        bean.setTags("tag");
        bean.setKeys("k1 k2");
        bean.setStoreHost("127.0.0.1:10911");
        bean.setBodyLength(17);
        bean.setRetryTimes(2);
        bean.setMsgType(type == TraceType.EndTransaction ? MessageType.Trans_msg_Commit : MessageType.Delay_Msg);
        bean.setTransactionId("transaction");
        bean.setTransactionState(LocalTransactionState.ROLLBACK_MESSAGE);
        bean.setFromTransactionCheck(true);
        TraceContext context = new TraceContext();
        context.setTraceType(type);
        context.setTimeStamp(1_700_000_000_123L);
        context.setRegionId("DefaultRegion");
        context.setGroupName("group");
        context.setCostTime(5);
        context.setSuccess(type != TraceType.SubAfter);
        context.setRequestId("request");
        context.setContextCode(4);
        context.setAccessChannel(AccessChannel.LOCAL);
        context.setTraceBeans(List.of(bean));
        return context;
    }
}
