//! Writes an invoice for each order. Run it with
//! DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... cargo run -p event-outbox --example minimal --features consumer-kafka

use event_outbox::consumer::{Consumer, Context, Failed};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
}

async fn book(mut ctx: Context, order: OrderPlaced) -> Result<(), Failed> {
    let insert = sqlx::query("insert into invoices (order_id, total_cents) values ($1, 0)");
    insert.bind(order.order_id).execute(ctx.tx()).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = sqlx::PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    Consumer::new("billing", pool)
        .kafka("bootstrap.servers", std::env::var("KAFKA_BOOTSTRAP_SERVERS")?)
        .topic("order-events")
        .on("OrderPlaced", 1..=1, book)
        .run_until_signal()
        .await?;
    Ok(())
}
