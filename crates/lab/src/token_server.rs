//! Runs an OpenID provider that gives out tokens for Kafka's mechanism OAUTHBEARER: the package `oauth2-mock-server` in Node.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::demo::{ChildServer, ServerCommand, TemporaryDirectory, free_port};

use super::eventually::{SOON, eventually};
use super::languages;

/// A running token server, or a stopped one whose port and key are kept. Fields are in the order in which they have to be dropped.
pub struct TokenServer {
    server: ChildServer,
    directory: TemporaryDirectory,
    command: ServerCommand,
    port: u16,
    scheme: &'static str,
    secret: String,
    seconds: u32,
}

impl TokenServer {
    /// Starts a server whose tokens are good for `seconds`, and whose client `relay` has this secret.
    pub async fn start(secret: &str, seconds: u32) -> anyhow::Result<Self> {
        Self::start_with(secret, seconds, &[], None).await
    }

    /// Starts the same provider with HTTPS: its tokens are signed with the same key. `files` are the key and the certificate of TLS.
    pub async fn with_https(&self, files: [&str; 2]) -> anyhow::Result<Self> {
        Self::start_with(&self.secret, self.seconds, &files, Some(self.directory.path())).await
    }

    async fn start_with(secret: &str, seconds: u32, files: &[&str], beside: Option<&Path>) -> anyhow::Result<Self> {
        let packages = languages::token_server()?;
        let mut directory = TemporaryDirectory::create(None)?;
        let path = directory.path().to_owned();
        for file in ["package.json", "server.mjs"] {
            fs::copy(Path::new(languages::TOKEN_SERVER).join(file), path.join(file)).context("the token server")?;
        }
        if let Some(beside) = beside {
            fs::copy(beside.join("key.json"), path.join("key.json")).context("the key of tokens")?;
        }
        std::os::unix::fs::symlink(packages.join("node_modules"), path.join("node_modules"))?;
        let port = free_port()?;
        let command = ServerCommand::new("node", &path, &path.join("tokens.log"))
            .args(["server.mjs", &port.to_string(), secret, &seconds.to_string()])
            .args(files);
        let server = ChildServer::start(&command)?;
        directory.outlives(&server)?;
        let scheme = if files.is_empty() { "http" } else { "https" };
        let started = Self { server, directory, command, port, scheme, secret: secret.to_owned(), seconds };
        started.until_ready(1).await;
        Ok(started)
    }

    /// Returns the address for requests of tokens.
    pub fn token_url(&self) -> String {
        format!("{}://127.0.0.1:{}/token", self.scheme, self.port)
    }

    /// Returns the address of the keys that brokers check tokens with.
    pub fn keys_url(&self) -> String {
        format!("{}://127.0.0.1:{}/jwks", self.scheme, self.port)
    }

    /// Returns the times of all requests that were answered with `answer`, `token` or `refused`, in milliseconds since 1970.
    pub fn answers(&self, answer: &str) -> Vec<u64> {
        let log = fs::read_to_string(self.directory.path().join("tokens.log")).unwrap_or_default();
        let of_line = |line: &str| line.strip_prefix(answer)?.trim().parse().ok();
        log.lines().filter_map(of_line).collect()
    }

    /// Stops the server.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Starts a stopped server on its port, with its key.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let starts = self.answers("started").len();
        self.server = ChildServer::start(&self.command)?;
        self.directory.outlives(&self.server)?;
        self.until_ready(starts + 1).await;
        Ok(())
    }

    async fn until_ready(&self, starts: usize) {
        eventually("the token server starts", SOON, || async {
            let log = fs::read_to_string(self.directory.path().join("tokens.log")).unwrap_or_default();
            if self.answers("started").len() >= starts { Ok(()) } else { Err(log) }
        })
        .await;
    }
}
