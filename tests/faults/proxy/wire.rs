//! Finds the end of a request. Kafka's requests and answers are frames with a leading length. From Postgres' stream the proxy takes
//! everything that arrives at once, because the client wrote it at once.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

use super::ended;
use super::trap::Spot;

/// The protocol that the proxy carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Postgres,
    Kafka,
}

/// `api_key` of a Produce request (<https://kafka.apache.org/protocol#protocol_api_keys>).
const PRODUCE: [u8; 2] = [0, 0];

/// The `api_key` of a transaction's offset commit (the progress), and the one of a transaction's end.
const TXN_OFFSET_COMMIT: [u8; 2] = [0, 28];
const END_TXN: [u8; 2] = [0, 26];

const MARK: &[u8] = b"set status = 'PUBLISHED'";
const DELETE: &[u8] = b"with changed as (delete from";

/// The text of the mark as a prepared statement.
const MARK_PREPARED: &[u8] = b"execute outbox_relay_mark";

/// The text of the statement that prepares the mark.
const PREPARE: &[u8] = b"prepare outbox_relay";

/// The most bytes to read from Postgres at once.
const CHUNK: usize = 256 * 1024;

/// A length above that of any frame of a test.
const LARGEST_FRAME: usize = 64 * 1024 * 1024;

/// A unit that travels through the proxy in one piece.
#[derive(Debug)]
pub(crate) struct Unit {
    protocol: Protocol,
    bytes: Vec<u8>,
}

impl Unit {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The version of a Produce request.
    pub(super) fn produce_version(&self) -> Option<i16> {
        let version = self.bytes.get(6..8).filter(|_| self.is_at(Spot::Produce))?;
        Some(i16::from_be_bytes(version.try_into().ok()?))
    }

    pub(super) fn is_at(&self, spot: Spot) -> bool {
        match (spot, self.protocol) {
            (Spot::Produce, Protocol::Kafka) => self.bytes.get(4..6) == Some(&PRODUCE[..]),
            (Spot::Offsets, Protocol::Kafka) => self.bytes.get(4..6) == Some(&TXN_OFFSET_COMMIT[..]),
            (Spot::EndTransaction, Protocol::Kafka) => self.bytes.get(4..6) == Some(&END_TXN[..]),
            (Spot::Mark, Protocol::Postgres) => {
                let has = |what| contains(&self.bytes, what);
                has(MARK_PREPARED) || (has(MARK) || has(DELETE)) && !has(PREPARE)
            }
            _ => false,
        }
    }

    /// Returns Kafka's correlation id of a request.
    pub(super) fn correlation(&self) -> Option<[u8; 4]> {
        let number = self.bytes.get(8..12).filter(|_| self.protocol == Protocol::Kafka)?;
        number.try_into().ok()
    }

    /// Kafka's number of the request that this answers.
    pub(super) fn answered(&self) -> [u8; 4] {
        self.bytes.get(4..8).and_then(|number| number.try_into().ok()).unwrap_or_default()
    }

    /// True for Kafka's answer to the request of that number.
    pub(super) fn answers(&self, number: [u8; 4]) -> bool {
        self.bytes.get(4..8) == Some(&number[..])
    }

    /// Replaces the broker's port by the proxy's in Kafka's metadata, because clients connect to the advertised address.
    pub(super) fn advertise(&mut self, upstream: u16, own_port: u16) {
        if self.protocol == Protocol::Postgres {
            return;
        }
        let port = |port: u16| u32::from(port).to_be_bytes();
        let said = [b"127.0.0.1", &port(upstream)[..]].concat();
        while let Some(at) = position(&self.bytes, &said) {
            self.bytes[at + said.len() - 4..at + said.len()].copy_from_slice(&port(own_port));
        }
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    position(bytes, what).is_some()
}

fn position(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Reads units, and keeps the bytes already read of the next one.
#[derive(Debug)]
pub(crate) struct Reader {
    protocol: Protocol,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, buffer: Vec::new() }
    }

    /// Returns the next unit, or an error at the end of the stream.
    pub(super) async fn next(&mut self, from: &mut OwnedReadHalf) -> io::Result<Unit> {
        loop {
            if let Some(length) = self.complete() {
                let rest = self.buffer.split_off(length);
                let bytes = std::mem::replace(&mut self.buffer, rest);
                return Ok(Unit { protocol: self.protocol, bytes });
            }
            self.read_more(from).await?;
        }
    }

    /// Reads the available bytes. Cancel safe.
    pub(super) async fn read_more(&mut self, from: &mut OwnedReadHalf) -> io::Result<()> {
        self.buffer.reserve(CHUNK);
        let read = from.read_buf(&mut self.buffer).await?;
        if read == 0 { Err(ended()) } else { Ok(()) }
    }

    /// Returns the length of the first unit, if the unit is complete.
    fn complete(&self) -> Option<usize> {
        match self.protocol {
            Protocol::Postgres => (!self.buffer.is_empty()).then_some(self.buffer.len()),
            Protocol::Kafka => {
                let length = u32::from_be_bytes(self.buffer.get(..4)?.try_into().ok()?) as usize + 4;
                assert!(length <= LARGEST_FRAME, "a frame of {length} bytes is not Kafka's");
                (self.buffer.len() >= length).then_some(length)
            }
        }
    }
}
