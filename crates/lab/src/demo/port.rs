//! Ports for servers that must come back on the same one after a restart.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use rand::Rng;

/// Below the ranges from which Linux (32768) and macOS (49152) serve outgoing connections: while a server is down for a test, none of
/// the test's own connections can take its port.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A port of 127.0.0.1 nobody listens on now. Somebody may by the time it is used: callers try again with another one.
///
/// # Errors
/// When a hundred ports in a row are taken.
pub fn free_port() -> io::Result<u16> {
    let mut random = rand::rng();
    (0..100)
        .map(|_| random.random_range(PORTS))
        .find(|port| is_free(*port))
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no free port on 127.0.0.1"))
}

pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
