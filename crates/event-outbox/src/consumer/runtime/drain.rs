//! Applies the events that are parked in the database: those behind held keys, once the events before them have ended, and those that are
//! to be tried again, once they are due.
//!
//! Each member of a group does this for all keys. A member leaves an event alone that another one is at, and an event is only applied while
//! it is the head of its key: so a key keeps its order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::consumer::runtime::applier::Applier;
use crate::consumer::runtime::delivery::{Delivery, Parked};
use crate::consumer::runtime::held::Heads;
use crate::consumer::runtime::lane::Lanes;
use crate::consumer::runtime::prepared::{Job, Origin, Place, Ticket};

/// The pause between two looks at the heads. A member looks at once when it has applied a head itself, and when a head is due; the pause is
/// for heads that another member has applied, or an operator has discarded.
const PAUSE: Duration = Duration::from_secs(2);

/// The shortest pause until a head is due.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// The share of its time that an idle member may look. With very many held keys it looks less often.
const IDLE_SHARE: u32 = 20;

/// The share of its time that a member may look while it applies heads.
const BUSY_SHARE: u32 = 2;

/// The most heads that wait in memory for a worker. The others stay in the database.
const MOST: usize = 1_000;

pub(super) struct Drain {
    pub(super) applier: Applier,
    pub(super) lanes: Arc<Lanes>,
}

/// The heads that this member has taken.
#[derive(Default)]
struct Taken {
    at_work: HashSet<Place>,
    /// When each head was taken, and its state then. A head that has not changed is held up, perhaps by a member that is at it.
    taken: HashMap<Place, (Option<Parked>, Instant)>,
}

impl Drain {
    pub(super) async fn run(mut self) {
        let head_gone = Arc::clone(&self.applier.shared.attempt_context.head_gone);
        let (ended, mut has_ended) = mpsc::unbounded_channel();
        let mut taken = Taken::default();
        loop {
            let looked_at = Instant::now();
            let heads = self.look(MOST.saturating_sub(taken.at_work.len())).await;
            let took = looked_at.elapsed();
            let pause = heads.due_in.unwrap_or(PAUSE).clamp(SHORTEST_PAUSE, PAUSE);
            for delivery in taken.choose(heads.ready) {
                if !self.applier.shared.control.is_paused(&delivery.topic) {
                    let ticket = taken.take(&delivery, &ended);
                    self.lanes.send(Job { delivery, origin: Origin::Drain(ticket) });
                }
            }
            let share = tokio::select! {
                biased;
                () = self.applier.stopped() => return,
                place = has_ended.recv() => {
                    taken.at_work.retain(|taken| place.as_ref() != Some(taken));
                    BUSY_SHARE
                }
                () = head_gone.notified() => BUSY_SHARE,
                () = tokio::time::sleep(pause.max(took * IDLE_SHARE)) => 0,
            };
            let pause = (looked_at + took * share).saturating_duration_since(Instant::now());
            if self.applier.interruptible(tokio::time::sleep(pause)).await.is_err() {
                return;
            }
            while let Ok(place) = has_ended.try_recv() {
                taken.at_work.remove(&place);
            }
        }
    }

    /// Looks at the heads of all held keys, and reads at most `most` records. While the database is away there are none; the workers log that.
    async fn look(&self, most: usize) -> Heads {
        let shared = &self.applier.shared;
        let paused = shared.control.paused_topics();
        let most = if paused.is_some() { most } else { 0 };
        match shared.attempt_context.heads(most, &paused.unwrap_or_default()).await {
            Ok((heads, parked)) => {
                let oldest = heads.oldest_seconds as u64;
                shared.stats.set_keys(heads.held, heads.retrying, parked.unsigned_abs(), oldest);
                heads
            }
            Err(error) => {
                tracing::debug!(%error, "the held keys cannot be read for now");
                Heads::default()
            }
        }
    }
}

impl Taken {
    /// Returns the heads that are to be taken.
    fn choose(&mut self, ready: Vec<Delivery>) -> Vec<Delivery> {
        // A head that was taken longer ago may be taken again. It may also be gone.
        self.taken.retain(|_, (_, at)| at.elapsed() < PAUSE);
        let is_new = |delivery: &Delivery| match self.taken.get(&Place::of(delivery)) {
            Some((parked, _)) => *parked != delivery.parked,
            None => true,
        };
        ready.into_iter().filter(|head| !self.at_work.contains(&Place::of(head)) && is_new(head)).collect()
    }

    fn take(&mut self, delivery: &Delivery, ended: &mpsc::UnboundedSender<Place>) -> Ticket {
        let place = Place::of(delivery);
        self.at_work.insert(place.clone());
        self.taken.insert(place.clone(), (delivery.parked.clone(), Instant::now()));
        Ticket { place, ended: ended.clone() }
    }
}
