//! Signs the URL that is the token, as `SigV4QueryAuth` of botocore does for the reference signer.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use super::Token;
use super::credentials::Credentials;

/// The service in the signature.
const SERVICE: &str = "kafka-cluster";

/// The life of a token, the longest that brokers accept.
const LIFE: TimeDelta = TimeDelta::seconds(900);

/// Returns a token that is signed at `now`.
pub(super) fn token(credentials: &Credentials, region: &str, user_agent: &str, now: DateTime<Utc>) -> Token {
    let host = format!("kafka.{region}.amazonaws.com");
    let (time, day) = (now.format("%Y%m%dT%H%M%SZ").to_string(), now.format("%Y%m%d").to_string());
    let scope = format!("{day}/{region}/{SERVICE}/aws4_request");
    let mut query = vec![
        ("Action", "kafka-cluster:Connect".to_owned()),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
        ("X-Amz-Credential", format!("{}/{scope}", credentials.access_key)),
        ("X-Amz-Date", time.clone()),
        ("X-Amz-Expires", LIFE.num_seconds().to_string()),
        ("X-Amz-SignedHeaders", "host".to_owned()),
    ];
    if let Some(session) = &credentials.session_token {
        query.push(("X-Amz-Security-Token", session.expose_secret().to_owned()));
    }
    // The signature is over the parameters in order; the URL has them as the reference signer writes them.
    let written = joined(&query);
    query.sort_unstable_by_key(|(name, _)| *name);
    let request = format!("GET\n/\n{}\nhost:{host}\n\nhost\n{}", joined(&query), hex(&Sha256::digest(b"")));
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(request.as_bytes())));
    let secret = format!("AWS4{}", credentials.secret_key.expose_secret());
    let key = [day.as_str(), region, SERVICE, "aws4_request"]
        .iter()
        .fold(secret.into_bytes(), |key, part| authenticated(&key, part));
    let signature = hex(&authenticated(&key, &text));
    let url = format!("https://{host}/?{written}&X-Amz-Signature={signature}&User-Agent={}", encoded(user_agent));
    let ends = now.timestamp().saturating_add(LIFE.num_seconds()).saturating_mul(1000);
    let credentials_end = credentials.expires_at.map_or(i64::MAX, |at| at.timestamp_millis());
    Token { value: URL_SAFE_NO_PAD.encode(url), expires_at_ms: ends.min(credentials_end) }
}

fn joined(query: &[(&str, String)]) -> String {
    let pairs: Vec<_> = query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    pairs.join("&")
}

/// Encodes a value for a URL as signatures need it: all but the unreserved characters.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn authenticated(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens that `aws-msk-iam-sasl-signer-python` 1.0.2 with botocore 1.43 made at that time with these keys.
    const REFERENCE: [(&str, [&str; 3], &str); 2] = [
        (
            "us-east-1",
            ["AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", ""],
            "aHR0cHM6Ly9rYWZrYS51cy1lYXN0LTEuYW1hem9uYXdzLmNvbS8_QWN0aW9uPWthZmthLWNsdXN0ZXIlM0FDb25uZWN0JlgtQW16LUFsZ29yaXRobT1BV1M0LUhNQUMtU0hBMjU2JlgtQW16LUNyZWRlbnRpYWw9QUtJREVYQU1QTEUlMkYyMDI2MTEyNiUyRnVzLWVhc3QtMSUyRmthZmthLWNsdXN0ZXIlMkZhd3M0X3JlcXVlc3QmWC1BbXotRGF0ZT0yMDI2MTEyNlQyMzE1MDdaJlgtQW16LUV4cGlyZXM9OTAwJlgtQW16LVNpZ25lZEhlYWRlcnM9aG9zdCZYLUFtei1TaWduYXR1cmU9ZmE5ZTQ3YmNlODgyYTYwYmMxMWFiZTg1NDEwNDliNGIzMTQyM2NkMzJkYmFlZDQ0ZDgzNGU2MzE0YzNmNGFiZiZVc2VyLUFnZW50PWF3cy1tc2staWFtLXNhc2wtc2lnbmVyLXB5dGhvbiUyRjEuMC4y",
        ),
        (
            "eu-central-1",
            ["ASIAEXAMPLE", "secret/+=", "FwoGZXIvYXdzEXAMPLE//token+with/odd==chars"],
            "aHR0cHM6Ly9rYWZrYS5ldS1jZW50cmFsLTEuYW1hem9uYXdzLmNvbS8_QWN0aW9uPWthZmthLWNsdXN0ZXIlM0FDb25uZWN0JlgtQW16LUFsZ29yaXRobT1BV1M0LUhNQUMtU0hBMjU2JlgtQW16LUNyZWRlbnRpYWw9QVNJQUVYQU1QTEUlMkYyMDI2MTEyNiUyRmV1LWNlbnRyYWwtMSUyRmthZmthLWNsdXN0ZXIlMkZhd3M0X3JlcXVlc3QmWC1BbXotRGF0ZT0yMDI2MTEyNlQyMzE1MDdaJlgtQW16LUV4cGlyZXM9OTAwJlgtQW16LVNpZ25lZEhlYWRlcnM9aG9zdCZYLUFtei1TZWN1cml0eS1Ub2tlbj1Gd29HWlhJdllYZHpFWEFNUExFJTJGJTJGdG9rZW4lMkJ3aXRoJTJGb2RkJTNEJTNEY2hhcnMmWC1BbXotU2lnbmF0dXJlPTRjZmMxMjk1Y2QwMDFjZTk3YWVmMDJmZTgwZDQwOTQ2ZjY5OTc2ZDcxY2I0ZjZhYTJhZGJiOGYwZWUwODBjYzQmVXNlci1BZ2VudD1hd3MtbXNrLWlhbS1zYXNsLXNpZ25lci1weXRob24lMkYxLjAuMg",
        ),
    ];

    #[test]
    fn a_token_is_equal_to_that_of_the_reference_signer() {
        let now: DateTime<Utc> = "2026-11-26T23:15:07Z".parse().unwrap();
        for (region, [access_key, secret_key, session], expected) in REFERENCE {
            let credentials = Credentials {
                access_key: access_key.to_owned(),
                secret_key: secret_key.into(),
                session_token: (!session.is_empty()).then(|| session.into()),
                expires_at: None,
            };
            let token = token(&credentials, region, "aws-msk-iam-sasl-signer-python/1.0.2", now);
            assert_eq!(token.value, expected, "{region}");
            assert_eq!(token.expires_at_ms, 1_795_735_807_000);
        }
    }

    #[test]
    fn a_token_ends_with_its_credentials() {
        let now: DateTime<Utc> = "2026-11-26T23:15:07Z".parse().unwrap();
        let credentials = Credentials {
            access_key: "ASIA".to_owned(),
            secret_key: "secret".into(),
            session_token: None,
            expires_at: Some(now + TimeDelta::seconds(20)),
        };
        let token = token(&credentials, "us-east-1", "test", now);
        assert_eq!(token.expires_at_ms, now.timestamp_millis() + 20_000);
    }
}
