import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AccessControlEntryFilter;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;

/**
 * Sets the right that everybody has on a topic: {@code Rights <brokers> <topic> <operation>}, for example DESCRIBE. ALL deletes all rules,
 * because the broker allows everything on a topic without a rule. NONE leaves only a rule for another user.
 */
class Rights {
    public static void main(String[] arguments) throws Exception {
        var topic = new ResourcePattern(ResourceType.TOPIC, arguments[1], PatternType.LITERAL);
        try (var admin = Admin.create(Map.<String, Object>of("bootstrap.servers", arguments[0]))) {
            admin.deleteAcls(List.of(new AclBindingFilter(topic.toFilter(), AccessControlEntryFilter.ANY))).all().get();
            switch (arguments[2]) {
                case "ALL" -> { }
                case "NONE" -> allow(admin, topic, "User:somebody-else", AclOperation.ALL);
                default -> allow(admin, topic, "User:ANONYMOUS", AclOperation.valueOf(arguments[2]));
            }
        }
    }

    private static void allow(Admin admin, ResourcePattern topic, String who, AclOperation operation) throws Exception {
        var entry = new AccessControlEntry(who, "*", operation, AclPermissionType.ALLOW);
        admin.createAcls(List.of(new AclBinding(topic, entry))).all().get();
    }
}
