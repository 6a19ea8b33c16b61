//! Provides one address in front of a changing server, like the address of a managed Postgres that a failover moves.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A listening port of 127.0.0.1 that forwards to another port. It ends with the runtime on which it was started.
#[derive(Debug)]
pub struct Front {
    port: u16,
    upstream: watch::Sender<u16>,
}

impl Front {
    /// Listens, and forwards connections to the port `upstream`.
    pub async fn start(upstream: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let upstream = watch::Sender::new(upstream);
        let current = upstream.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(link(client, current.clone()));
            }
        });
        Ok(Self { port, upstream })
    }

    /// Returns the port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes every connection. New ones are forwarded to the port `upstream`.
    pub fn move_to(&self, upstream: u16) {
        self.upstream.send_replace(upstream);
    }
}

async fn link(mut client: TcpStream, mut current: watch::Receiver<u16>) {
    let upstream = *current.borrow_and_update();
    // Without a server on the port, the client sees its connection end.
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", upstream)).await else { return };
    tokio::select! {
        _ = current.changed() => {}
        _ = copy_bidirectional(&mut client, &mut server) => {}
    }
}
