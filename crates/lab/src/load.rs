//! Runs an application under load: many connections write events of many entities and roll some of them back.
//!
//! An entity is either written by one connection only, with plain inserts, or shared by all and written with `outbox_emit`. In both cases
//! the order of its ids is the order of its commits. One connection keeps its transactions open while the others commit hundreds.
//!
//! An endless load goes on until it is told to end, and its pace may change. A rough one also writes the odd events of module `rough`.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_outbox::ledger::Rules;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::book::Book;
use super::eventually::eventually;
use super::kafka::RealKafka;
use super::outbox::{Outbox, emit, insert};
use super::rough;

/// The number of connections that write.
pub const WRITERS: i64 = 16;

/// The most events of a transaction.
const LARGEST: i64 = 4;

/// The number of commits of other connections that a long transaction outlasts.
const OUTLASTS: i64 = 300;

/// The longest duration of a long transaction, because a session that waits for a lock on the table holds up the others behind it.
const OUTLASTS_FOR: Duration = Duration::from_secs(2);

/// The interval in which a resting writer checks whether the pace has changed.
const LOOKS_UP: Duration = Duration::from_millis(20);

/// The longest wait for a commit, on any machine.
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);

/// The events and entities of a run. The seed decides the actions of each connection; the servers decide how the connections interleave.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The most events to write.
    pub events: i64,
    /// The number of entities.
    pub entities: i64,
    /// The seed of the random choices.
    pub seed: u64,
    /// True for a load that also writes odd events.
    pub rough: bool,
}

impl Plan {
    /// Creates a plan with a new seed, and prints the seed so that a failure can be investigated.
    pub fn new(events: i64, entities: i64) -> Self {
        let seed = rand::rng().random();
        let count = if events == i64::MAX { "endless".to_owned() } else { events.to_string() };
        eprintln!("load of {count} events of {entities} entities, seed {seed}");
        Self { events, entities, seed, rough: false }
    }

    /// Creates a plan for a load without odd events that goes on until it is told to end.
    pub fn endless(entities: i64) -> Self {
        Self::new(i64::MAX, entities)
    }

    fn is_endless(&self) -> bool {
        self.events == i64::MAX
    }

    /// Creates a plan for a rough load.
    pub fn rough(entities: i64, seed: u64) -> Self {
        Self { events: i64::MAX, entities, seed, rough: true }
    }
}

/// The pace of an endless load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// One connection, one transaction a minute.
    OneAMinute,
    /// One connection, one transaction a second, now and then open for 2 s, so that the newest transaction of the server is an open one.
    OneASecond,
    /// Two connections, about ten transactions a second.
    Slow,
    /// All connections, some hundred transactions a second.
    Moderate,
    /// All connections, without a pause.
    Saturated,
}

impl Pace {
    /// All paces.
    pub const ALL: [Self; 5] = [Self::OneAMinute, Self::OneASecond, Self::Slow, Self::Moderate, Self::Saturated];

    /// Returns true if nothing may commit for seconds. A test that waits for an event then has to write one.
    pub fn is_quiet(self) -> bool {
        matches!(self, Self::OneAMinute | Self::OneASecond | Self::Slow)
    }

    /// Returns the number of connections that write. The first one keeps its transactions open.
    fn writers(self) -> i64 {
        match self {
            Self::OneAMinute | Self::OneASecond => 1,
            Self::Slow => 2,
            Self::Moderate | Self::Saturated => WRITERS,
        }
    }

    /// Returns the shortest and the longest time between two transactions of a connection.
    fn pause(self) -> std::ops::Range<Duration> {
        let (shortest, longest) = match self {
            Self::OneAMinute => (55_000, 65_000),
            Self::OneASecond => (500, 1_500),
            Self::Slow => (100, 300),
            Self::Moderate => (10, 60),
            Self::Saturated => (0, 1),
        };
        Duration::from_millis(shortest)..Duration::from_millis(longest)
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    writers: JoinSet<anyhow::Result<(Vec<Uuid>, Vec<Uuid>)>>,
    committed_by_all: Arc<AtomicI64>,
    ends: Arc<AtomicBool>,
    pace: Arc<Mutex<Pace>>,
    is_endless: bool,
}

impl Load {
    /// Starts the load.
    pub fn start(outbox: &Outbox, plan: Plan) -> Self {
        let (committed_by_all, ends) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let (mut writers, pace) = (JoinSet::new(), Arc::new(Mutex::new(Pace::Moderate)));
        for index in 0..WRITERS {
            let (outbox, committed_by_all, ends) = (outbox.clone(), Arc::clone(&committed_by_all), Arc::clone(&ends));
            let random = StdRng::seed_from_u64(plan.seed.wrapping_add(index as u64));
            let mut writer = Writer {
                index,
                plan,
                outbox,
                committed_by_all,
                ends,
                pace: Arc::clone(&pace),
                random,
                committed: Vec::new(),
                rolled_back: Vec::new(),
            };
            writers.spawn(async move { writer.run().await.map(|()| (writer.committed, writer.rolled_back)) });
        }
        Self { writers, committed_by_all, ends, pace, is_endless: plan.is_endless() }
    }

    /// Returns the pace of an endless load.
    pub fn pace(&self) -> Pace {
        *self.pace.lock().expect("the pace")
    }

    /// Changes the pace of an endless load.
    pub fn set_pace(&self, pace: Pace) {
        *self.pace.lock().expect("the pace") = pace;
    }

    /// Returns the number of events committed so far.
    pub fn committed(&self) -> i64 {
        self.committed_by_all.load(Ordering::Relaxed)
    }

    /// Waits until `events` events have committed, while the load is running.
    pub async fn until_committed(&self, events: i64) {
        eventually(&format!("{events} events have committed"), PROGRESS_WITHIN, || async {
            let committed = self.committed();
            if committed >= events { Ok(()) } else { Err(committed) }
        })
        .await;
    }

    /// Waits until the load has ended and the relays have settled everything, then compares written and published events.
    pub async fn reconcile(self, outbox: &Outbox, kafka: &RealKafka, rules: Rules) -> anyhow::Result<()> {
        let book = self.end(rules).await?;
        outbox.until_settled().await;
        outbox.all_published().await?;
        book.reconcile(outbox, kafka).await
    }

    /// Does the same as [`Load::reconcile`] for a load with refused events: DEAD events are not expected on the topic.
    pub async fn reconcile_all_but_dead(self, outbox: &Outbox, kafka: &RealKafka, rules: Rules) -> anyhow::Result<()> {
        let book = self.end(rules).await?;
        outbox.until_settled().await;
        book.reconcile(outbox, kafka).await
    }

    /// Lets every connection end its transaction and stop. Returns what the connections know.
    pub async fn end(mut self, rules: Rules) -> anyhow::Result<Book> {
        // Another load ends when its events are written.
        self.ends.store(self.is_endless, Ordering::Relaxed);
        let mut book = Book::new(rules);
        while let Some(writer) = self.writers.join_next().await {
            let (committed, rolled_back) = writer??;
            book.committed(committed);
            book.rolled_back(rolled_back);
        }
        Ok(book)
    }
}

struct Writer {
    index: i64,
    plan: Plan,
    outbox: Outbox,
    committed_by_all: Arc<AtomicI64>,
    ends: Arc<AtomicBool>,
    pace: Arc<Mutex<Pace>>,
    random: StdRng,
    committed: Vec<Uuid>,
    rolled_back: Vec<Uuid>,
}

impl Writer {
    async fn run(&mut self) -> anyhow::Result<()> {
        let share = (self.plan.events / WRITERS) as usize;
        let mut connection = None;
        while self.committed.len() < share && !self.ends.load(Ordering::Relaxed) {
            if self.plan.is_endless() && self.index >= self.pace().writers() {
                tokio::time::sleep(LOOKS_UP).await;
                continue;
            }
            let open = match connection.take() {
                Some(open) => open,
                // Postgres may be down; try again.
                None => match self.outbox.connect().await {
                    Ok(open) => open,
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            connection = match self.transaction(open).await {
                Ok(open) => Some(open),
                // The transaction ends with its connection. Whether it committed is read from the table later.
                Err(error) if is_outage(&error) => None,
                Err(error) => return Err(error),
            };
            if self.plan.is_endless() {
                self.rest().await;
            }
        }
        Ok(())
    }

    fn pace(&self) -> Pace {
        *self.pace.lock().expect("the pace")
    }

    /// Pauses as the pace says. A change of the pace takes effect at once.
    async fn rest(&mut self) {
        let (began, share) = (Instant::now(), self.random.random::<f64>());
        while !self.ends.load(Ordering::Relaxed) {
            let pause = self.pace().pause();
            let pause = pause.start + (pause.end - pause.start).mul_f64(share);
            let left = pause.saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOKS_UP)).await;
        }
    }

    async fn transaction(&mut self, mut connection: PgConnection) -> anyhow::Result<PgConnection> {
        let (rolls_back, shared) = (self.random.random_bool(0.15), self.random.random_bool(0.3));
        let mut entities: Vec<String> = Vec::new();
        for _ in 0..self.random.random_range(1..=LARGEST) {
            entities.push(self.entity(shared));
        }
        // Two transactions that lock the same entities must lock them in the same order.
        entities.sort();
        let mut tx = connection.begin().await?;
        let mut events = Vec::new();
        for entity in &entities {
            let n = self.random.random_range(0..1_000_000);
            let odd = self.plan.rough && !shared && self.random.random_bool(0.1);
            events.push(match (shared, odd) {
                (true, _) => emit(&mut tx, entity, n).await?,
                (false, true) => rough::insert(&mut tx, entity, &mut self.random).await?,
                (false, false) => insert(&mut tx, entity, n).await?,
            });
        }
        if self.index == 0 && !shared {
            self.outlast_others().await;
        }
        if rolls_back {
            tx.rollback().await?;
            self.rolled_back.append(&mut events);
        } else {
            tx.commit().await?;
            self.committed_by_all.fetch_add(events.len() as i64, Ordering::Relaxed);
            self.committed.append(&mut events);
        }
        Ok(connection)
    }

    /// Chooses an entity. `s...` and `hot` are shared; each other entity belongs to one writer.
    fn entity(&mut self, shared: bool) -> String {
        // A quiet load uses one entity per kind: with few events, only consecutive events of one entity show whether they are in order.
        let entities = if self.pace().is_quiet() { 1 } else { self.plan.entities / WRITERS };
        let number = self.random.random_range(0..entities);
        if shared && self.plan.rough && self.random.random_bool(0.5) {
            return "hot".to_owned();
        }
        if shared { format!("s{}", number / 2) } else { format!("e{number}-{}", self.index) }
    }

    /// Waits until the others are far ahead, are about to end, or are held up.
    async fn outlast_others(&self) {
        let began = Instant::now();
        let until = (self.committed_by_all.load(Ordering::Relaxed) + OUTLASTS).min(self.plan.events / 10 * 8);
        while self.committed_by_all.load(Ordering::Relaxed) < until
            && !self.ends.load(Ordering::Relaxed)
            && (began.elapsed() < OUTLASTS_FOR || !self.plan.is_endless())
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_outage(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_)) => true,
        // 57P: the server is shutting down, or the session was terminated. 53, 58: the server lacks a resource, such as disk space.
        Some(error) => {
            let code = error.as_database_error().and_then(|error| error.code());
            code.is_some_and(|code| ["53", "57P", "58"].iter().any(|class| code.starts_with(class)))
        }
        None => false,
    }
}
