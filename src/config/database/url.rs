//! Splits `DATABASE_URL` into libpq's parameters: `postgres://user:password@h1:5432,h2/database?name=value`.

/// Refuses a URL whose parts cannot be told apart. The text before the last `@` may be part of a password, so it is never shown.
pub(super) const PERCENT_ENCODE: &str = "user or password holds a character with a meaning in URLs; write it percent-encoded (@ %40, : %3A, / %2F, ? %3F, # %23)";

const NO_TEXT: &str = "it holds a % that encodes no text";

/// The parts of a URL, and the problems of parts that could not be read.
#[derive(Default)]
pub(super) struct Parts {
    /// Names and values in the order of the URL. The values are decoded.
    pub(super) parameters: Vec<(String, String)>,
    pub(super) problems: Vec<String>,
}

impl Parts {
    fn set(&mut self, name: &str, encoded: &str) {
        match decode(encoded) {
            Some(value) => self.parameters.push((name.to_owned(), value)),
            None => self.problems.push(NO_TEXT.to_owned()),
        }
    }

    fn set_unless_empty(&mut self, name: &str, encoded: &str) {
        if !encoded.is_empty() {
            self.set(name, encoded);
        }
    }
}

/// Splits a URL as libpq does. A user or password may hold an `@` that is not encoded: the last one before the path ends it.
///
/// # Errors
/// Returns the problem of a URL whose parts cannot be told apart.
pub(super) fn split(text: &str) -> Result<Parts, String> {
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    let rest = rest.ok_or("expected a URL that begins with postgres:// or postgresql://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if rest.contains('#') || path.contains('@') {
        return Err(PERCENT_ENCODE.to_owned());
    }
    let mut parts = Parts::default();
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    parts.set_unless_empty("user", user);
    parts.set_unless_empty("password", password);
    split_hosts(hosts, &mut parts)?;
    let (database, query) = path.split_once('?').unwrap_or((path, ""));
    parts.set_unless_empty("dbname", database.strip_prefix('/').unwrap_or(database));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match (pair.split_once('='), pair.split_once('=').and_then(|(name, _)| decode(name))) {
            (Some((_, value)), Some(name)) => parts.set(&name, value),
            _ => parts.problems.push("one of its parameters has no value: write name=value".to_owned()),
        }
    }
    Ok(parts)
}

/// Splits `h1:5432,[::1],%2Frun%2Fpostgresql` into the lists `host` and `port`.
fn split_hosts(text: &str, parts: &mut Parts) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for server in text.split(',') {
        let (host, port) = match server.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(NOT_A_HOST)?;
                let address = decode(address).ok_or(NOT_A_HOST)?;
                let plain = address.split('%').next().unwrap_or_default();
                plain.parse::<std::net::Ipv6Addr>().map_err(|_| NOT_A_HOST)?;
                (address, port)
            }
            None => {
                let (host, port) = server.split_at(server.find(':').unwrap_or(server.len()));
                (decode(host).ok_or(NOT_A_HOST)?, port)
            }
        };
        // A comma in a host would become another host.
        if host.contains(',') || !(port.is_empty() || port.starts_with(':')) {
            return Err(NOT_A_HOST.to_owned());
        }
        hosts.push(host);
        ports.push(port.strip_prefix(':').unwrap_or(port).to_owned());
    }
    // `postgres://:5433/` names only a port, and the host comes from elsewhere.
    if hosts.iter().any(|host| !host.is_empty()) || hosts.len() > 1 {
        parts.parameters.push(("host".to_owned(), hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        parts.parameters.push(("port".to_owned(), ports.join(",")));
    }
    Ok(())
}

pub(super) const NOT_A_HOST: &str = "its host is not a host name or an address";

/// Decodes `%2F`. Returns `None` if a `%` encodes no UTF-8 text, or a NUL. A `+` stays a plus.
pub(super) fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        let digits =
            std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}
