//! The admin address: `/livez`, `/readyz`, `/metrics`. Everything is answered from memory; nothing is written.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::Telemetry;
use super::health::Answer;

/// Version 0.0.4 is what every scraper reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every caller has to show; `None`: nothing.
type Expected = Option<Arc<str>>;

/// A server that has its address.
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

impl Server {
    /// # Errors
    /// The address is taken, or none of this host's.
    pub(crate) async fn bind(address: SocketAddr, token: Option<&str>, telemetry: Arc<Telemetry>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener, router: router(token, telemetry) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `end` is dropped, and then what is under way.
    pub(crate) async fn serve(self, end: oneshot::Receiver<()>) {
        let ended = async { drop(end.await) };
        if let Err(error) = axum::serve(self.listener, self.router).with_graceful_shutdown(ended).await {
            tracing::debug!(%error, "the admin address ended with an error");
        }
    }
}

fn router(token: Option<&str>, telemetry: Arc<Telemetry>) -> Router {
    let expected: Expected = token.map(|token| format!("Bearer {token}").into());
    Router::new()
        .route("/livez", get(|State(telemetry): State<Arc<Telemetry>>| async move { probe(&telemetry.health.live()) }))
        .route(
            "/readyz",
            get(|State(telemetry): State<Arc<Telemetry>>| async move { probe(&telemetry.health.ready()) }),
        )
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "/livez, /readyz and /metrics are here\n") })
        .with_state(telemetry)
        // Around the fallback as well: without the token nothing is shown, not even what there is.
        .layer(middleware::from_fn_with_state(expected, authorize))
}

async fn authorize(State(expected): State<Expected>, request: Request, next: Next) -> Response {
    if let Some(expected) = expected {
        let shown = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        // In a time that does not depend on where the two differ.
        if !bool::from(shown.ct_eq(expected.as_bytes())) {
            let asked = [(header::WWW_AUTHENTICATE, "Bearer")];
            return (StatusCode::UNAUTHORIZED, asked, "Authorization: Bearer <RELAY_ADMIN_TOKEN> is needed\n")
                .into_response();
        }
    }
    next.run(request).await
}

fn probe(answer: &Answer) -> Response {
    let status = if answer.is_fine() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(answer) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> Response {
    match telemetry.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
