//! Reads notifications from the bytes that a server sends to a session. sqlx gives notifications only to sessions that it opens itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// The type of a message that carries a notification:
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
const NOTIFICATION: u8 = b'A';

/// The type of the message that tells a client its server process. A pooler tells a number of its own.
const PROCESS: u8 = b'K';

/// The bytes of a message's type and length. The length counts itself.
const HEADER: usize = 5;

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Notifications {
    received: mpsc::Receiver<()>,
    process: Arc<AtomicI32>,
}

/// The sending end, in a session's stream of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Tap {
    sender: mpsc::Sender<()>,
    process: Arc<AtomicI32>,
}

/// Returns both ends.
pub(crate) fn tap() -> (Tap, Notifications) {
    // One message is enough: it says that there is something to look at.
    let (sender, received) = mpsc::channel(1);
    let process = Arc::new(AtomicI32::new(0));
    (Tap { sender, process: Arc::clone(&process) }, Notifications { received, process })
}

impl Notifications {
    /// Waits for a notification since the last one; `None` once the session has ended.
    pub(crate) async fn next(&mut self) -> Option<()> {
        self.received.recv().await
    }

    /// Forgets the notifications so far.
    pub(crate) fn clear(&mut self) {
        while self.received.try_recv().is_ok() {}
    }

    /// Returns true if this server process is the one that the session was begun with, so that no pooler is in between.
    pub(crate) fn are_of(&self, process: i32) -> bool {
        self.process.load(Ordering::Relaxed) == process
    }
}

/// The position in the stream of messages.
#[derive(Debug, Default)]
struct Position {
    header: Vec<u8>,
    /// The bytes of the present message that are still to come.
    left: usize,
    kind: u8,
    /// The first bytes of the message that tells the server process.
    process: Vec<u8>,
}

impl Position {
    /// Appends the next bytes to `to`, without notifications: sqlx does not expect them between the answers to a query. Returns true if
    /// there was one.
    fn pass(&mut self, mut bytes: &[u8], to: &mut Vec<u8>) -> bool {
        let mut found = false;
        while !bytes.is_empty() {
            let is_header = self.left == 0;
            let (part, rest) =
                bytes.split_at(if is_header { HEADER - self.header.len() } else { self.left }.min(bytes.len()));
            bytes = rest;
            if !is_header {
                self.left -= part.len();
                if self.kind != NOTIFICATION {
                    to.extend_from_slice(part);
                }
                if self.kind == PROCESS {
                    self.process.extend_from_slice(part);
                }
                continue;
            }
            self.header.extend_from_slice(part);
            if let [kind, length @ ..] = self.header.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.kind = *kind;
                found |= self.kind == NOTIFICATION;
                self.left = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                if self.kind != NOTIFICATION {
                    to.extend_from_slice(&self.header);
                }
                self.header.clear();
            }
        }
        found
    }

    fn process(&self) -> Option<i32> {
        self.process.first_chunk().map(|id| i32::from_be_bytes(*id))
    }
}

impl Tap {
    /// Copies everything but notifications until one side ends, and returns the number of bytes.
    pub(super) async fn copy<R, W>(&self, from: &mut R, to: &mut W) -> io::Result<u64>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (mut position, mut bytes, mut passed, mut copied) = (Position::default(), [0; 8 * 1024], Vec::new(), 0);
        loop {
            let read = from.read(&mut bytes).await?;
            if read == 0 {
                return Ok(copied);
            }
            let is_notified = position.pass(&bytes[..read], &mut passed);
            if let Some(process) = position.process() {
                self.process.store(process, Ordering::Relaxed);
            }
            to.write_all(&passed).await?;
            copied += passed.len() as u64;
            passed.clear();
            if is_notified {
                // A full channel has a message already, and nobody reads from a closed one.
                let _ = self.sender.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[kind], length.as_slice(), body].concat()
    }

    #[test]
    fn a_notification_is_taken_out_wherever_the_bytes_are_cut() {
        let before = [
            message(b'R', &[0, 0, 0, 0]),
            message(b'K', &[0, 0, 1, 2, 9, 9, 9, 9]),
            message(b'D', b"A row with an A in it"),
        ]
        .concat();
        let (notification, after) = (message(NOTIFICATION, b"\x00\x00\x00\x07channel\0\0"), message(b'Z', b"I"));
        let stream = [before.as_slice(), &notification, &after].concat();
        let others = [before, after].concat();
        for cut in 1..stream.len() {
            let (mut position, mut passed) = (Position::default(), Vec::new());
            let found = stream.chunks(cut).filter(|chunk| position.pass(chunk, &mut passed)).count();
            assert_eq!((found, position.left, &passed), (1, 0, &others), "{cut}");
            assert_eq!(position.process(), Some(258));
        }
        let mut passed = Vec::new();
        let others = [message(b'D', b"A"), message(b'C', b"NOTIFY\0")].concat();
        assert!(!Position::default().pass(&others, &mut passed) && passed == others);
    }
}
