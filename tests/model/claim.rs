//! One claim by (c, S), as CLAIM.md has it: what it reads, what it takes, and the lanes' new state. Rules are numbered as there.
//!
//! - [`merge`]: the common progress of lanes that are claimed together (8).
//! - [`Look`]: what the claim's statement sees, by its own snapshot (8, 9, 16, 17).
//! - [`Look::take`]: which of these rows it gets, and what it writes (10, 11, 12).

use std::collections::BTreeMap;

use crate::database::{Database, Entity, Hold, Id, Progress, Row, Session, Snapshot, Status, Why};

/// A mistake built into the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// B1: the limit cuts inside late rows, and S moves on.
    CutMovesSnapshot,
    /// B2: whether a transaction of running(S) has ended is judged by an earlier look.
    RunningByEarlierLook,
    /// N4: a look at a hold is cut short, and the hold is deleted.
    CutLookDeletesHold,
    /// Skipped rows are stepped over, and nothing remembers them.
    NoHoldForSkipped,
    /// A row that changed between the snapshot and the lock is sent as it is now.
    TakesChangedVersion,
    /// Lanes that are claimed together begin at the highest c.
    MergeTakesHighestC,
    /// Of two snapshots, the one with the lower xmax is the older one; with the same xmax, the one with the longer list.
    MergeTakesOneSnapshot,
    /// Lanes that are claimed together forget their sweeps: true, but two relays that take turns may begin the same one for ever.
    MergeDropsSweep,
    /// Rule 12 to the letter: a claim that found nothing stores nothing, wherever its window ended.
    EmptyWindowStoresNothing,
    /// Rule 11 to the letter: c never moves past the sequence's last value.
    OnlySequenceBoundsC,
    /// Rule 17 to the letter: the walk of a released hold ends at c as it was, and the hold goes though rows above were left.
    ReleaseForgetsNewRows,
    /// Successors of a row that goes DEAD are sent before that is committed.
    SuccessorsOfDead,
    /// Rule 16 to the letter: a look takes all rows of the entity that its snapshot sees from the hold's first on; late ones, too, though
    /// the limit may have cut off a late one below.
    LookTakesLateRows,
    /// A sweep takes rows above c, too.
    SweepTakesNewRows,
}

/// How much a claim reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// n: rows of one arm.
    pub(crate) rows: usize,
    /// W: ids of one step.
    pub(crate) window: Id,
    pub(crate) flaw: Option<Flaw>,
}

/// What all lanes have in common: the smallest c and k, and what all their snapshots see. A lane without a sweep is one whose sweep has come
/// to its end, k = c and T = S. True for each lane, because a weaker state is. Of two snapshots neither needs to be the older one: a
/// snapshot does not list the transaction that took it, and another one taken meanwhile does.
pub(crate) fn merge(all: &[&Progress], flaw: Option<Flaw>) -> Progress {
    let Some((first, others)) = all.split_first() else { return Progress::none() };
    if others.iter().all(|progress| progress == first) {
        return (*first).clone();
    }
    let flaw = |other| flaw == Some(other);
    let snapshot = |one: &Snapshot, other: &Snapshot| match flaw(Flaw::MergeTakesOneSnapshot) {
        true => older(one.clone(), other),
        false => one.intersection(other),
    };
    let swept = |progress: &Progress| progress.sweep.clone().unwrap_or((progress.c, progress.s.clone()));
    let start = (first.c, first.s.clone(), swept(first));
    let (c, s, (k, t)) = others.iter().fold(start, |(c, s, (k, t)), next| {
        let (next_k, next_t) = swept(next);
        let c = if flaw(Flaw::MergeTakesHighestC) { c.max(next.c) } else { c.min(next.c) };
        (c, snapshot(&s, &next.s), (k.min(next_k), snapshot(&t, &next_t)))
    });
    match k < c && s != t {
        _ if flaw(Flaw::MergeDropsSweep) => Progress { c, s, sweep: None },
        true => Progress { c, s, sweep: Some((k, t)) },
        false => Progress { c, s: if k < c { s } else { t }, sweep: None },
    }
}

fn older(one: Snapshot, other: &Snapshot) -> Snapshot {
    let age = |snapshot: &Snapshot| (snapshot.xmax, std::cmp::Reverse(snapshot.running.len()));
    if age(other) < age(&one) { other.clone() } else { one }
}

/// What the statement sees: a snapshot never sees more later, so the rows are read here and locked in [`Look::take`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Look {
    pub(crate) snapshot: Snapshot,
    pub(crate) progress: Progress,
    pub(crate) lanes: Vec<usize>,
    pub(crate) holds: Vec<Hold>,
    /// The smallest n + 1 late ids, whatever their rows' status.
    late: Vec<Id>,
    candidates: BTreeMap<Id, Row>,
    /// The last of n new rows: there may be more.
    new_cut: Option<Id>,
    /// Entities whose holds were looked at, and the last id that was read of those that have more.
    looked: BTreeMap<Entity, Option<Id>>,
    /// The highest id known to exist.
    highest: Id,
}

/// What a claim leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Taken {
    pub(crate) batch: Vec<(Id, Row)>,
    pub(crate) next: Progress,
    pub(crate) holds: Vec<Hold>,
    /// False: nothing at all was found, and only S moves, in memory (12).
    pub(crate) stores: bool,
}

impl Look {
    /// `earlier` is a snapshot from before the claim's own; only a flawed claim has a use for it.
    pub(crate) fn new(
        database: &Database,
        session: Session,
        (lanes, progress, holds): (&[usize], Progress, Vec<Hold>),
        (earlier, at_holds): (&Snapshot, bool),
        limits: Limits,
        lane_of: impl Fn(Entity) -> usize,
    ) -> Self {
        let flaw = |flaw| limits.flaw == Some(flaw);
        let snapshot = database.snapshot(session);
        let rows: Vec<(Id, &Row)> = database
            .data
            .rows
            .iter()
            .filter(|(_, row)| lanes.contains(&lane_of(row.entity)))
            .map(|(id, r)| (*id, r))
            .collect();
        let ended = if flaw(Flaw::RunningByEarlierLook) { earlier } else { &snapshot };
        let Progress { c, s, sweep } = &progress;
        let is_late = |id: Id, row: &Row| match sweep {
            Some((k, t)) => *k < id && id <= *c && !s.sees(row.xid) && t.sees(row.xid),
            None => {
                let new = row.xid >= s.xmax && row.xid < snapshot.xmax;
                id <= *c && (new || s.running.contains(&row.xid) && ended.sees(row.xid))
            }
        };
        let late: Vec<Id> =
            rows.iter().filter(|(id, row)| is_late(*id, row)).map(|(id, _)| *id).take(limits.rows + 1).collect();
        let pending = || rows.iter().filter(|(_, row)| row.status == Status::Pending);
        let mut candidates: BTreeMap<Id, Row> = BTreeMap::new();
        let mut add = |found: &[(Id, &Row)]| candidates.extend(found.iter().map(|(id, row)| (*id, (*row).clone())));
        let in_time: Vec<_> =
            pending().filter(|(id, _)| late.iter().take(limits.rows).any(|l| l == id)).copied().collect();
        add(&in_time);
        let mut new_cut = None;
        if late.len() <= limits.rows && (sweep.is_none() || flaw(Flaw::SweepTakesNewRows)) {
            let window = *c..=c.saturating_add(limits.window);
            let new: Vec<_> =
                pending().filter(|(id, _)| *id > *c && window.contains(id)).take(limits.rows).copied().collect();
            new_cut = new.last().filter(|_| new.len() == limits.rows).map(|(id, _)| *id);
            add(&new);
        }
        let mut looked = BTreeMap::new();
        let due = |hold: &&Hold| hold.released || hold.why == Why::Locked && at_holds;
        for hold in holds.iter().filter(due) {
            let of_hold = |(id, row): &&(Id, &Row)| {
                let covered = progress.covers(*id, row.xid) || flaw(Flaw::LookTakesLateRows);
                row.entity == hold.entity && (hold.from..=*c).contains(id) && covered
            };
            let held: Vec<_> = pending().filter(of_hold).copied().collect();
            let cut = (held.len() > limits.rows).then(|| held[limits.rows - 1].0);
            looked.insert(hold.entity, cut);
            add(&held[..held.len().min(limits.rows)]);
        }
        let highest_row = match flaw(Flaw::OnlySequenceBoundsC) {
            true => None,
            false => database.data.rows.last_key_value().map(|(id, _)| *id),
        };
        Self {
            highest: database.last_id.max(highest_row.unwrap_or_default()),
            lanes: lanes.to_vec(),
            snapshot,
            progress,
            holds,
            late,
            candidates,
            new_cut,
            looked,
        }
    }

    /// Locks what it can, and decides. The same statement as [`Look::new`], a moment later.
    ///
    /// A row that goes `dead` blocks the rows behind it until that is committed: else a crash leaves it PENDING behind its successors.
    pub(crate) fn take(
        &self,
        database: &Database,
        session: Session,
        limits: Limits,
        dead: impl Fn(&Row) -> bool,
    ) -> Taken {
        let flaw = |flaw| limits.flaw == Some(flaw);
        let mut holds: BTreeMap<Entity, Hold> = self.holds.iter().map(|hold| (hold.entity, hold.clone())).collect();
        // Blocked from this id on.
        let mut blocked: BTreeMap<Entity, Id> = BTreeMap::new();
        for (entity, hold) in &mut holds {
            match self.looked.get(entity) {
                None => _ = blocked.insert(*entity, 0),
                Some(Some(cut)) => {
                    blocked.insert(*entity, cut + 1);
                    hold.from = cut + 1;
                }
                Some(None) => {}
            }
        }
        let emptied = |(_, cut): &(&Entity, &Option<Id>)| cut.is_none() || flaw(Flaw::CutLookDeletesHold);
        self.looked.iter().filter(emptied).for_each(|(entity, _)| _ = holds.remove(entity));
        let mut batch = Vec::new();
        for (id, row) in &self.candidates {
            let entity = row.entity;
            if flaw(Flaw::ReleaseForgetsNewRows) && self.looked.contains_key(&entity) && *id > self.progress.c {
                // Left, because the hold was still there when they were read.
                continue;
            }
            if blocked.get(&entity).is_some_and(|from| from <= id) {
                let locked = Hold { entity, from: *id, why: Why::Locked, released: false };
                let hold = holds.entry(entity).or_insert(locked);
                hold.from = hold.from.min(*id);
                continue;
            }
            match self.lock(database, session, (*id, row), limits) {
                Some(row) => {
                    if dead(&row) && !flaw(Flaw::SuccessorsOfDead) {
                        blocked.insert(entity, id + 1);
                    }
                    batch.push((*id, row));
                }
                None if flaw(Flaw::NoHoldForSkipped) => {}
                None => {
                    blocked.insert(entity, *id);
                    let kept = self.holds.iter().find(|hold| hold.entity == entity);
                    let (why, released) = kept.map_or((Why::Locked, false), |hold| (hold.why, hold.released));
                    let from = holds.get(&entity).map_or(*id, |hold| hold.from.min(*id));
                    holds.insert(entity, Hold { entity, from, why, released });
                }
            }
        }
        let holds: Vec<Hold> = holds.into_values().collect();
        let next = self.next(limits);
        let stays = next.c == self.progress.c && next.sweep.is_none() && self.progress.sweep.is_none();
        let found = self.progress.sweep.is_some()
            || !self.late.is_empty()
            || !self.candidates.is_empty()
            || holds != self.holds;
        let moves = self.progress.c.saturating_add(limits.window) < self.highest && !stays;
        let stores = found || moves && !flaw(Flaw::EmptyWindowStoresNothing);
        Taken {
            next: if stores { next } else { Progress { s: next.s, ..self.progress.clone() } },
            batch,
            holds,
            stores,
        }
    }

    /// The row as it is sent, where the claim gets it: not locked by another, and the same version as in the snapshot.
    fn lock(&self, database: &Database, session: Session, (id, row): (Id, &Row), limits: Limits) -> Option<Row> {
        let current = database.data.rows.get(&id).filter(|_| !database.row_is_locked(id, session))?;
        let same = current.version == row.version && current.status == row.status;
        let changed = limits.flaw == Some(Flaw::TakesChangedVersion) && current.status == Status::Pending;
        (same || changed).then(|| current.clone())
    }

    /// Rule 11.
    fn next(&self, limits: Limits) -> Progress {
        let Progress { c, s, sweep } = self.progress.clone();
        if self.late.len() > limits.rows {
            let t = sweep.map_or(self.snapshot.clone(), |(_, t)| t);
            return match limits.flaw {
                Some(Flaw::CutMovesSnapshot) => Progress { c, s: t, sweep: None },
                _ => Progress { c, s, sweep: Some((self.late[limits.rows - 1], t)) },
            };
        }
        match (sweep, self.new_cut) {
            (Some((_, t)), _) => Progress { c, s: t, sweep: None },
            (None, Some(cut)) => Progress { c: cut, s: self.snapshot.clone(), sweep: None },
            (None, None) => {
                let c = c.saturating_add(limits.window).min(self.highest);
                Progress { c, s: self.snapshot.clone(), sweep: None }
            }
        }
    }

    pub(crate) fn xids(&mut self) -> Vec<&mut u8> {
        let rows = self.candidates.values_mut().map(|row| &mut row.xid);
        rows.chain(self.snapshot.xids()).chain(self.progress.xids()).collect()
    }
}

impl Taken {
    pub(crate) fn xids(&mut self) -> Vec<&mut u8> {
        self.batch.iter_mut().map(|(_, row)| &mut row.xid).chain(self.next.xids()).collect()
    }
}
