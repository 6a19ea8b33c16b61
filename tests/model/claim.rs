//! Models one claim by (c, S): the rows that it reads and takes, and the lanes' new state. `docs/explanation/model.md` describes the claim.
//! The numbers of the rules are those of the claim's design.
//!
//! - [`merge`]: the common progress of lanes that are claimed together (rule 8).
//! - [`Look`]: the rows that the claim's statement sees, by its own snapshot (rules 8, 9, 16, 17).
//! - [`Look::take`]: the rows that the claim gets, and the state that it writes (rules 10, 11, 12).

use std::collections::BTreeMap;

use crate::database::{Database, Entity, Hold, Id, Progress, Row, Session, Snapshot, Status, Why};

/// A mistake built into the claim; a test catches each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// B1: the limit cuts the late rows off, and S moves on nevertheless.
    CutMovesSnapshot,
    /// B2: an earlier snapshot decides whether a transaction of running(S) has ended.
    RunningByEarlierLook,
    /// N4: the limit cuts a look at a hold short, and the claim deletes the hold nevertheless.
    CutLookDeletesHold,
    /// The claim steps over locked rows and writes no hold for them.
    NoHoldForSkipped,
    /// The claim sends the current version of a row that changed between the snapshot and the lock.
    TakesChangedVersion,
    /// Lanes that are claimed together begin at the highest c instead of the smallest.
    MergeTakesHighestC,
    /// The merge takes the older of two snapshots instead of their intersection. The lower xmax counts as older; with the same xmax, the
    /// longer list does.
    MergeTakesOneSnapshot,
    /// Lanes that are claimed together forget their sweeps. Correct for the order, but two relays that take turns may begin the same sweep
    /// for ever.
    MergeDropsSweep,
    /// Rule 12 taken literally: a claim that found nothing stores nothing, wherever its window ended.
    EmptyWindowStoresNothing,
    /// Rule 11 taken literally: c never moves past the sequence's last value.
    OnlySequenceBoundsC,
    /// Rule 17 taken literally: the walk of a released hold ends at the former c, and the hold is deleted although rows above c were left.
    ReleaseForgetsNewRows,
    /// The claim sends successors of a row that goes DEAD before that status is committed.
    SuccessorsOfDead,
    /// Rule 16 taken literally: a look takes every visible row of the entity, beginning with the hold's first. The look takes late rows
    /// too, although the limit may have cut off a late row below.
    LookTakesLateRows,
    /// A sweep also takes rows above c.
    SweepTakesNewRows,
}

/// The limits of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// n: the highest number of rows that one arm reads.
    pub(crate) rows: usize,
    /// W: the number of ids that one step covers.
    pub(crate) window: Id,
    pub(crate) flaw: Option<Flaw>,
}

/// Returns the common progress of all lanes: the smallest c and k, and the intersection of the snapshots. A lane without a sweep counts as
/// a lane whose sweep is complete: k = c and T = S. The result is true for each lane, because it is a weaker statement. Neither of two
/// snapshots needs to be the older one: a snapshot does not list its own transaction, and another snapshot taken meanwhile does.
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

/// The rows that the statement sees. A snapshot never sees more later, so the model reads the rows here and locks them in [`Look::take`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Look {
    pub(crate) snapshot: Snapshot,
    pub(crate) progress: Progress,
    pub(crate) lanes: Vec<usize>,
    pub(crate) holds: Vec<Hold>,
    /// The smallest n + 1 late ids, including rows of any status.
    late: Vec<Id>,
    candidates: BTreeMap<Id, Row>,
    /// The last of n new rows, if the limit cut the new rows off; more may follow.
    new_cut: Option<Id>,
    /// The entities whose holds were looked at. An entity with more rows has the last id that was read.
    looked: BTreeMap<Entity, Option<Id>>,
    /// The highest id known to exist.
    highest: Id,
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Taken {
    pub(crate) batch: Vec<(Id, Row)>,
    pub(crate) next: Progress,
    pub(crate) holds: Vec<Hold>,
    /// False if the claim found nothing at all. Then only S moves, in memory (rule 12).
    pub(crate) stores: bool,
}

impl Look {
    /// Reads the rows by the claim's own snapshot. `earlier` is a snapshot from before; only a flawed claim uses it.
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

    /// Locks the rows that are free, and decides which to send. Belongs to the same statement as [`Look::new`], a moment later.
    ///
    /// A row that goes `dead` blocks the rows behind it until the status is committed. Otherwise a crash would leave the row PENDING behind
    /// its successors.
    pub(crate) fn take(
        &self,
        database: &Database,
        session: Session,
        limits: Limits,
        dead: impl Fn(&Row) -> bool,
    ) -> Taken {
        let flaw = |flaw| limits.flaw == Some(flaw);
        let mut holds: BTreeMap<Entity, Hold> = self.holds.iter().map(|hold| (hold.entity, hold.clone())).collect();
        // The id from which on each entity is blocked.
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
                // Left alone, because the hold still existed when the rows were read.
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

    /// Returns the row to send. Returns nothing if another session has locked the row, or if its version differs from the snapshot's.
    fn lock(&self, database: &Database, session: Session, (id, row): (Id, &Row), limits: Limits) -> Option<Row> {
        let current = database.data.rows.get(&id).filter(|_| !database.row_is_locked(id, session))?;
        let same = current.version == row.version && current.status == row.status;
        let changed = limits.flaw == Some(Flaw::TakesChangedVersion) && current.status == Status::Pending;
        (same || changed).then(|| current.clone())
    }

    /// Returns the progress after the claim (rule 11).
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

    /// Returns the lanes of the rows that were read.
    pub(crate) fn touched(&self, lane_of: impl Fn(Entity) -> usize) -> Vec<usize> {
        self.candidates.values().map(|row| lane_of(row.entity)).collect()
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
