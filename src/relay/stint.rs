//! What a worker knows of the lanes it works on. Made anew when they change: nothing known of other lanes holds for these.

use std::collections::HashSet;
use std::time::Instant;

use crate::event::OutboxId;
use crate::lane::LaneRange;
use crate::lane::frontier::Frontier;
use crate::relay::pauses::Gate;
use crate::store::holds::Hold;

/// One worker on one range of lanes.
#[derive(Debug)]
pub(crate) struct Stint {
    /// The lanes wanted.
    pub(crate) range: LaneRange,
    pub(crate) frontier: Frontier,
    /// The sum of the lanes' generations by which the frontier counts: another one means that rows may have been released.
    pub(crate) counted_by: Option<i64>,
    /// The highest id ever claimed here.
    pub(crate) reached: i64,
    /// What is held in these lanes, as of `generation`; not what is paused.
    pub(crate) holds: HashSet<Hold>,
    /// What is paused, as of `generation`.
    pub(crate) gate: Gate,
    /// The sum of the lanes' generations when the holds were learnt; `None`: not yet.
    pub(crate) generation: Option<i64>,
    /// When scheduled rows were last looked for.
    pub(crate) due_checked: Option<Instant>,
    /// When the topics that are held were last asked for.
    pub(crate) topics_checked: Instant,
    /// The topic whose rows are being released, a batch at a time, and up to which id they are.
    pub(crate) releasing: Option<(String, OutboxId)>,
    /// Entities that wait behind a locked row: claims go around them for a moment, or they would fill every batch.
    pub(crate) around: Vec<String>,
    /// The first of those rows: the frontier stays before it.
    pub(crate) around_from: Option<OutboxId>,
    /// When `around` was found.
    pub(crate) around_since: Instant,
    /// The first row that another session has locked, and since when.
    pub(crate) locked: Option<(OutboxId, Instant)>,
}

impl Stint {
    pub(crate) fn new(range: LaneRange, now: Instant) -> Self {
        Self {
            range,
            frontier: Frontier::new(now),
            counted_by: None,
            reached: 0,
            holds: HashSet::new(),
            gate: Gate::default(),
            generation: None,
            due_checked: None,
            topics_checked: now,
            releasing: None,
            around: Vec::new(),
            around_from: None,
            around_since: now,
            locked: None,
        }
    }

    /// What was learnt or counted on in a transaction that was not committed may be undone.
    pub(crate) fn forget(&mut self) {
        self.unlearn();
        self.frontier.reset();
    }

    /// Others have worked on these lanes meanwhile. What is known of their index entries holds all the same.
    pub(crate) fn unlearn(&mut self) {
        self.generation = None;
        self.releasing = None;
        self.stop_going_around();
    }

    /// The lanes' generations have grown by what was done here.
    pub(crate) fn grow(&mut self, by: i64) {
        for generation in [&mut self.generation, &mut self.counted_by] {
            *generation = generation.map(|generation| generation + by);
        }
    }

    /// Looks at everything again when rows may have been released since the frontier began to count.
    pub(crate) fn count_by(&mut self, generation: i64) {
        if self.counted_by.replace(generation) != Some(generation) {
            self.frontier.reset();
        }
    }

    /// Looks at the locked row and its entity again.
    pub(crate) fn stop_going_around(&mut self) {
        self.around.clear();
        self.around_from = None;
    }

    /// The topics that are held.
    pub(crate) fn held_topics(&self) -> impl Iterator<Item = &str> {
        self.holds.iter().filter_map(|hold| match hold {
            Hold::Topic(topic) => Some(topic.as_str()),
            Hold::Entity(..) | Hold::PausedTopic(_) | Hold::PausedEntity(..) => None,
        })
    }
}
