//! Finds out why nothing moves: from what the relay itself knows, from the first row, and from what `outbox-relay status` shows.

use sqlx::PgConnection;

use super::STALLED;
use super::stall::QueueState;
use crate::fault;
use crate::inspect::check::Finding;
use crate::inspect::status::{About, Look, Status};
use crate::lane::hold::HoldKind;
use crate::observe::health::{Cause, Reason};
use crate::relay::exactly_once::ownership::transactions_of;
use crate::relay::health::outage::Server;
use crate::relay::obstacles::Obstacle;
use crate::relay::shared::Shared;
use crate::relay::worker::context::acks_of;
use crate::relay::worker::in_doubt::partition_obstacle;
use crate::relay::worker::topics::topic_obstacle;
use crate::store::pauses::{Pause, Scope};
use crate::store::queue_head::QueueHead;

/// The observations at the time when nothing moved.
pub(super) struct Observed<'e> {
    /// True when the brokers answer.
    pub(super) up: bool,
    pub(super) lacking: Option<&'e Reason>,
    pub(super) seen: QueueState,
    pub(super) head: &'e QueueHead,
}

/// Returns the reason for a missing right or a policy that hides rows.
pub(super) fn reason_from_rights(finding: Finding) -> Reason {
    Reason::new(Cause::Right, finding.message, finding.fix).coded(finding.code)
}

/// Returns the reason for brokers that have not answered since the start.
pub(super) fn no_answer() -> Reason {
    Reason::new(
        Cause::Brokers,
        "no broker has answered yet",
        "check that the brokers run and that KAFKA_BOOTSTRAP_SERVERS and the security settings are right",
    )
}

/// Returns the reason for a database that could not be read, when no other part of the relay knows why.
pub(super) fn not_looked() -> Reason {
    Reason::new(
        Cause::Database,
        "the database does not answer, or has not been looked at yet",
        "check that the database runs and can be reached",
    )
}

impl Observed<'_> {
    /// Returns why nothing moves. The relay's own knowledge comes first, because without servers or rights nothing else matters.
    pub(super) async fn reason(&self, shared: &Shared, conn: &mut PgConnection) -> Reason {
        if let Some(lacking) = self.lacking {
            return lacking.clone();
        }
        let outage = shared.outages.reason(Server::Postgres);
        if let Some(reason) = outage.clone().filter(|reason| reason.cause == Cause::Right) {
            return reason;
        }
        if !self.up {
            return shared.outages.reason(Server::Kafka).unwrap_or_else(no_answer);
        }
        let options = &shared.options;
        let look = Look { names: &options.names, topic: &options.relay.topic, alive_for: options.relay.alive_for() };
        let status = Status::look(conn, &look, &mut None).await.unwrap_or_default();
        self.reason_from_status(&status, shared)
            .or(outage)
            .or_else(|| self.reason_from_acks(shared))
            .unwrap_or_else(|| self.unknown(shared))
    }

    fn reason_from_status(&self, status: &Status, shared: &Shared) -> Option<Reason> {
        let about = |about: About, cause: Cause| {
            let step = status.next.iter().find(|step| step.about == about)?;
            Some(Reason::new(cause, &step.what, &step.next_step))
        };
        let claimable = self.head.pending.is_some() || self.head.due.is_some();
        if self.seen == QueueState::Unreadable || claimable {
            let paused = || self.paused(status);
            return about(About::Lock, Cause::Lock)
                .or_else(paused)
                .or_else(|| self.lane_locked(status, &shared.options.application_name()));
        }
        // Only rows that are held are left; the first says for what.
        let (_, held) = self.head.held.as_ref()?;
        if held.kind == HoldKind::Locked
            && let Some(named) = about(About::Lock, Cause::Lock)
        {
            return Some(named);
        }
        let cause = match held.kind {
            HoldKind::Topic => Cause::Topic,
            HoldKind::Paused => Cause::Paused,
            HoldKind::Locked => Cause::Lock,
            HoldKind::Poison => Cause::Held,
        };
        let events = status.held.iter().find(|group| group.held == *held);
        let events = events.map_or_else(|| "events".to_owned(), |group| group.count());
        let message = format!("{events} are held: {held}");
        let obstacle = held.topic.as_ref().filter(|_| held.kind == HoldKind::Topic).map(|topic| match held.partition {
            Some(partition) => partition_obstacle(&(topic.clone(), Some(partition))),
            None => topic_obstacle(topic),
        });
        Some(match obstacle.and_then(|obstacle| shared.obstacles.get(&obstacle)?.fault) {
            Some(fault) => Reason::new(cause, message, fault.next_step).coded(fault.code),
            None => Reason::new(cause, message, held.next_step()),
        })
    }

    /// Returns the reason when everything is paused. Such a pause leaves the rows as they are, so the rows do not show it.
    fn paused(&self, status: &Status) -> Option<Reason> {
        let Pause { scope, paused_by, reason, .. } = status.pauses.iter().find(|pause| pause.scope == Scope::All)?;
        Some(Reason::new(
            Cause::Paused,
            format!("{scope} is paused by {paused_by}: {reason}"),
            format!("outbox-relay resume {}, when the reason is gone", scope.arguments()),
        ))
    }

    /// Returns the reason when another session works on the lane of the first row. The relay of that session may be frozen.
    fn lane_locked(&self, status: &Status, own: &str) -> Option<Reason> {
        let (_, lane) = self.head.pending?;
        let held = status.lanes.iter().find(|status| status.lane == lane)?.locked_by.as_ref()?;
        (held.application != own).then(|| {
            Reason::new(
                Cause::Lock,
                format!("lane {lane} is locked by pid {} (application {:?})", held.pid, held.application),
                format!(
                    "check whether that relay is frozen; select pg_terminate_backend({}); frees its lanes",
                    held.pid
                ),
            )
        })
    }

    fn reason_from_acks(&self, shared: &Shared) -> Option<Reason> {
        let of =
            |worker| shared.obstacles.get(&acks_of(worker)).or_else(|| shared.obstacles.get(&transactions_of(worker)));
        let Obstacle { why, fault, .. } = (0..shared.options.relay.workers).find_map(of)?;
        let fault = fault.unwrap_or(fault::NO_ANSWER);
        let message = format!("records are not acknowledged: {why}");
        Some(Reason::new(Cause::Acks, message, fault.next_step).coded(fault.code))
    }

    fn unknown(&self, shared: &Shared) -> Reason {
        // Leaves out the stall itself: its reason would contain itself and grow with each look.
        let blocked = shared.blocked(Some(STALLED)).unwrap_or_else(|| "nothing is known to block them".to_owned());
        let first = self.head.lowest_id().map(|id| format!(", the first is number {id}")).unwrap_or_default();
        Reason::new(
            Cause::Unknown,
            format!("events wait{first}: {blocked}"),
            "outbox-relay check; outbox-relay explain of the first event; RELAY_LOG_LEVEL=info,outbox_relay=debug",
        )
    }
}
