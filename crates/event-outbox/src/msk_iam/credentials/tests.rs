//! Tests each source of credentials against endpoints of this process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use secrecy::ExposeSecret;

use super::*;

const ANSWER: &str = r#"{"Code":"Success","AccessKeyId":"ASIA","SecretAccessKey":"secret","Token":"session",
    "Expiration":"2030-01-02T03:04:05Z"}"#;

/// Answers one request after the other, then ends. Returns its address, and what it was asked: request line, headers and body.
fn endpoint(answers: Vec<(u16, String)>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let answered = answers.into_iter().map(|(status, body)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut request, mut length) = (String::new(), 0);
            while reader.read_line(&mut request).unwrap() > 2 {
                let last = request.lines().last().unwrap_or_default().to_ascii_lowercase();
                length = last.strip_prefix("content-length: ").map_or(length, |length| length.parse().unwrap());
            }
            let mut sent = vec![0; length];
            reader.read_exact(&mut sent).unwrap();
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
            request + &String::from_utf8(sent).unwrap()
        });
        answered.collect()
    });
    (url, asked)
}

fn environment(given: &[(&str, &str)]) -> Environment {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn shown(found: &Credentials) -> (&str, &str, Option<&str>) {
    let session = found.session_token.as_ref().map(ExposeSecret::expose_secret);
    (found.access_key.as_str(), found.secret_key.expose_secret(), session)
}

fn found(given: &[(&str, &str)]) -> Result<Credentials, MskIamError> {
    find(&environment(given), "eu-central-1")
}

#[test]
fn variables_come_first() {
    let given = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_PROFILE", "none")];
    let credentials = found(&given).unwrap();
    assert_eq!((shown(&credentials), credentials.expires_at), (("AKID", "secret", None), None));
}

#[test]
fn a_web_identity_is_exchanged_for_a_role() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token").display().to_string();
    std::fs::write(&file, "header.payload.signature\n").unwrap();
    let answer = "<AssumeRoleWithWebIdentityResponse><Credentials><AccessKeyId>ASIA</AccessKeyId>\
                  <SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken>\
                  <Expiration>2030-01-02T03:04:05Z</Expiration></Credentials></AssumeRoleWithWebIdentityResponse>";
    let (url, asked) = endpoint(vec![(200, answer.to_owned())]);
    let given = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/relay"),
        ("AWS_ENDPOINT_URL_STS", &url),
    ];
    let credentials = found(&given).unwrap();
    assert_eq!(shown(&credentials), ("ASIA", "secret", Some("session")));
    assert_eq!(credentials.expires_at.unwrap().timestamp(), 1_893_553_445);
    let asked = asked.join().unwrap().remove(0);
    for part in ["POST / ", "Action=AssumeRoleWithWebIdentity", "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Frelay"] {
        assert!(asked.contains(part), "{asked}");
    }
    assert!(asked.contains("WebIdentityToken=header.payload.signature"), "{asked}");
}

#[test]
fn a_refusal_is_told_from_an_outage_and_repeats_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token").display().to_string();
    std::fs::write(&file, "hunter2").unwrap();
    for (status, is_refused) in [(403, true), (400, true), (503, false), (429, false)] {
        let (url, asked) = endpoint(vec![(status, "<Message>hunter2 is not allowed</Message>".to_owned())]);
        let given =
            [("AWS_WEB_IDENTITY_TOKEN_FILE", file.as_str()), ("AWS_ROLE_ARN", "role"), ("AWS_ENDPOINT_URL_STS", &url)];
        let error = found(&given).err().unwrap();
        assert_eq!(matches!(error, MskIamError::Refused(_)), is_refused, "{status}: {error}");
        assert_eq!(matches!(error, MskIamError::Unreachable(_)), !is_refused, "{status}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        asked.join().unwrap();
    }
}

#[test]
fn a_container_is_asked_with_its_token_and_only_nearby() {
    let (url, asked) = endpoint(vec![(200, ANSWER.to_owned())]);
    let url = format!("{url}/v1/credentials");
    let given = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "key")];
    assert_eq!(shown(&found(&given).unwrap()), ("ASIA", "secret", Some("session")));
    let asked = asked.join().unwrap().remove(0).to_ascii_lowercase();
    assert!(asked.starts_with("get /v1/credentials ") && asked.contains("authorization: key"), "{asked}");
    let error = found(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/")]).err().unwrap();
    assert!(matches!(error, MskIamError::NoCredentials(_)), "{error}");
}

#[test]
fn an_instance_is_asked_with_a_token_for_its_role() {
    let answers = ["metadata-token", "relay-role\n", ANSWER].map(|body| (200, body.to_owned()));
    let (url, asked) = endpoint(answers.to_vec());
    assert_eq!(shown(&found(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]).unwrap()).0, "ASIA");
    let asked = asked.join().unwrap();
    assert!(asked[0].starts_with("PUT /latest/api/token "), "{asked:?}");
    assert!(asked[2].starts_with("GET /latest/meta-data/iam/security-credentials/relay-role "), "{asked:?}");
    assert!(asked[2].to_ascii_lowercase().contains("x-aws-ec2-metadata-token: metadata-token"), "{asked:?}");
}

#[test]
fn a_profile_that_needs_more_than_its_text_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config").display().to_string();
    std::fs::write(&file, "[profile shop]\nrole_arn = arn\nsource_profile = base\n").unwrap();
    let error = found(&[("AWS_CONFIG_FILE", file.as_str()), ("AWS_PROFILE", "shop")]).err().unwrap();
    assert!(error.to_string().contains("source_profile"), "{error}");
}
