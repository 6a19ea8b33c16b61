//! Writes an order and its event in one transaction. Run `docs/examples/sql/orders.sql` first, then `cargo run --example insert` with
//! `DATABASE_URL` set.

use serde_json::json;
use sqlx::{Connection, PgConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut conn = PgConnection::connect(&std::env::var("DATABASE_URL")?).await?;
    place_order(&mut conn, "o-rust", "c-7", 4200).await?;
    Ok(())
}

async fn place_order(conn: &mut PgConnection, id: &str, customer: &str, total_cents: i64) -> Result<(), sqlx::Error> {
    let mut tx = conn.begin().await?;
    sqlx::query("insert into orders (id, customer, total_cents) values ($1, $2, $3)")
        .bind(id)
        .bind(customer)
        .bind(total_cents)
        .execute(&mut *tx)
        .await?;
    sqlx::query("select outbox_emit('order', $1, 'OrderPlaced', $2, $3)")
        .bind(id)
        .bind(json!({"orderId": id, "customer": customer, "totalCents": total_cents}))
        .bind(json!({"correlation-id": "req-81f2"}))
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}
