//! Sends mails: tells the customer how the order ended.

use serde::Deserialize;
use serde_json::json;

use super::context::ServiceContext;
use event_outbox::consumer::{Consumer, Context, Failed};
use event_outbox::event::NewEvent;

/// The tables of the service.
pub(super) const TABLES: &str = include_str!("mail.sql");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderEnded {
    order_id: String,
    customer: String,
    reason: Option<String>,
}

pub(super) fn consumer(context: &ServiceContext) -> Consumer {
    context
        .consumer()
        .topic(context.topic("order"))
        .on("OrderConfirmed", 1..=1, |ctx, order| send(ctx, order, "confirmed"))
        .on("OrderCancelled", 1..=1, |ctx, order| send(ctx, order, "cancelled"))
}

async fn send(mut ctx: Context, order: OrderEnded, how: &str) -> Result<(), Failed> {
    let subject = match &order.reason {
        Some(reason) => format!("your order is {how}: {reason}"),
        None => format!("your order is {how}"),
    };
    // A mail cannot be rolled back. The provider gets the event's id as a key and recognises repetitions by it.
    let event_id = ctx.event().event_id.0;
    sqlx::query(
        "insert into sent_mails (event_id, order_id, recipient, subject) values ($1, $2, $3, $4) on conflict do nothing",
    )
    .bind(event_id)
    .bind(&order.order_id)
    .bind(&order.customer)
    .bind(&subject)
    .execute(ctx.tx())
    .await?;
    let event = NewEvent::new("mail", &order.order_id, "MailSent");
    ctx.emit(event.json(&json!({"orderId": order.order_id, "subject": subject}))?).await?;
    Ok(())
}
