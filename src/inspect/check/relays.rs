//! Checks whether the live relays of the outbox go together.

use sqlx::PgConnection;

use super::finding::{Finding, Severity};
use crate::config::RelaySettings;
use crate::store::fleet;
use crate::store::relay_conflicts::{self, Conflict};
use event_outbox::Names;
use event_outbox::code::Code;

pub(super) async fn conflicts(
    conn: &mut PgConnection,
    names: &Names,
    settings: &RelaySettings,
) -> Result<Vec<Finding>, sqlx::Error> {
    let relays = fleet::relays(conn, names).await?;
    let live = relays.iter().filter(|relay| relay.is_alive(settings.alive_for()));
    let live: Vec<_> = live.map(fleet::RegisteredRelay::facts).collect();
    Ok(relay_conflicts::conflicts(&live).into_iter().map(finding).collect())
}

fn finding(conflict: Conflict) -> Finding {
    let Conflict { code, is_lasting, message, next_step, .. } = conflict;
    let message = format!("The {message}.");
    let finding = match code {
        Code::RelayNameShared => Finding::warning(Code::RelayNameShared, message, next_step),
        _ => Finding::warning(Code::RelaysDiffer, message, next_step),
    };
    let severity = if is_lasting { Severity::Error } else { Severity::Warning };
    Finding { severity, ..finding }
}
