//! Runs the payments: takes the money once the goods are set aside, and gives it back if the order is cancelled.
//!
//! The two events arrive on two topics, and there is no order between topics, so a cancellation may come first. The payment's row decides:
//! the first event inserts it, and the other one finds it.

use serde::Deserialize;
use serde_json::json;

use super::context::ServiceContext;
use event_outbox::consumer::{Consumer, Context, Failed};
use event_outbox::event::NewEvent;

/// The tables of the service.
pub(super) const TABLES: &str = include_str!("payment.sql");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StockReserved {
    order_id: String,
    customer: String,
    total_cents: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderCancelled {
    order_id: String,
}

pub(super) fn consumer(context: &ServiceContext) -> Consumer {
    context
        .consumer()
        .topic(context.topic("stock"))
        .on("StockReserved", 1..=1, take)
        // Another topic: either event may come first.
        .topic(context.topic("order"))
        .on("OrderCancelled", 1..=1, give_back)
}

async fn take(mut ctx: Context, order: StockReserved) -> Result<(), Failed> {
    let StockReserved { order_id, customer, total_cents } = order;
    let begun = sqlx::query(
        "insert into payments (order_id, customer, cents, state) values ($1, $2, $3, 'waiting') on conflict do nothing",
    )
    .bind(&order_id)
    .bind(&customer)
    .bind(total_cents)
    .execute(ctx.tx())
    .await?;
    if begun.rows_affected() == 0 {
        // The cancellation came first.
        return Ok(());
    }
    let asks_first: bool = sqlx::query_scalar("select asks_first from accounts where customer = $1")
        .bind(&customer)
        .fetch_one(ctx.tx())
        .await?;
    if asks_first {
        // The bank may answer at any time. The order's deadline does not depend on it.
        return Ok(());
    }
    let taken = sqlx::query("update accounts set cents = cents - $2 where customer = $1 and cents >= $2")
        .bind(&customer)
        .bind(total_cents)
        .execute(ctx.tx())
        .await?;
    let (state, event_type) = match taken.rows_affected() {
        1 => ("taken", "PaymentTaken"),
        _ => ("refused", "PaymentRefused"),
    };
    sqlx::query("update payments set state = $2 where order_id = $1")
        .bind(&order_id)
        .bind(state)
        .execute(ctx.tx())
        .await?;
    let event = NewEvent::new("payment", &order_id, event_type);
    ctx.emit(event.json(&json!({"orderId": order_id, "totalCents": total_cents}))?).await?;
    Ok(())
}

/// Compensates `take`, or prevents it if it has not happened yet.
async fn give_back(mut ctx: Context, order: OrderCancelled) -> Result<(), Failed> {
    let refunded: Option<(String, i64)> = sqlx::query_as(
        "insert into payments (order_id, cents, state) values ($1, 0, 'cancelled') on conflict (order_id) do update \
         set state = case payments.state when 'taken' then 'refunded' when 'waiting' then 'cancelled' else payments.state end \
         returning case state when 'refunded' then customer end, cents",
    )
    .bind(&order.order_id)
    .fetch_one(ctx.tx())
    .await
    .map(|(customer, cents): (Option<String>, i64)| Some((customer?, cents)))?;
    if let Some((customer, cents)) = refunded {
        sqlx::query("update accounts set cents = cents + $2 where customer = $1")
            .bind(customer)
            .bind(cents)
            .execute(ctx.tx())
            .await?;
        let event = NewEvent::new("payment", &order.order_id, "PaymentRefunded");
        ctx.emit(event.json(&json!({"orderId": order.order_id, "totalCents": cents}))?).await?;
    }
    Ok(())
}
