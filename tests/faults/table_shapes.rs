//! Tests outbox tables that the relay cannot serve. The relay must refuse to start or report the problem, and must not look healthy.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;

use crate::refused_marks::ordinary_user;
use lab::admin::{Admin, with_admin};
use lab::kafka::RealKafka;
use lab::relay::RelayProcess;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_partitioned_outbox_is_refused_at_the_start,
            row_level_security_switched_on_while_the_relay_runs_is_reported;
    }
}

/// `like` copies the columns of whatever version of the outbox this is.
const PARTITION: &str = "
    alter table event_outbox rename to event_outbox_whole;
    create table event_outbox (like event_outbox_whole including defaults including generated including constraints)
        partition by range (id);
    create sequence event_outbox_partitioned_id;
    alter table event_outbox alter id set default nextval('event_outbox_partitioned_id');
    alter table event_outbox add primary key (id);
    create table event_outbox_1 partition of event_outbox for values from (minvalue) to (200);
    create table event_outbox_2 partition of event_outbox for values from (200) to (maxvalue);";

async fn a_partitioned_outbox_is_refused_at_the_start(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.execute(PARTITION).await?;
    outbox.write_backlog(500, 50).await?;
    let relay = outbox.relay(&kafka).start("partitioned")?;
    let relay = tokio::sync::Mutex::new(relay);
    let ended = tokio::time::timeout(SOON, until_ended(&relay)).await;
    let relay = relay.into_inner();
    let log = relay.log();
    if ended.is_err() {
        let settled = outbox.number("select count(*) from event_outbox where status <> 'PENDING'").await?;
        let records = kafka.read_topic(&outbox.topic).await?.len();
        anyhow::bail!("the relay still runs; {settled} of 500 events are settled, {records} records are on the topic");
    }
    // The test reads the line with the reason a moment after the process has ended.
    relay.wait_for("OR-2113").await;
    let code = relay.exit().await?.code();
    ensure!(code == Some(64) || code == Some(1), "exit code {code:?}: {log:?}");
    ensure!(kafka.read_topic(&outbox.topic).await?.is_empty(), "events were published");
    Ok(())
}

async fn until_ended(relay: &tokio::sync::Mutex<RelayProcess>) {
    eventually("the relay exits", SOON * 2, || async {
        match relay.lock().await.is_running() {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Policies do not apply to a superuser, so the relay connects as an ordinary user.
async fn row_level_security_switched_on_while_the_relay_runs_is_reported(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let user = ordinary_user(&database, &outbox).await?;
    let settings = with_admin(outbox.relay(&kafka).with("DATABASE_URL", &user));
    let relay = settings.start_ready("policies").await?;
    let admin = Admin::from_relay(&relay).await?;
    outbox.write_backlog(20, 20).await?;
    outbox.until_settled().await;
    admin.until_ready_says(200, |_| true).await;
    outbox.execute("alter table event_outbox enable row level security").await?;
    outbox.write_backlog(20, 20).await?;
    eventually("/readyz or status reports that nothing can be read", SOON, || async {
        let probe = admin.get("/readyz").await.map_err(|error| format!("{error:?}"))?;
        let status = Relay::bare().with("DATABASE_URL", &user).output("status").await;
        let status = status.map_err(|error| format!("{error:?}"))?;
        if probe.status != 200 || status.code != Some(0) { Ok(()) } else { Err(format!("{} {status:?}", probe.body)) }
    })
    .await;
    outbox.execute("alter table event_outbox disable row level security").await?;
    outbox.until_settled().await;
    admin.until_ready_says(200, |_| true).await;
    outbox.all_published().await
}
