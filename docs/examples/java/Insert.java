// JDBC_URL='jdbc:postgresql://localhost:5432/app?user=app' java -cp postgresql.jar Insert.java

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

public class Insert {
    public static void main(String[] args) throws SQLException {
        try (Connection connection = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            placeOrder(connection, "o-java", "c-7", 4200);
        }
    }

    static void placeOrder(Connection connection, String id, String customer, long totalCents) throws SQLException {
        connection.setAutoCommit(false);
        try (var order = connection.prepareStatement("insert into orders (id, customer, total_cents) values (?, ?, ?)");
             var event = connection.prepareStatement(
                     "select outbox_emit('order', ?, 'OrderPlaced', ?::jsonb, ?::jsonb)")) {
            order.setString(1, id);
            order.setString(2, customer);
            order.setLong(3, totalCents);
            order.executeUpdate();

            // Real code lets its JSON library write this.
            String payload = "{\"orderId\": \"%s\", \"customer\": \"%s\", \"totalCents\": %d}";
            event.setString(1, id);
            event.setString(2, payload.formatted(id, customer, totalCents));
            event.setString(3, "{\"correlation-id\": \"req-81f2\"}");
            event.execute();

            connection.commit();
        } catch (SQLException failed) {
            connection.rollback();
            throw failed;
        }
    }
}
