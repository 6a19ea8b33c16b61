//! A TCP proxy between one relay and one server, with the faults of a network.
//!
//! - `wire`: where a request ends and which ones are told apart, for Postgres and for Kafka
//! - `refusal`: errors that the broker did not say
//! - `trap`: stops one request or its answer at the very place a trial is about
//!
//! A link is a pair of connections, one to the relay and one to the server. The weather applies to all links of a proxy: clear, slow or
//! still. In still weather nothing arrives, not even the end of a connection. Data sent meanwhile arrives when the weather clears, as TCP
//! does it. A cut resets all links.

#[path = "proxy/refusal.rs"]
mod refusal;
#[path = "proxy/trap.rs"]
mod trap;
#[path = "proxy/wire.rs"]
mod wire;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use lab::{SOON, eventually};
pub(crate) use trap::{Catch, Spot};
use trap::{Sprung, Trap};
pub(crate) use wire::Protocol;
use wire::Unit;

/// The state of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    Clear,
    /// Delays everything by this time.
    Slow(Duration),
    /// Delivers nothing in these directions.
    Still(Way),
}

/// Directions, seen from the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Requests,
    Answers,
    Both,
}

impl Way {
    fn covers(self, way: Way) -> bool {
        self == Way::Both || self == way
    }
}

/// A running proxy; ends with the runtime that started it.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    protocol: Protocol,
    upstream: u16,
    own_port: u16,
    weather: watch::Sender<Weather>,
    /// The number of cuts. A link ends when the number changes.
    cuts: watch::Sender<u64>,
    /// The number of releases. A trap lets its catch go on when the number changes.
    releases: watch::Sender<u64>,
    trap: Mutex<Option<Trap>>,
    /// The requests that are delivered late.
    delayed: Mutex<Vec<Vec<u8>>>,
    sprung: AtomicUsize,
    /// What each answer to a Produce request says instead of what the broker said.
    refusal: Mutex<Option<i16>>,
    links: AtomicUsize,
}

impl Proxy {
    /// Listens on a new port, in front of the port `upstream` of 127.0.0.1.
    pub(crate) async fn start(protocol: Protocol, upstream: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            protocol,
            upstream,
            own_port: port,
            weather: watch::Sender::new(Weather::Clear),
            cuts: watch::Sender::new(0),
            releases: watch::Sender::new(0),
            trap: Mutex::new(None),
            delayed: Mutex::default(),
            sprung: AtomicUsize::new(0),
            refusal: Mutex::new(None),
            links: AtomicUsize::new(0),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { port, shared })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn weather(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Resets every link; returns the number of links.
    pub(crate) fn cut(&self) -> usize {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
        self.shared.links.load(Ordering::Relaxed)
    }

    /// Catches the next request at that spot; all other requests pass.
    pub(crate) fn set_trap(&self, spot: Spot, catch: Catch) {
        *self.shared.trap.lock().expect("the trap") = Some(Trap { spot, catch });
    }

    /// Returns the number of requests that were caught.
    pub(crate) fn sprung(&self) -> usize {
        self.shared.sprung.load(Ordering::Relaxed)
    }

    /// Waits until the proxy has caught this many requests in total.
    pub(crate) async fn until_sprung(&self, times: usize) {
        eventually(&format!("{times} requests have been caught"), SOON, || async {
            let sprung = self.shared.sprung.load(Ordering::Relaxed);
            if sprung >= times { Ok(()) } else { Err(format!("{sprung}")) }
        })
        .await;
    }

    /// Releases the request or answer that a trap holds.
    pub(crate) fn release(&self) {
        *self.shared.trap.lock().expect("the trap") = None;
        self.shared.releases.send_modify(|releases| *releases += 1);
    }

    /// Sends the delayed requests to the server, and waits for its answers.
    pub(crate) async fn deliver_delayed(&self) -> anyhow::Result<()> {
        let delayed = std::mem::take(&mut *self.shared.delayed.lock().expect("the requests"));
        for request in delayed {
            let mut server = TcpStream::connect(("127.0.0.1", self.shared.upstream)).await?;
            server.write_all(&request).await?;
            let mut length = [0; 4];
            server.read_exact(&mut length).await?;
        }
        Ok(())
    }

    /// From now on Kafka refuses all records with that error.
    pub(crate) fn refuse_records(&self, error: Option<i16>) {
        *self.shared.refusal.lock().expect("the refusal") = error;
    }

    /// As before any fault. What was still goes on, or with `cut` is gone.
    pub(crate) fn heal(&self, cut: bool) {
        if cut {
            self.cut();
        }
        self.release();
        self.refuse_records(None);
        self.weather(Weather::Clear);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut links = JoinSet::new();
    while let Ok((relay, _)) = listener.accept().await {
        links.spawn(link(relay, Arc::clone(&shared)));
        while links.try_join_next().is_some() {}
    }
}

async fn link(relay: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    cuts.mark_unchanged();
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.upstream)).await else {
        // Behaves as a server that is down: the relay sees its connection refused or reset.
        return reset(relay);
    };
    shared.links.fetch_add(1, Ordering::Relaxed);
    for stream in [&relay, &server] {
        // Fails only on a socket that is gone.
        let _ = stream.set_nodelay(true);
    }
    let (from_relay, to_relay) = relay.into_split();
    let (from_server, to_server) = server.into_split();
    let (sprung, produced) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(HashMap::new())));
    let requests = Requests {
        shared: &shared,
        sprung: Arc::clone(&sprung),
        produced: Arc::clone(&produced),
        from: from_relay,
        to: to_server,
    };
    let answers = Answers { shared: &shared, sprung, produced, from: from_server, to: to_relay };
    let (mut requests, mut answers) = (requests, answers);
    let was_cut = tokio::select! {
        _ = cuts.changed() => true,
        ended = requests.carry() => ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionAborted),
        ended = answers.carry() => ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionAborted),
    };
    shared.links.fetch_sub(1, Ordering::Relaxed);
    if was_cut {
        for (from, to) in [(requests.from, answers.to), (answers.from, requests.to)] {
            if let Ok(stream) = from.reunite(to) {
                reset(stream);
            }
        }
    }
}

/// Closes with RST instead of FIN.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Returns the error of a wait that ends with the link. A held request must not keep the server from seeing that the relay is gone.
fn ended() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// Returns the error that ends the link with a reset.
fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// The Produce requests without an answer, by Kafka's number for the request: their versions.
type Produced = Arc<Mutex<HashMap<[u8; 4], i16>>>;

/// From the relay to the server.
struct Requests<'a> {
    shared: &'a Shared,
    sprung: Arc<Mutex<Option<Sprung>>>,
    produced: Produced,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
}

impl Requests<'_> {
    async fn carry(&mut self) -> io::Result<()> {
        let mut reader = wire::Reader::new(self.shared.protocol);
        loop {
            let unit = reader.next(&mut self.from).await?;
            self.shared.pass(Way::Requests).await;
            if let Some(catch) = self.shared.spring(&unit) {
                match catch {
                    Catch::HoldRequest => self.hold(&mut reader).await?,
                    Catch::DelayRequest => {
                        self.shared.delayed.lock().expect("the requests").push(unit.bytes().to_vec());
                        self.shared.sprung.fetch_add(1, Ordering::Relaxed);
                        return Err(cut());
                    }
                    Catch::HoldAnswer | Catch::LoseAnswer => {
                        *self.sprung.lock().expect("the trap") = Some(Sprung { catch, answer_to: unit.correlation() });
                    }
                }
            }
            if let (Some(version), Some(number)) = (unit.produce_version(), unit.correlation()) {
                self.produced.lock().expect("the requests").insert(number, version);
            }
            self.to.write_all(unit.bytes()).await?;
        }
    }

    /// Holds the request and reads on, to notice when the relay closes the connection.
    async fn hold(&mut self, reader: &mut wire::Reader) -> io::Result<()> {
        let mut releases = self.shared.releases.subscribe();
        self.shared.sprung.fetch_add(1, Ordering::Relaxed);
        loop {
            tokio::select! {
                _ = releases.changed() => return Ok(()),
                read = reader.read_more(&mut self.from) => read?,
            }
        }
    }
}

/// The direction from the server to the relay.
struct Answers<'a> {
    shared: &'a Shared,
    sprung: Arc<Mutex<Option<Sprung>>>,
    produced: Produced,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
}

impl Answers<'_> {
    async fn carry(&mut self) -> io::Result<()> {
        let mut reader = wire::Reader::new(self.shared.protocol);
        loop {
            let mut unit = reader.next(&mut self.from).await?;
            self.shared.pass(Way::Answers).await;
            let caught = self.sprung.lock().expect("the trap").take_if(|sprung| sprung.is_answered_by(&unit));
            match caught.map(|sprung| sprung.catch) {
                Some(Catch::LoseAnswer) => {
                    self.shared.sprung.fetch_add(1, Ordering::Relaxed);
                    return Err(cut());
                }
                Some(_) => {
                    let mut releases = self.shared.releases.subscribe();
                    self.shared.sprung.fetch_add(1, Ordering::Relaxed);
                    // The other direction ends this wait when the relay is gone.
                    releases.changed().await.map_err(|_| ended())?;
                }
                None => {}
            }
            if let Some(version) = self.produced.lock().expect("the requests").remove(&unit.answered())
                && let Some(error) = *self.shared.refusal.lock().expect("the refusal")
            {
                refusal::refuse(unit.bytes_mut(), version, error);
            }
            unit.advertise(self.shared.upstream, self.shared.own_port);
            self.to.write_all(unit.bytes()).await?;
        }
    }
}

impl Shared {
    /// Waits for as long as the weather demands.
    async fn pass(&self, way: Way) {
        let mut weather = self.weather.subscribe();
        let now = *weather.borrow_and_update();
        match now {
            Weather::Clear => {}
            Weather::Slow(delay) => tokio::time::sleep(delay).await,
            Weather::Still(still) if still.covers(way) => {
                // The sender lives as long as the links do.
                let _ = weather.wait_for(|now| !matches!(now, Weather::Still(still) if still.covers(way))).await;
            }
            Weather::Still(_) => {}
        }
    }

    /// Returns the trap's catch if the trap waits for this request. A trap catches once.
    fn spring(&self, unit: &Unit) -> Option<Catch> {
        let mut trap = self.trap.lock().expect("the trap");
        let caught = trap.take_if(|trap| unit.is_at(trap.spot));
        caught.map(|trap| trap.catch)
    }
}

/// Returns the port of a `host:port`.
pub(crate) fn port_of(address: &str) -> anyhow::Result<u16> {
    let (_, port) = address.rsplit_once(':').context("no port")?;
    Ok(port.parse()?)
}
