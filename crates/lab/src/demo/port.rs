//! Finds ports for servers that have to use the same one after a restart.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use rand::Rng;

/// The range of ports to choose from. It is below the ranges that Linux (32768) and macOS (49152) use for outgoing connections. So while a
/// test has its server down, no connection of the test can take the server's port.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Returns a port of 127.0.0.1 on which nobody listens now. Another process may take it before it is used; callers then try another one.
///
/// # Errors
/// An I/O error if a hundred ports in a row are taken.
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
