//! Runs the inventory: sets goods aside for an order, and puts them back if the order is cancelled.
//!
//! Both events are on the orders' topic with the order's id as the key, so they arrive in order: nothing is put back before it was set
//! aside.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::context::ServiceContext;
use event_outbox::consumer::{Consumer, Context, Failed};
use event_outbox::event::NewEvent;

/// The tables of the service.
pub(super) const TABLES: &str = include_str!("inventory.sql");

/// Version 2 of the event, which the handler takes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    customer: String,
    total_cents: i64,
    lines: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    sku: String,
    quantity: i64,
}

/// Version 1 of the event, which has one article.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlacedV1 {
    order_id: String,
    customer: String,
    total_cents: i64,
    sku: String,
    quantity: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderCancelled {
    order_id: String,
}

pub(super) fn consumer(context: &ServiceContext) -> Consumer {
    context
        .consumer()
        .topic(context.topic("order"))
        // The old release of the checkout still writes version 1.
        .upcast("OrderPlaced", 1, upcast)
        .on("OrderPlaced", 2..=2, reserve)
        .on("OrderCancelled", 1..=1, release)
}

fn upcast(old: OrderPlacedV1) -> Result<OrderPlaced, Failed> {
    let OrderPlacedV1 { order_id, customer, total_cents, sku, quantity } = old;
    Ok(OrderPlaced { order_id, customer, total_cents, lines: vec![Line { sku, quantity }] })
}

async fn reserve(mut ctx: Context, mut order: OrderPlaced) -> Result<(), Failed> {
    // Every handler locks goods in the same order. Otherwise two orders of the same goods could deadlock.
    order.lines.sort_by(|one, two| one.sku.cmp(&two.sku));
    // A savepoint: all lines or none are set aside, and the answer is written in either case.
    let mut all = ctx.tx().begin().await?;
    let mut missing = None;
    for line in &order.lines {
        if !set_aside(&mut all, &order.order_id, line).await? {
            missing = Some(&line.sku);
            break;
        }
    }
    let answer = match missing {
        None => {
            all.commit().await?;
            NewEvent::new("stock", &order.order_id, "StockReserved").json(
                &json!({"orderId": order.order_id, "customer": order.customer, "totalCents": order.total_cents}),
            )?
        }
        Some(sku) => {
            all.rollback().await?;
            NewEvent::new("stock", &order.order_id, "StockRefused")
                .json(&json!({"orderId": order.order_id, "sku": sku}))?
        }
    };
    ctx.emit(answer).await?;
    Ok(())
}

/// Sets the goods of one line aside. Returns false if the stock is too small.
async fn set_aside(tx: &mut PgConnection, order_id: &str, line: &Line) -> Result<bool, sqlx::Error> {
    let sql = "with taken as (update stock set on_shelf = on_shelf - $3 where sku = $2 and on_shelf >= $3 returning sku) \
               insert into reservations (order_id, sku, quantity) select $1, sku, $3 from taken";
    let done = sqlx::query(sql).bind(order_id).bind(&line.sku).bind(line.quantity).execute(tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Compensates `reserve`. A refused order has nothing set aside, so there is no event for it.
async fn release(mut ctx: Context, order: OrderCancelled) -> Result<(), Failed> {
    let sql = "with back as (delete from reservations where order_id = $1 returning sku, quantity) \
               update stock set on_shelf = on_shelf + quantity from back where stock.sku = back.sku";
    let released = sqlx::query(sql).bind(&order.order_id).execute(ctx.tx()).await?.rows_affected();
    if released > 0 {
        let event = NewEvent::new("stock", &order.order_id, "StockReleased");
        ctx.emit(event.json(&json!({"orderId": order.order_id}))?).await?;
    }
    Ok(())
}
