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
 * Sets the right that everybody has on topics, groups or transactional ids: {@code Rights <brokers> <type> <LITERAL or PREFIXED> <name>
 * <operation>}, for example {@code GROUP PREFIXED outbox- READ}. ALL deletes all rules, because the broker allows everything where there is
 * no rule. NONE leaves only a rule for another user.
 */
class Rights {
    public static void main(String[] arguments) throws Exception {
        var type = ResourceType.valueOf(arguments[1]);
        var pattern = new ResourcePattern(type, arguments[3], PatternType.valueOf(arguments[2]));
        try (var admin = Admin.create(Map.<String, Object>of("bootstrap.servers", arguments[0]))) {
            admin.deleteAcls(List.of(new AclBindingFilter(pattern.toFilter(), AccessControlEntryFilter.ANY))).all().get();
            switch (arguments[4]) {
                case "ALL" -> { }
                case "NONE" -> allow(admin, pattern, "User:somebody-else", AclOperation.ALL);
                default -> allow(admin, pattern, "User:ANONYMOUS", AclOperation.valueOf(arguments[4]));
            }
        }
    }

    private static void allow(Admin admin, ResourcePattern pattern, String who, AclOperation operation) throws Exception {
        var entry = new AccessControlEntry(who, "*", operation, AclPermissionType.ALLOW);
        admin.createAcls(List.of(new AclBinding(pattern, entry))).all().get();
    }
}
