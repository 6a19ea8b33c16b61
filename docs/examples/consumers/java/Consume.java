// mvn dependency:copy-dependencies -DoutputDirectory=jars
// JDBC_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events java -cp 'jars/*' Consume.java

import com.fasterxml.jackson.databind.ObjectMapper;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;

public class Consume {
    static final String GROUP = "billing-java";

    static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] args) throws Exception {
        Map<String, Object> config = Map.of(
                "bootstrap.servers", System.getenv("KAFKA_BOOTSTRAP_SERVERS"),
                "group.id", GROUP,
                // How soon others take over from a consumer that was killed.
                "session.timeout.ms", 10_000,
                "enable.auto.commit", false,
                "auto.offset.reset", "earliest");
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
             var db = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            db.setAutoCommit(false);
            consumer.subscribe(List.of(System.getenv("TOPIC")));
            while (true) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    var eventId = UUID.fromString(new String(record.headers().lastHeader("event-id").value()));
                    apply(db, eventId, record);
                    System.out.println("committed " + eventId);
                    // Only now: were it committed first, a crash in between would lose the event.
                    var partition = new TopicPartition(record.topic(), record.partition());
                    consumer.commitSync(Map.of(partition, new OffsetAndMetadata(record.offset() + 1)));
                }
            }
        }
    }

    static void apply(Connection db, UUID eventId, ConsumerRecord<String, String> record) throws Exception {
        try (var once = db.prepareStatement("select event_once(?, ?)");
             var invoice = db.prepareStatement("insert into invoices (order_id, total_cents) values (?, ?)")) {
            once.setString(1, GROUP);
            once.setObject(2, eventId);
            var first = once.executeQuery();
            first.next();
            if (first.getBoolean(1)) {
                var order = JSON.readTree(record.value()).get("data");
                invoice.setString(1, order.get("orderId").asText());
                invoice.setLong(2, order.get("totalCents").asLong());
                invoice.executeUpdate();
            }
            db.commit();
        } catch (SQLException failed) {
            db.rollback();
            throw failed;
        }
    }
}
