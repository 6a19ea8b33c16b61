//! Serves the admin address: `/livez`, `/readyz` and `/metrics`. All answers come from memory, and no request changes anything.
//!
//! - `connections`: accepts connections, within limits
//! - `attempts`: limits wrong tokens

mod attempts;
mod connections;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::Telemetry;
use super::health::Answer;
use crate::config::AdminSettings;
use attempts::Attempts;
use connections::Caller;
use event_outbox::code::Code;

/// The content type of version 0.0.4, which every scraper reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every request has to show.
struct Guard {
    /// The token, if one is needed.
    settings: AdminSettings,
    attempts: Attempts,
}

/// A server that is bound to its address.
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

impl Server {
    /// # Errors
    /// Any error of binding, for example because the address is in use or does not belong to this host.
    pub(crate) async fn bind(
        address: SocketAddr,
        settings: &AdminSettings,
        telemetry: Arc<Telemetry>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener, router: router(settings, telemetry) })
    }

    /// Returns the address that the server listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `end` is dropped, then finishes open requests.
    pub(crate) async fn serve(self, end: oneshot::Receiver<()>) {
        connections::serve(self.listener, self.router, end).await;
    }
}

fn router(settings: &AdminSettings, telemetry: Arc<Telemetry>) -> Router {
    let guard = Arc::new(Guard { settings: settings.clone(), attempts: Attempts::default() });
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
        .layer(middleware::from_fn_with_state(guard, authorize))
}

async fn authorize(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
        || headers.contains_key(header::TRANSFER_ENCODING);
    if has_body {
        let closing = [(header::CONNECTION, "close")];
        return (StatusCode::PAYLOAD_TOO_LARGE, closing, "a request has no body\n").into_response();
    }
    match guard.settings.token() {
        Some(token) => match guard.refusal(token.expose_secret(), &request) {
            Some(refusal) => refusal,
            None => next.run(request).await,
        },
        None => next.run(request).await,
    }
}

impl Guard {
    /// Returns the answer to a request that does not show the token.
    fn refusal(&self, token: &str, request: &Request) -> Option<Response> {
        let (caller, now) = (request.extensions().get::<Caller>().map(|caller| caller.0), Instant::now());
        if caller.is_some_and(|caller| self.attempts.is_shut_out(caller, now)) {
            let later = [(header::RETRY_AFTER, "60")];
            return Some((StatusCode::TOO_MANY_REQUESTS, later, "too many wrong tokens\n").into_response());
        }
        let shown = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        // Compares in a time that does not depend on the first difference.
        if bool::from(shown.ct_eq(format!("Bearer {token}").as_bytes())) {
            return None;
        }
        // A request without any token is a probe that was set up without it, and guesses nothing.
        if let Some(caller) = caller.filter(|_| !shown.is_empty())
            && self.attempts.count(caller, now)
        {
            tracing::warn!(
                code = %Code::AdminTokenWrong,
                %caller,
                consequence = "its requests are refused for a minute",
                next_step = "give the caller RELAY_ADMIN_TOKEN, or find out who guesses it",
                "a caller sends wrong admin tokens"
            );
        }
        let asked = [(header::WWW_AUTHENTICATE, "Bearer")];
        let text = "the header Authorization: Bearer <RELAY_ADMIN_TOKEN> is required\n";
        Some((StatusCode::UNAUTHORIZED, asked, text).into_response())
    }
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
