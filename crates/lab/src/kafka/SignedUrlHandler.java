import java.nio.charset.StandardCharsets;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.security.auth.callback.Callback;
import javax.security.auth.callback.UnsupportedCallbackException;
import javax.security.auth.login.AppConfigurationEntry;
import org.apache.kafka.common.security.auth.AuthenticateCallbackHandler;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerExtensionsValidatorCallback;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerToken;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallback;

/** Takes signed URLs of one access key as tokens, each for some seconds after it was signed. */
public class SignedUrlHandler implements AuthenticateCallbackHandler {
    private static final Pattern URL = Pattern.compile(
        "https://kafka\\.[a-z0-9-]+\\.amazonaws\\.com/\\?Action=kafka-cluster%3AConnect&.*X-Amz-Credential=([A-Z0-9]+)%2F"
            + ".*X-Amz-Date=([0-9]{8}T[0-9]{6})Z.*X-Amz-Signature=[0-9a-f]{64}.*");

    @Override
    public void configure(Map<String, ?> configs, String mechanism, List<AppConfigurationEntry> entries) {}

    @Override
    public void handle(Callback[] callbacks) throws UnsupportedCallbackException {
        for (Callback callback : callbacks) {
            if (callback instanceof OAuthBearerValidatorCallback) {
                validate((OAuthBearerValidatorCallback) callback);
            } else if (callback instanceof OAuthBearerExtensionsValidatorCallback) {
                OAuthBearerExtensionsValidatorCallback given = (OAuthBearerExtensionsValidatorCallback) callback;
                given.inputExtensions().map().keySet().forEach(given::valid);
            } else {
                throw new UnsupportedCallbackException(callback);
            }
        }
    }

    private static void validate(OAuthBearerValidatorCallback callback) {
        String value = callback.tokenValue();
        Matcher url = URL.matcher(new String(Base64.getUrlDecoder().decode(value), StandardCharsets.UTF_8));
        if (!url.matches() || !url.group(1).equals(System.getProperty("signed.url.key"))) {
            callback.error("access_denied", null, null);
            return;
        }
        LocalDateTime signed = LocalDateTime.parse(url.group(2), DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss"));
        long start = signed.toInstant(ZoneOffset.UTC).toEpochMilli();
        long end = start + Long.getLong("signed.url.seconds") * 1000;
        if (end < System.currentTimeMillis()) {
            callback.error("token_expired", null, null);
            return;
        }
        callback.token(new OAuthBearerToken() {
            public String value() { return value; }
            public Set<String> scope() { return Set.of(); }
            public long lifetimeMs() { return end; }
            public String principalName() { return "relay"; }
            public Long startTimeMs() { return start; }
        });
    }

    @Override
    public void close() {}
}
