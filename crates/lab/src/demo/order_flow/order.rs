//! Runs the orders: accepts each, sets a deadline and decides how it ends. Other services do the rest and answer with events.
//!
//! An order is `open`, then `confirmed` or `cancelled` for good. The first event that ends the order decides; later answers change nothing
//! here.

use std::error::Error;

use chrono::{TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::context::ServiceContext;
use event_outbox::consumer::{Consumer, Context, Failed};
use event_outbox::event::NewEvent;
use event_outbox::outbox::Outbox;

/// The tables of the service.
pub(super) const TABLES: &str = include_str!("order.sql");

/// An order of a customer.
#[derive(Debug, Clone)]
pub(super) struct Basket {
    pub(super) order_id: String,
    pub(super) request_id: String,
    pub(super) customer: String,
    pub(super) lines: Vec<Line>,
    pub(super) total_cents: i64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) sku: String,
    pub(super) quantity: i64,
}

/// The release of the checkout. Two releases run at the same time while the new one is rolled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    /// Writes version 1 of `OrderPlaced`, with one article per order.
    Old,
    /// Writes version 2, with any number of lines.
    New,
}

/// Places an order. The order, its event and its deadline are committed together or not at all.
pub(super) async fn place(
    tx: &mut PgConnection,
    outbox: &Outbox,
    basket: &Basket,
    release: Release,
    deadline: TimeDelta,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    sqlx::query("insert into orders (order_id, customer, total_cents) values ($1, $2, $3)")
        .bind(&basket.order_id)
        .bind(&basket.customer)
        .bind(basket.total_cents)
        .execute(&mut *tx)
        .await?;
    let Basket { order_id, customer, lines, total_cents, request_id } = basket;
    let event = |event_type| NewEvent::new("order", order_id, event_type).header("correlation-id", request_id);
    let placed = match (release, lines.as_slice()) {
        (Release::Old, [line]) => event("OrderPlaced").json(&json!({
            "orderId": order_id, "customer": customer, "totalCents": total_cents, "sku": line.sku, "quantity": line.quantity
        }))?,
        _ => event("OrderPlaced").version(2).json(&json!({
            "orderId": order_id, "customer": customer, "totalCents": total_cents, "lines": lines
        }))?,
    };
    outbox.emit(tx, &placed).await?;
    // The deadline needs no timer: the relay publishes this event when it is due, and this service reads it.
    let overdue = event("OrderOverdue").json(&json!({"orderId": order_id}))?.available_at(Utc::now() + deadline);
    outbox.emit(tx, &overdue).await?;
    Ok(())
}

/// The order's id, the only member that this service needs of all these events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfOrder {
    order_id: String,
}

pub(super) fn consumer(context: &ServiceContext) -> Consumer {
    context
        .consumer()
        .topic(context.topic("stock"))
        .topic(context.topic("payment"))
        .topic(context.topic("order"))
        .on("PaymentTaken", 1..=1, confirm)
        .on("StockRefused", 1..=1, |ctx, event: OfOrder| cancel(ctx, event, "out of stock"))
        .on("PaymentRefused", 1..=1, |ctx, event: OfOrder| cancel(ctx, event, "payment refused"))
        .on("OrderOverdue", 1..=1, |ctx, event: OfOrder| cancel(ctx, event, "no answer in time"))
}

async fn confirm(mut ctx: Context, event: OfOrder) -> Result<(), Failed> {
    end(&mut ctx, &event.order_id, "confirmed", "OrderConfirmed", None).await
}

async fn cancel(mut ctx: Context, event: OfOrder, reason: &'static str) -> Result<(), Failed> {
    end(&mut ctx, &event.order_id, "cancelled", "OrderCancelled", Some(reason)).await
}

async fn end(
    ctx: &mut Context,
    order_id: &str,
    state: &str,
    event_type: &str,
    reason: Option<&str>,
) -> Result<(), Failed> {
    let ended = "update orders set state = $2, reason = $3 where order_id = $1 and state = 'open' returning customer";
    let customer: Option<String> =
        sqlx::query_scalar(ended).bind(order_id).bind(state).bind(reason).fetch_optional(ctx.tx()).await?;
    // None: the order has ended before. This is a late answer, or the deadline of a finished order.
    if let Some(customer) = customer {
        let event = NewEvent::new("order", order_id, event_type);
        ctx.emit(event.json(&json!({"orderId": order_id, "customer": customer, "reason": reason}))?).await?;
    }
    Ok(())
}
