//! Checks certificate and key files at the start, so that a bad file is a clear mistake and not a failed handshake later.

use std::fs;
use std::io::Read;
use std::path::Path;

/// The content that a file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// One certificate or more, as PEM.
    Certificates,
    /// A private key, as PEM.
    PrivateKey,
    /// A list of revoked certificates, as PEM.
    RevocationList,
    /// Any content, for instance PKCS#12.
    Bytes,
}

/// The size of the largest file that is read. The certificate bundles of operating systems have a few hundred kilobytes.
const MAX_FILE: u64 = 16 << 20;

/// Returns the problem of the file, or `None`. The text never repeats the file's content.
pub(super) fn problem(path: &Path, holds: Holds) -> Option<String> {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Some(format!("cannot be read: {}", reason(&error))),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Some("is empty".into());
    }
    let text = String::from_utf8_lossy(&bytes);
    let found: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")).collect();
    let any = |word: &str| found.iter().any(|label| label.contains(word));
    let (fits, expected) = match holds {
        Holds::Bytes => return None,
        Holds::Certificates => (any("CERTIFICATE"), "a PEM certificate (-----BEGIN CERTIFICATE-----)"),
        Holds::PrivateKey => (any("PRIVATE KEY"), "a PEM private key (-----BEGIN PRIVATE KEY-----)"),
        Holds::RevocationList => (any("CRL"), "a PEM revocation list (-----BEGIN X509 CRL-----)"),
    };
    (!fits).then(|| format!("does not hold {expected}"))
}

/// Reads a regular file of limited size. A pipe is rejected, because it could block the start for ever.
pub(super) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("larger than 16 MiB"));
    }
    Ok(bytes)
}

/// Formats an I/O error for operators, without `(os error 2)`.
pub(super) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    const CERTIFICATE: &str = "# our CA\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\n";

    #[test]
    fn a_file_that_holds_what_it_should_is_fine() {
        assert_eq!(problem(file(CERTIFICATE).path(), Holds::Certificates), None);
        assert_eq!(problem(file(KEY).path(), Holds::PrivateKey), None);
        assert_eq!(problem(file("\u{1}\u{2}").path(), Holds::Bytes), None);
    }

    #[test]
    fn a_missing_empty_or_wrong_file_is_distinguished_without_its_content() {
        assert!(problem(Path::new("/nonexistent/ca.pem"), Holds::Certificates).unwrap().contains("no such file"));
        assert!(problem(Path::new("/"), Holds::PrivateKey).unwrap().contains("not a file"));
        assert_eq!(problem(file(" \n").path(), Holds::Bytes).unwrap(), "is empty");
        let swapped = problem(file(KEY).path(), Holds::Certificates).unwrap();
        assert!(swapped.contains("certificate") && !swapped.contains("hunter2"));
        assert!(problem(file(CERTIFICATE).path(), Holds::PrivateKey).is_some());
        assert!(problem(file(CERTIFICATE).path(), Holds::RevocationList).is_some());
        assert!(problem(file("MIIB").path(), Holds::Certificates).is_some());
    }
}
