//! Shows the tables of the application that have triggers of the outbox.

use serde_json::json;

use super::super::app_table;
use super::super::exit::Failure;
use super::super::output;
use super::super::target::Target;
use super::definition_of;
use crate::observe::print::outln;
use crate::store::adopt::script as adopt;
use crate::store::capture::backfill::state;
use crate::store::capture::{Definition, script};
use crate::text;

/// Lists captured and adopted tables.
pub(super) async fn list(target: &mut Target, as_json: bool) -> Result<(), Failure> {
    let captured = app_table::installed(target, script::COMMAND).await?;
    let adopted = app_table::installed(target, adopt::COMMAND).await?;
    let backfills = state::list(&mut target.conn, &target.names).await;
    let backfills = backfills.map_err(|error| target.failed("read the backfills of", error))?;
    if as_json {
        let mut tables = Vec::new();
        for installed in &captured {
            let definition = definition_of(installed)?;
            let of_table = backfills.iter().find(|backfill| backfill.relation == installed.oid);
            tables.push(json!({
                "table": installed.quoted(), "enabled": !installed.is_disabled, "captured": definition,
                "backfill": of_table.map(|of| json!({ "events": of.events, "skipped": of.skipped, "failed": of.failed, "finished": of.finished })),
            }));
        }
        let adopted: Vec<_> = adopted
            .iter()
            .map(|installed| json!({ "table": installed.quoted(), "enabled": !installed.is_disabled }))
            .collect();
        return output::json(&json!({ "tables": tables, "adopted": adopted })).map(drop);
    }
    if captured.is_empty() && adopted.is_empty() {
        outln!("{} captures no table", target.shown);
    }
    let disabled = |is_disabled: bool| if is_disabled { "  (a trigger is disabled: changes are lost)" } else { "" };
    for installed in &captured {
        let definition = definition_of(installed)?;
        outln!("{}{}", text::name(&installed.quoted()), disabled(installed.is_disabled));
        outln!("{}", described(&definition));
        if definition.table != installed.quoted() {
            outln!(
                "  renamed since it was captured as {}, the name that its events have",
                text::name(&definition.table)
            );
        }
        if let Some(of) = backfills.iter().find(|backfill| backfill.relation == installed.oid) {
            let state = if of.finished { "finished" } else { "not finished" };
            let failed = match of.failed {
                0 => String::new(),
                failed => format!(", {} failed", text::counted(failed, "row")),
            };
            outln!("  backfill {state}, {}{failed}", text::counted(of.events, "event"));
        }
    }
    for installed in &adopted {
        outln!("{} is adopted{}", text::name(&installed.quoted()), disabled(installed.is_disabled));
    }
    Ok(())
}

/// Says what becomes of the changes of a table.
pub(super) fn described(definition: &Definition) -> String {
    let joined =
        |names: &[String]| names.iter().map(|name| text::name(name).to_string()).collect::<Vec<_>>().join(", ");
    let on: Vec<_> = definition.on.iter().map(|change| change.name()).collect();
    let columns = definition.columns.as_ref().map_or_else(|| "all".to_owned(), |columns| joined(columns));
    format!(
        "  on {}; entity {} by {}; event type {}; columns {columns}; a trigger for each {}{}; TRUNCATE is {}",
        on.join(", "),
        text::name(&definition.entity_type),
        joined(&definition.key),
        text::name(&definition.event_type),
        if definition.bulk { "statement" } else { "row" },
        if definition.deferred { ", at commit" } else { "" },
        if definition.allow_truncate { "not seen" } else { "refused" },
    )
}
