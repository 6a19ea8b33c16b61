//! Writes invoices in batches, with retries that set a key aside, and metrics. Run it with
//! DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events cargo run -p event-outbox --example tuned --features consumer-kafka
//! A line `pause`, `resume` or `rate 50` on its standard input controls it; `metrics` prints its metrics.

use std::sync::Arc;
use std::time::Duration;

use event_outbox::consumer::{
    Action, BatchContext, BatchEvent, Consumer, Context, Control, Failed, Kind, Rejected, Retry, Stats,
};
use serde::Deserialize;
use sqlx::postgres::PgPoolOptions;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderCancelled {
    order_id: String,
}

async fn bill_all(mut ctx: BatchContext, orders: Vec<BatchEvent<OrderPlaced>>) -> Result<(), Failed> {
    let ids: Vec<&str> = orders.iter().map(|order| order.payload.order_id.as_str()).collect();
    let totals: Vec<i64> = orders.iter().map(|order| order.payload.total_cents).collect();
    sqlx::query("insert into invoices (order_id, total_cents) select * from unnest($1::text[], $2::bigint[])")
        .bind(ids)
        .bind(totals)
        .execute(ctx.tx())
        .await?;
    Ok(())
}

async fn cancel(mut ctx: Context, order: OrderCancelled) -> Result<(), Failed> {
    sqlx::query("delete from invoices where order_id = $1").bind(&order.order_id).execute(ctx.tx()).await?;
    Ok(())
}

async fn tell_somebody(rejected: Rejected) -> Action {
    eprintln!("{}/{} offset {}: {}", rejected.topic, rejected.partition, rejected.offset, rejected.error);
    rejected.action
}

fn consumer(pool: sqlx::PgPool) -> Consumer {
    let patient = Retry {
        attempts: 20,
        first_pause: Duration::from_secs(1),
        longest_pause: Duration::from_secs(600),
        set_aside: true,
        then: Some(Action::HoldKey),
    };
    Consumer::new("billing", pool)
        .concurrency(4)
        .batch(200)
        .on_batch("OrderPlaced", 1..=1, bill_all)
        .on("OrderCancelled", 1..=1, cancel)
        .retry(patient)
        .retry_type("OrderCancelled", Retry { attempts: 3, ..Retry::default() })
        .retry_when(|_, failed| {
            let is_timeout = failed.error().is::<tokio::time::error::Elapsed>();
            (is_timeout && failed.kind() == Kind::Transient).then(Retry::none)
        })
        .before_dead_letter(tell_somebody)
}

/// Obeys the lines of the standard input.
fn obey(control: &Control, stats: &Stats) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("pause", _) => control.pause_all(),
            ("resume", _) => control.resume_all(),
            ("rate", per_second) => control.rate(per_second.parse().ok()),
            ("metrics", _) => print!("{}", stats.to_prometheus()),
            _ => eprintln!("pause, resume, rate EVENTS_A_SECOND or metrics"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPoolOptions::new()
        .max_connections(32)
        .test_before_acquire(false)
        .connect(&std::env::var("DATABASE_URL")?)
        .await?;
    let consumer = consumer(pool)
        .kafka("bootstrap.servers", std::env::var("KAFKA_BOOTSTRAP_SERVERS")?)
        .topic(std::env::var("TOPIC")?);
    let (control, stats) = (consumer.control(), Arc::clone(&consumer.stats()));
    std::thread::spawn(move || obey(&control, &stats));
    consumer.run_until_signal().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use event_outbox::consumer::testing::{Outcome, Test};
    use event_outbox::event::NewEvent;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_order_without_an_id_is_given_up_and_skipped() -> Result<(), Box<dyn std::error::Error>> {
        let pool = sqlx::PgPool::connect_lazy("postgres://nowhere")?;
        let order = NewEvent::new("order", "o-1", "OrderCancelled").json(&json!({"id": "o-1"}))?;
        let tested = Test::new(order).deliver_to(&consumer(pool)).await?;
        assert!(matches!(tested.outcome, Outcome::Rejected { action: Action::Skip, .. }), "{tested:?}");
        Ok(())
    }
}
