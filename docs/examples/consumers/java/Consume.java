// mvn dependency:copy-dependencies -DoutputDirectory=jars
// JDBC_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events java -cp 'jars/*' Consume.java

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.StringDeserializer;

public class Consume {
    static final String GROUP = "billing-java";

    static final ObjectMapper JSON = new ObjectMapper();

    static final Set<String> SAID = new HashSet<>();

    static volatile boolean stopped;

    record Order(UUID eventId, String orderId, long totalCents) {}

    /** A record that is no event for this consumer. */
    static class Foreign extends Exception {
        Foreign(String why) {
            super(why);
        }
    }

    public static void main(String[] args) throws Exception {
        Map<String, Object> config = Map.of(
                "bootstrap.servers", System.getenv("KAFKA_BOOTSTRAP_SERVERS"),
                "group.id", GROUP,
                // How soon others take over from a consumer that was killed.
                "session.timeout.ms", 10_000,
                "enable.auto.commit", false,
                "allow.auto.create.topics", false,
                "auto.offset.reset", "earliest");
        var topic = System.getenv("TOPIC");
        var ended = new CountDownLatch(1);
        // Closing the consumer leaves the group at once, not when the session has run out.
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
             var db = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            // SIGTERM and Ctrl-C: ends the poll, and keeps the machine alive until the group is left.
            Runtime.getRuntime().addShutdownHook(new Thread(() -> {
                stopped = true;
                consumer.wakeup();
                try {
                    ended.await();
                } catch (InterruptedException interrupted) {
                    Thread.currentThread().interrupt();
                }
            }));
            db.setAutoCommit(false);
            if (consumer.partitionsFor(topic).isEmpty()) {
                sayOnce("the topic does not exist yet:", topic);
            }
            consumer.subscribe(List.of(topic));
            consume(consumer, db);
        } catch (WakeupException woken) {
            if (!stopped) {
                throw woken;
            }
        } finally {
            ended.countDown();
        }
    }

    static void consume(KafkaConsumer<String, String> consumer, Connection db) throws SQLException {
        while (!stopped) {
            for (var record : consumer.poll(Duration.ofSeconds(1))) {
                if (stopped) {
                    return;
                }
                try {
                    var order = read(record);
                    apply(db, order);
                    System.out.println("committed " + order.eventId());
                } catch (Foreign foreign) {
                    // A real service puts an event that it should know on a dead letter topic.
                    sayOnce("skipped: " + foreign.getMessage(), "at " + record.partition() + "/" + record.offset());
                }
                // Only now: were it committed first, a crash in between would lose the event.
                var partition = new TopicPartition(record.topic(), record.partition());
                consumer.commitSync(Map.of(partition, new OffsetAndMetadata(record.offset() + 1)));
            }
        }
    }

    static Order read(ConsumerRecord<String, String> record) throws Foreign {
        UUID eventId;
        try {
            eventId = UUID.fromString(header(record, "event-id"));
        } catch (IllegalArgumentException malformed) {
            throw new Foreign("no event-id");
        }
        if (!header(record, "event-type").equals("OrderPlaced")) {
            throw new Foreign("no handler for the type \"" + header(record, "event-type") + "\"");
        }
        if (!header(record, "event-version").equals("1")) {
            throw new Foreign("no handler for the version \"" + header(record, "event-version") + "\" of OrderPlaced");
        }
        try {
            var data = JSON.readTree(record.value() == null ? "" : record.value()).path("data");
            if (data.path("orderId").isTextual() && data.path("totalCents").isIntegralNumber()) {
                return new Order(eventId, data.get("orderId").asText(), data.get("totalCents").asLong());
            }
        } catch (JsonProcessingException noJson) {
            // Falls through: a value that is no JSON is no order either.
        }
        throw new Foreign("no order in an OrderPlaced");
    }

    static String header(ConsumerRecord<String, String> record, String name) {
        var header = record.headers().lastHeader(name);
        return header == null || header.value() == null ? "" : new String(header.value(), StandardCharsets.UTF_8);
    }

    static void sayOnce(String what, String where) {
        if (SAID.add(what)) {
            System.err.println(what + " " + where);
        }
    }

    static void apply(Connection db, Order order) throws SQLException {
        try (var once = db.prepareStatement("select event_once(?, ?)");
             var invoice = db.prepareStatement("insert into invoices (order_id, total_cents) values (?, ?)")) {
            once.setString(1, GROUP);
            once.setObject(2, order.eventId());
            var first = once.executeQuery();
            first.next();
            if (first.getBoolean(1)) {
                invoice.setString(1, order.orderId());
                invoice.setLong(2, order.totalCents());
                invoice.executeUpdate();
            }
            // After an error that was caught, Postgres answers COMMIT with ROLLBACK. This driver throws then; do not set its
            // raiseExceptionOnSilentRollback to false. A statement that may fail belongs into a savepoint.
            db.commit();
        } catch (SQLException failed) {
            db.rollback();
            throw failed;
        }
    }
}
