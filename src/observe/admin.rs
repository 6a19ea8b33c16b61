//! Serves the admin address: `/livez`, `/readyz` and `/metrics`. All answers come from memory, and no request changes anything.

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

/// The content type of version 0.0.4, which every scraper reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The `Authorization` header that every request needs; `None` if it needs none.
type Expected = Option<Arc<str>>;

/// A server that is bound to its address.
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

impl Server {
    /// # Errors
    /// Any error of binding, for example because the address is in use or does not belong to this host.
    pub(crate) async fn bind(address: SocketAddr, token: Option<&str>, telemetry: Arc<Telemetry>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener, router: router(token, telemetry) })
    }

    /// Returns the address that the server listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `end` is dropped, then finishes open requests.
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
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found: use /livez, /readyz or /metrics\n") })
        .with_state(telemetry)
        // Also around the fallback: without the token, a caller cannot even see which paths exist.
        .layer(middleware::from_fn_with_state(expected, authorize))
}

async fn authorize(State(expected): State<Expected>, request: Request, next: Next) -> Response {
    if let Some(expected) = expected {
        let shown = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        // Compares in a time that does not depend on the first difference.
        if !bool::from(shown.ct_eq(expected.as_bytes())) {
            let asked = [(header::WWW_AUTHENTICATE, "Bearer")];
            return (
                StatusCode::UNAUTHORIZED,
                asked,
                "the header Authorization: Bearer <RELAY_ADMIN_TOKEN> is required\n",
            )
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
