import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;

/**
 * Creates a topic as {@code kafka-topics.sh --bootstrap-server B --create --topic T --partitions N} does. The jars of the broker do not
 * contain Kafka's own tool.
 */
class Topics {
    public static void main(String[] arguments) throws Exception {
        var given = new HashMap<String, String>();
        for (int at = 0; at < arguments.length; at++) {
            boolean isFlag = at + 1 == arguments.length || arguments[at + 1].startsWith("--");
            given.put(arguments[at], isFlag ? "" : arguments[++at]);
        }
        if (!given.containsKey("--create")) {
            throw new IllegalArgumentException("only --create is known here");
        }
        var topic = new NewTopic(given.get("--topic"), Integer.parseInt(given.get("--partitions")), (short) 1);
        try (var admin = Admin.create(Map.<String, Object>of("bootstrap.servers", given.get("--bootstrap-server")))) {
            admin.createTopics(List.of(topic)).all().get();
        }
    }
}
