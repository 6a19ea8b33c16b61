//! Lists what keeps events from being published, with the next actions, the most urgent first.

use serde::Serialize;

use super::Status;
use crate::lane::hold::HoldKind;
use crate::store::activity::span;
use crate::store::backlog::HeldGroup;
use crate::store::held_keys::HeldCount;
use crate::store::pauses::Pause;
use crate::store::relay_conflicts::Conflict;
use crate::text;
use event_outbox::consumer::DeadLetter;

/// The age in seconds from which a transaction is reported.
const LONG_TRANSACTION_S: f64 = 300.0;

/// The subject of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// The outbox cannot be read.
    Unreadable,
    /// Brokers that do not answer.
    Brokers,
    /// Another session's locks.
    Lock,
    /// The live relays and their versions.
    Relays,
    /// Live relays that do not go together.
    Conflict,
    /// An operator's pause, or rows that it holds.
    Pause,
    /// Rows that wait for their topic.
    Topic,
    /// Rows that wait for their entity.
    Entity,
    /// DEAD rows.
    Dead,
    /// Keys that consumers hold.
    Consumers,
    /// A transaction that holds vacuum back.
    Vacuum,
    /// Rows that wait for no visible reason, or a growing backlog.
    Backlog,
}

/// A problem and the next action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NextStep {
    #[serde(skip)]
    pub(crate) about: About,
    pub(crate) what: String,
    pub(crate) next_step: String,
}

impl NextStep {
    /// Returns true if events wait because of it, or need somebody.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self.about, About::Pause | About::Vacuum | About::Relays)
    }
}

pub(super) fn step(about: About, what: impl Into<String>, next_step: impl Into<String>) -> NextStep {
    NextStep { about, what: what.into(), next_step: next_step.into() }
}

/// Returns all steps; empty if there is no problem.
pub(super) fn steps(status: &Status) -> Vec<NextStep> {
    let mut steps = Vec::new();
    if let Some(reason) = &status.unreadable {
        let next =
            if status.blockers.is_empty() { "try again; then look at the server" } else { "end the session below" };
        steps.push(step(About::Unreadable, format!("the outbox cannot be read: {reason}"), next));
    }
    for blocker in &status.blockers {
        steps.push(step(
            About::Lock,
            format!("{} is held by {}", blocker.holds, blocker.session.describe()),
            format!("end its transaction, or the session: select pg_terminate_backend({});", blocker.session.pid),
        ));
    }
    steps.extend(relays(status));
    for Conflict { code, message, next_step, .. } in &status.conflicts {
        steps.push(step(About::Conflict, format!("{message} ({code})"), *next_step));
    }
    let counts = status.backlog;
    for pause in &status.pauses {
        steps.push(paused(pause));
    }
    // What a pause holds is shown with the pause, and a locked row with the session that has it.
    let is_shown = |group: &&HeldGroup| match group.held.kind {
        HoldKind::Paused => !status.pauses.is_empty(),
        HoldKind::Locked => !status.blockers.is_empty(),
        HoldKind::Topic | HoldKind::Poison => false,
    };
    for group in status.held.iter().filter(|group| !is_shown(group)) {
        let about = match group.held.kind {
            HoldKind::Topic => About::Topic,
            HoldKind::Paused => About::Pause,
            HoldKind::Locked => About::Lock,
            HoldKind::Poison => About::Entity,
        };
        steps.push(step(
            about,
            format!("{} are held for {}: {}", group.count(), span(group.oldest_s), group.held),
            group.held.next_step(),
        ));
    }
    if let Some(dead) = counts.map(|counts| counts.dead).filter(|dead| *dead > 0) {
        steps.push(step(About::Dead, format!("{} DEAD", text::counted(dead, "event")), "outbox-relay dead list"));
    }
    steps.extend(status.consumers.iter().map(consumers));
    if let Some(oldest) = &status.oldest_transaction {
        let age = oldest.transaction_s.unwrap_or_default();
        if age > LONG_TRANSACTION_S && oldest.holds_vacuum {
            steps.push(step(
                About::Vacuum,
                format!("a transaction open for {} holds vacuum back: {}", span(age), oldest.describe()),
                format!("end it: select pg_terminate_backend({});", oldest.pid),
            ));
        }
    }
    // A standstill comes first, because it concerns all events. A growing backlog comes last.
    match standstill(status) {
        Some((true, step)) => steps.insert(0, step),
        Some((false, step)) => steps.push(step),
        None => {}
    }
    steps
}

fn consumers(held: &HeldCount) -> NextStep {
    let HeldCount { group, topic, keys, events, oldest_s } = held;
    let dead_letters = DeadLetter::default_topic(topic, group);
    step(
        About::Consumers,
        format!(
            "the consumer group {group} holds {} of {topic} with {} for {}",
            text::counted(*keys, "key"),
            text::counted(*events, "event"),
            span(*oldest_s)
        ),
        format!("`outbox-relay dlq list {dead_letters}`, unless its dead letters are elsewhere"),
    )
}

/// A pause is easily forgotten: who, since when, until when, and the command that ends it.
fn paused(pause: &Pause) -> NextStep {
    let Pause { scope, reason, paused_by, .. } = pause;
    let lasts = span(pause.lasts_s);
    let until =
        pause.expires_at.map_or_else(|| "without an end".to_owned(), |until| format!("until {}", until.to_rfc3339()));
    step(
        About::Pause,
        format!("{scope} is paused for {lasts} by {paused_by}, {until}: {reason}"),
        format!("`outbox-relay resume {}`, when the reason is gone", scope.arguments()),
    )
}

fn relays(status: &Status) -> Option<NextStep> {
    if status.unreadable.is_some() || status.relays.iter().any(|relay| relay.alive) {
        return versions(status);
    }
    let last = status.relays.iter().map(|relay| &relay.seen).min_by(|a, b| a.silent_s.total_cmp(&b.silent_s));
    Some(match last {
        Some(last) => step(
            About::Relays,
            format!(
                "no relay is alive; the last heartbeat of \"{}\" was {} ago",
                text::name(&last.name),
                span(last.silent_s)
            ),
            "outbox-relay check: a relay sends no heartbeats while its brokers or the database are unreachable; else it was killed, see its log",
        ),
        None => step(About::Relays, "no relay is alive", "outbox-relay run"),
    })
}

fn versions(status: &Status) -> Option<NextStep> {
    let mut versions: Vec<_> =
        status.relays.iter().filter(|relay| relay.alive).map(|relay| relay.seen.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    (versions.len() > 1).then(|| {
        step(
            About::Relays,
            format!("relays of different versions are alive: {}", text::sentence(&versions.join(", "))),
            "finish the roll-out",
        )
    })
}

/// Returns a step when rows are due and a relay is alive, but no row moved (true) or too few did (false). A blocker or a pause already
/// explains a standstill. Dead and held events do not explain it, because they are not due.
fn standstill(status: &Status) -> Option<(bool, NextStep)> {
    let (counts, flow) = (status.backlog?, status.flow?);
    if counts.pending == 0 || !status.relays.iter().any(|relay| relay.alive) {
        return None;
    }
    let oldest = span(counts.oldest_pending_s.unwrap_or_default());
    let explained = !status.blockers.is_empty() || !status.pauses.is_empty();
    if flow.settled_per_s == 0.0 && !explained && counts.oldest_pending_s > Some(flow.over_s) {
        let stands = step(
            About::Backlog,
            format!(
                "{} pending for up to {oldest}, a relay is alive, and no event has moved for {}",
                text::counted(counts.pending, "event"),
                span(flow.over_s)
            ),
            "read `blocked` in the relay's last status line, which has the cause; then `outbox-relay check`",
        );
        return Some((true, stands));
    }
    (flow.settled_per_s > 0.0 && flow.inserted_per_s > flow.settled_per_s * 1.1 && counts.pending > 1000).then(|| {
        let grows = step(
            About::Backlog,
            format!(
                "the backlog grows: {:.0} events/s are written, {:.0} are published",
                flow.inserted_per_s, flow.settled_per_s
            ),
            "add a relay or workers, up to one worker per lane; `outbox-relay check` finds what makes claims slow",
        );
        (false, grows)
    })
}
