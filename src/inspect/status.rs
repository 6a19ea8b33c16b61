//! Shows the current state of an outbox on one screen. It needs only the database, and no relay; brokers are asked whether they answer.
//!
//! - [`Status::look`]: gathers the facts with bounded queries
//! - [`brokers`]: asks whether the brokers answer
//! - [`next`]: lists what blocks events, and what to do about it
//! - [`progress`]: reads the exactly-once progress of lanes from Kafka, which the database does not have
//! - [`screen`]: prints the facts for people

mod brokers;
mod next;
mod progress;
mod screen;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;

pub(crate) use brokers::Brokers;
pub(crate) use next::{About, NextStep};
pub(crate) use progress::LaneOwner;

use crate::store::activity::{self, Blocker, Session, Sessions, Waiting};
use crate::store::backlog::{self, Flow, FlowMark, HEAD_LIMIT, HeadGroup, HeldGroup};
use crate::store::counts::{self, COUNT_LIMIT};
use crate::store::fleet::{self, LaneHeld, RegisteredRelay};
use crate::store::held_keys::{self, HeldCount};
use crate::store::pauses::{self, Pause};
use crate::store::read_only::read;
use crate::store::relay_conflicts::{self, Conflict};
use crate::store::routes;
use event_outbox::Names;
use event_outbox::route::TopicTemplate;
use event_outbox::schema;

/// Everything on the screen.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Status {
    /// The reason why the outbox table could not be read; its counts are then missing.
    pub(crate) unreadable: Option<String>,
    pub(crate) backlog: Option<Counts>,
    pub(crate) flow: Option<Flow>,
    /// The seconds until no event is pending at the current rate; missing if the backlog does not shrink.
    pub(crate) drain_s: Option<f64>,
    /// The topics of the first 100,000 pending events.
    pub(crate) topics: Vec<TopicStatus>,
    /// The lanes; their pending events are counted among the first 100,000.
    pub(crate) lanes: Vec<LaneStatus>,
    /// The owner of each lane that is published exactly once.
    pub(crate) delivery: Vec<LaneOwner>,
    /// The reason why the progress of the lanes is missing.
    pub(crate) progress_unread: Option<String>,
    /// The held events, which claims step over, by reason.
    pub(crate) held: Vec<HeldGroup>,
    /// The keys that consumer groups of this database hold.
    pub(crate) consumers: Vec<HeldCount>,
    /// What operators have paused.
    pub(crate) pauses: Vec<Pause>,
    /// What the brokers answered; missing where nobody asked them.
    pub(crate) brokers: Option<Brokers>,
    pub(crate) relays: Vec<RelayStatus>,
    /// Live relays that have different settings or the same name.
    pub(crate) conflicts: Vec<Conflict>,
    /// Sessions that keep a relay from working.
    pub(crate) blockers: Vec<Blocker>,
    /// Relays' sessions that wait for a lock.
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) oldest_transaction: Option<Session>,
    /// False when this user may not see the sessions of other users.
    pub(crate) sees_other_sessions: bool,
    /// The next actions, the most urgent first.
    pub(crate) next: Vec<NextStep>,
}

/// The counts of events. Counting stops at a million.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Counts {
    pub(crate) pending: i64,
    /// True when `pending` is a lower bound.
    pub(crate) pending_is_at_least: bool,
    pub(crate) oldest_pending_s: Option<f64>,
    pub(crate) scheduled: i64,
    pub(crate) held: i64,
    pub(crate) dead: i64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct TopicStatus {
    pub(crate) topic: String,
    pub(crate) pending: i64,
    pub(crate) oldest_s: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct LaneStatus {
    pub(crate) lane: i16,
    pub(crate) pending: i64,
    pub(crate) oldest_s: Option<f64>,
    /// The relay that owns it.
    pub(crate) owner: Option<String>,
    /// The session that has it locked now.
    pub(crate) locked_by: Option<LaneHeld>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct RelayStatus {
    #[serde(flatten)]
    pub(crate) seen: RegisteredRelay,
    pub(crate) alive: bool,
}

impl RelayStatus {
    fn owns(&self, lane: i16) -> bool {
        let mut ranges = self.seen.lanes.iter().flatten();
        self.alive && ranges.any(|range| (range.first..=range.last).contains(&lane))
    }
}

/// The options of a look at the outbox.
pub(crate) struct Look<'a> {
    pub(crate) names: &'a Names,
    pub(crate) topic: &'a TopicTemplate,
    /// The longest silence of a live relay.
    pub(crate) alive_for: Duration,
}

impl Status {
    /// Gathers the facts. `mark` holds the position of the last look, from which the rates are computed; this look replaces it.
    ///
    /// # Errors
    /// Returns any database error, except for a locked or slow outbox: that is part of the status.
    pub(crate) async fn look(
        conn: &mut PgConnection,
        look: &Look<'_>,
        mark: &mut Option<FlowMark>,
    ) -> Result<Self, sqlx::Error> {
        let sessions = Sessions::find(conn, look.names).await?;
        let mut status = Self {
            sees_other_sessions: sessions.sees_others,
            blockers: activity::table_blockers(conn, look.names, &sessions).await?,
            waiting: activity::waiting_relays(conn).await?,
            oldest_transaction: activity::oldest_transaction(conn, &sessions).await?,
            ..Self::default()
        };
        match status.outbox(conn, look, &sessions, mark).await {
            Ok(()) => {}
            // 55P03 lock_not_available, 57014 query_canceled: the query ran into its time limit.
            Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("55P03" | "57014")) => {
                status.unreadable = Some(error.message().to_owned());
            }
            Err(error) => return Err(error),
        }
        status.next = next::steps(&status);
        Ok(status)
    }

    async fn outbox(
        &mut self,
        conn: &mut PgConnection,
        look: &Look<'_>,
        sessions: &Sessions,
        mark: &mut Option<FlowMark>,
    ) -> Result<(), sqlx::Error> {
        let names = look.names;
        // Meet a lock on the table here, within a second; the counts would wait for longer.
        read(conn, &format!("select from {} limit 0", names.outbox())).await?;
        let backlog = counts::backlog(conn, names).await?;
        self.backlog = Some(Counts {
            pending: backlog.pending,
            pending_is_at_least: backlog.pending >= COUNT_LIMIT,
            oldest_pending_s: backlog.oldest.map(|oldest| oldest.as_secs_f64()),
            scheduled: backlog.scheduled,
            held: backlog.held,
            dead: backlog.dead,
        });
        let head = backlog::head(conn, names).await?;
        self.held = backlog::held(conn, names).await?;
        self.consumers = held_keys::counts(conn, names).await?;
        self.pauses = pauses::look(conn, names).await?;
        self.blockers.extend(activity::row_blockers(conn, names, sessions).await?);
        let lanes = lane_count(conn, names).await?;
        let relays = fleet::relays(conn, names).await?;
        self.relays =
            relays.into_iter().map(|seen| RelayStatus { alive: seen.is_alive(look.alive_for), seen }).collect();
        let live: Vec<_> = self.relays.iter().filter(|relay| relay.alive).map(|relay| relay.seen.facts()).collect();
        self.conflicts = relay_conflicts::conflicts(&live);
        self.delivery = fleet::deliveries(conn, names).await?.into_iter().map(LaneOwner::from).collect();
        self.topics = by_topic(&head, look.topic);
        self.lanes = by_lane(&head, lanes, &self.relays, fleet::lanes_held(conn, names).await?);
        if let Some(mark) = mark {
            let flow = backlog::flow(conn, names, mark).await?;
            let shrinks_by = flow.settled_per_s - flow.inserted_per_s;
            self.drain_s = (backlog.pending == 0)
                .then_some(0.0)
                .or((shrinks_by > 0.0).then(|| backlog.pending as f64 / shrinks_by));
            self.flow = Some(flow);
        }
        *mark = Some(backlog::mark(conn, names).await?);
        Ok(())
    }

    /// Returns true when the counts by lane and topic cover only a part of the pending events.
    pub(crate) fn is_head_only(&self) -> bool {
        self.backlog.is_some_and(|counts| counts.pending > HEAD_LIMIT)
    }
}

async fn lane_count(conn: &mut PgConnection, names: &Names) -> Result<u16, sqlx::Error> {
    let rows = read(conn, &format!("select count(*) from {}", names.companion("lane"))).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| sqlx::Row::try_get(row, 0))?;
    Ok(u16::try_from(count).unwrap_or(schema::MAX_LANES))
}

fn by_topic(head: &[HeadGroup], template: &TopicTemplate) -> Vec<TopicStatus> {
    let mut topics: BTreeMap<String, (i64, f64)> = BTreeMap::new();
    for group in head {
        let topic = routes::resolve(template, &group.entity_type, &group.event_type, group.topic.as_deref());
        let entry = topics.entry(topic.unwrap_or_else(|error| format!("({error})"))).or_default();
        *entry = (entry.0 + group.pending, entry.1.max(group.oldest_s));
    }
    let mut topics: Vec<_> =
        topics.into_iter().map(|(topic, (pending, oldest_s))| TopicStatus { topic, pending, oldest_s }).collect();
    topics.sort_by_key(|topic| std::cmp::Reverse(topic.pending));
    topics
}

fn by_lane(head: &[HeadGroup], lanes: u16, relays: &[RelayStatus], held: Vec<LaneHeld>) -> Vec<LaneStatus> {
    (0..lanes as i16)
        .map(|lane| {
            let groups = || head.iter().filter(|group| group.lane == lane);
            LaneStatus {
                lane,
                pending: groups().map(|group| group.pending).sum(),
                oldest_s: groups().map(|group| group.oldest_s).max_by(f64::total_cmp),
                owner: relays.iter().find(|relay| relay.owns(lane)).map(|relay| relay.seen.name.clone()),
                locked_by: held.iter().find(|held| held.lane == lane).cloned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_belongs_to_the_living_relay_that_reports_it() {
        let relay = |name: &str, alive, lanes: Option<&[&str]>| RelayStatus {
            seen: RegisteredRelay {
                name: name.to_owned(),
                version: "1".to_owned(),
                workers: 4,
                up_s: 1.0,
                silent_s: 0.1,
                settings: None,
                has_ended: false,
                lanes: lanes.map(|lanes| lanes.iter().map(|range| range.parse().unwrap()).collect()),
            },
            alive,
        };
        let relays =
            [relay("gone", false, Some(&["0-15"])), relay("old", true, None), relay("new", true, Some(&["0-3", "5"]))];
        let lanes = by_lane(&[], 6, &relays, Vec::new());
        let owners: Vec<_> = lanes.iter().map(|lane| lane.owner.as_deref()).collect();
        assert_eq!(owners, [Some("new"), Some("new"), Some("new"), Some("new"), None, Some("new")]);
    }
}
