//! Writes an invoice for each order with `event_outbox::consumer::Consumer`. Run it with
//! DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events cargo run -p event-outbox --example bill --features consumer-kafka

use event_outbox::consumer::{Consumer, Context, Failed};
use event_outbox::event::NewEvent;
use serde::Deserialize;
use serde_json::json;
use sqlx::postgres::PgPoolOptions;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

async fn bill(mut ctx: Context, order: OrderPlaced) -> Result<(), Failed> {
    if order.total_cents < 0 {
        return Err(Failed::permanent("the total of an order is negative"));
    }
    sqlx::query("insert into invoices (order_id, total_cents) values ($1, $2)")
        .bind(&order.order_id)
        .bind(order.total_cents)
        .execute(ctx.tx())
        .await?;
    let invoiced = NewEvent::new("invoice", &order.order_id, "OrderInvoiced");
    ctx.emit(invoiced.json(&json!({"orderId": order.order_id}))?).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPoolOptions::new().max_connections(8).connect(&std::env::var("DATABASE_URL")?).await?;
    Consumer::new("billing", pool)
        .kafka("bootstrap.servers", std::env::var("KAFKA_BOOTSTRAP_SERVERS")?)
        .topic(std::env::var("TOPIC")?)
        .on("OrderPlaced", 1..=1, bill)
        .run_until_signal()
        .await?;
    Ok(())
}
