//! Explains why an event waits. Several reasons may apply; the first one in a fixed order is reported.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};

use super::{Routed, Row};
use crate::config::Settings;
use crate::store::activity::{self, Blocker, Sessions, span};
use crate::store::discarded::is_discard;
use crate::store::fleet::{self, RegisteredRelay};
use crate::store::pauses::{self, Pause};
use crate::store::pending::pending;
use crate::store::read_only::read;
use crate::text;
use event_outbox::Names;
use event_outbox::names::literal;

/// The maximum count of pending events before the event.
const MOST_BEFORE: i64 = 1_000_000;

/// The facts about the outbox that concern every event.
pub(super) struct OutboxState {
    /// The relays that were heard of within the last hour.
    relays: Vec<RegisteredRelay>,
    sessions: Sessions,
    blockers: Vec<Blocker>,
    pauses: Vec<Pause>,
    alive_for: Duration,
}

impl OutboxState {
    pub(super) async fn look(conn: &mut PgConnection, names: &Names, settings: &Settings) -> Result<Self, sqlx::Error> {
        let sessions = Sessions::find(conn, names).await?;
        Ok(Self {
            relays: fleet::relays(conn, names).await?,
            blockers: activity::table_blockers(conn, names, &sessions).await?,
            pauses: pauses::look(conn, names).await?,
            alive_for: settings.relay.alive_for(),
            sessions,
        })
    }
}

type Reason = Option<(String, String)>;

fn reason(why: impl Into<String>, next: impl Into<String>) -> Reason {
    Some((why.into(), next.into()))
}

/// Returns why the event waits and the next action; `None` for a published event.
pub(super) async fn why(
    conn: &mut PgConnection,
    names: &Names,
    row: &Row,
    topic: &Routed,
    topic_trouble: Option<&str>,
    state: &OutboxState,
) -> Result<Reason, sqlx::Error> {
    match row.status.as_str() {
        "PUBLISHED" => return Ok(None),
        "DEAD" => return Ok(dead(row)),
        _ => {}
    }
    if let Some(own) = held_or_scheduled(row) {
        return Ok(Some(own));
    }
    let name = match topic {
        Ok(name) => name.as_str(),
        Err(error) => {
            return Ok(reason(
                format!("it cannot be sent: {error}"),
                "correct the column topic or entity_type of the row, or RELAY_TOPIC; the relay that reads it makes it DEAD, or holds its entity",
            ));
        }
    };
    let concerns = |pause: &&Pause| pause.scope.concerns(name, &row.entity_type, row.entity_id.as_deref());
    if let Some(Pause { reason: why, scope, .. }) = state.pauses.iter().find(concerns) {
        let resume = format!("outbox-relay resume {}, when the reason is gone", scope.arguments());
        return Ok(reason(format!("publishing is paused: {why}"), resume));
    }
    if let Some(locked) = locked(conn, names, &state.sessions, row).await? {
        return Ok(Some(locked));
    }
    if let Some(earlier) = earlier(conn, names, row).await? {
        return Ok(reason(
            format!("it waits behind number {earlier}, an earlier event of its entity"),
            format!("outbox-relay explain {earlier}"),
        ));
    }
    if let Some(blocker) = state.blockers.first() {
        return Ok(reason(
            format!("{} is held by {}", blocker.holds, blocker.session.describe()),
            format!("end it: select pg_terminate_backend({});", blocker.session.pid),
        ));
    }
    let alive: Vec<_> = state.relays.iter().filter(|relay| relay.is_alive(state.alive_for)).collect();
    if alive.is_empty() {
        let last = state.relays.iter().min_by(|a, b| a.silent_s.total_cmp(&b.silent_s));
        let since = match last {
            None => "no relay has sent a heartbeat for an hour".to_owned(),
            Some(relay) if relay.has_ended => {
                format!("the last heartbeat was {} ago, and its session has ended", span(relay.silent_s))
            }
            Some(relay) => format!("the last heartbeat was {} ago", span(relay.silent_s)),
        };
        return Ok(reason(
            format!("no relay is alive: {since}"),
            "start `outbox-relay run`, or read the log of the missing relay: a relay sends no heartbeats while its brokers are unreachable",
        ));
    }
    if let Some(trouble) = topic_trouble {
        return Ok(reason(format!("the topic {name} cannot be written: {trouble}"), "outbox-relay check"));
    }
    let before = before(conn, names, row).await?;
    let least = if before >= MOST_BEFORE { "at least " } else { "" };
    Ok(reason(
        format!(
            "waits for its turn: {} alive, and {least}{} before it in its lane",
            text::counted(alive.len(), "relay"),
            text::counted(before, "pending event")
        ),
        "outbox-relay status shows the rate; if no event moves, look at `blocked` in the relay's status line",
    ))
}

fn dead(row: &Row) -> Reason {
    let error = row.last_error.as_deref();
    match error.filter(|error| is_discard(error)) {
        Some(error) => reason(
            format!("it is DEAD, and somebody has {error}"),
            format!("nothing; `outbox-relay dead retry --discarded --id {}` if it has to go out after all", row.id),
        ),
        None => reason(
            format!("it could not be sent and is DEAD: {}", error.unwrap_or("no error is recorded")),
            format!(
                "fix the cause, then `outbox-relay dead retry --id {0}`, or `outbox-relay dead discard --id {0}`",
                row.id
            ),
        ),
    }
}

fn held_or_scheduled(row: &Row) -> Reason {
    if let Some(held) = &row.held_by {
        return reason(held.to_string(), held.next_step());
    }
    let due_in = row.due_in_s.filter(|due_in| *due_in > 0.0)?;
    let at = row.available_at.as_ref().map(super::time).unwrap_or_default();
    reason(format!("it is scheduled for {at}, in {}", span(due_in)), "no action is needed; available_at has the time")
}

async fn locked(conn: &mut PgConnection, names: &Names, sessions: &Sessions, row: &Row) -> Result<Reason, sqlx::Error> {
    let query = format!(
        "select l.pid::int8, coalesce(a.application_name, ''), a.usename::text, \
         extract(epoch from clock_timestamp() - a.xact_start)::float8 \
         from (select xmax::text::int8 as locker from {} where id = {}) event \
         join pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid::text::int8 = event.locker \
         left join {} a using (pid) where event.locker <> 0 limit 1",
        names.outbox(),
        row.id,
        sessions.relation
    );
    let rows = read(conn, &query).await?;
    let Some(found) = rows.first() else { return Ok(None) };
    let (pid, application): (i64, String) = (found.try_get(0)?, found.try_get(1)?);
    let (user, age): (Option<String>, Option<f64>) = (found.try_get(2)?, found.try_get(3)?);
    let age = age.map_or_else(String::new, |age| format!(" for {}", span(age)));
    if application.starts_with("outbox-relay ") {
        return Ok(reason(
            format!("it is being published now by {application:?} (pid {pid}){age}"),
            "no action is needed; if this lasts longer than RELAY_PUBLISH_TIMEOUT, look at the brokers",
        ));
    }
    let user = user.unwrap_or_default();
    Ok(reason(
        format!("it is locked{age} by pid {pid} (user {user}, application {application:?})"),
        format!("end that transaction, or the session: select pg_terminate_backend({pid});"),
    ))
}

async fn earlier(conn: &mut PgConnection, names: &Names, row: &Row) -> Result<Option<i64>, sqlx::Error> {
    let Some(entity) = &row.entity_id else { return Ok(None) };
    let entity = format!(
        "lane = {} and entity_id = {} and entity_type = {} and id < {}",
        row.lane,
        literal(entity),
        literal(&row.entity_type),
        row.id
    );
    // Scheduled rows do not count, because they leave the order on purpose.
    let query = format!("select id from {} first", pending(names, "id", &entity, 1));
    read(conn, &query).await?.first().map_or(Ok(None), |row| row.try_get(0))
}

async fn before(conn: &mut PgConnection, names: &Names, row: &Row) -> Result<i64, sqlx::Error> {
    let condition = format!("lane = {} and id < {}", row.lane, row.id);
    let query = format!("select count(*) from {} before", pending(names, "id", &condition, MOST_BEFORE));
    read(conn, &query).await?.first().map_or(Ok(0), |row| row.try_get(0))
}
