import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;

/**
 * Creates a topic as {@code kafka-topics.sh --bootstrap-server B --create --topic T --partitions N} does, and deletes one as with
 * {@code --delete}. The jars of the broker do not contain Kafka's own tool.
 */
class Topics {
    public static void main(String[] arguments) throws Exception {
        var given = new HashMap<String, String>();
        for (int at = 0; at < arguments.length; at++) {
            boolean isFlag = at + 1 == arguments.length || arguments[at + 1].startsWith("--");
            given.put(arguments[at], isFlag ? "" : arguments[++at]);
        }
        var name = given.get("--topic");
        try (var admin = Admin.create(Map.<String, Object>of("bootstrap.servers", given.get("--bootstrap-server")))) {
            if (given.containsKey("--create")) {
                var topic = new NewTopic(name, Integer.parseInt(given.get("--partitions")), (short) 1);
                admin.createTopics(List.of(topic)).all().get();
            } else if (given.containsKey("--delete")) {
                admin.deleteTopics(List.of(name)).all().get();
            } else {
                throw new IllegalArgumentException("only --create and --delete are known here");
            }
        }
    }
}
