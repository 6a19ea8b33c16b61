//! Accepts the connections of the admin address, within limits: HTTP/1 only, a time for the head of each request, and a number of connections.
//!
//! When the number is reached, a new connection takes the place of the oldest. So callers that hold connections open cannot keep a probe out:
//! it needs a connection for milliseconds.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// The most connections at a time.
const MOST: usize = 64;

/// The longest time from the end of one request to the end of the next one's head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// The largest head, in bytes.
const LARGEST_HEAD: usize = 16 << 10;

/// The pause after an error of accepting, which is most often a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The address that a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller(pub(super) IpAddr);

/// Answers requests until `end` is dropped, then finishes open requests.
pub(super) async fn serve(listener: TcpListener, router: Router, mut end: oneshot::Receiver<()>) {
    let (ending, ended) = watch::channel(false);
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut end => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "the admin address cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MOST
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let router = router.clone().layer(Extension(Caller(address.ip())));
        open.push_back(tokio::spawn(answer(stream, router, ended.clone())));
    }
    ending.send_replace(true);
    for connection in open {
        // The error of a connection that was aborted.
        drop(connection.await);
    }
}

/// Answers the requests of one connection.
async fn answer(stream: TcpStream, router: Router, mut ended: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let answered = tokio::select! {
        answered = connection.as_mut() => answered,
        () = async { drop(ended.wait_for(|ended| *ended).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "a connection to the admin address ended badly");
    }
}
