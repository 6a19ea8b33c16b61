//! Runs the steps of an order. Each is one transaction of an application: it changes the application's table and writes the event.

use rand::Rng;
use sqlx::PgConnection;
use uuid::Uuid;

use super::SOURCE;

/// The types of the events.
pub(in crate::demo::shop) const EVENT_TYPES: [&str; 3] = ["OrderPlaced", "OrderPaid", "OrderShipped"];

/// Names with special characters. Kafka has to return the payload bytes exactly as Postgres prints them, and these names show any change.
const CUSTOMERS: [&str; 4] = ["Zoë Müller", "李小龙", "O'Brien \\\"Bob\\\"", "Ada 🚀 Lovelace"];

/// An order of a customer.
#[derive(Debug, Clone)]
pub(super) struct Order {
    id: String,
    customer: &'static str,
    cents: u32,
}

/// The next step of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Place,
    Pay,
    Ship,
}

impl Order {
    pub(super) fn new(number: u64) -> Self {
        let mut random = rand::rng();
        let customer = CUSTOMERS[random.random_range(0..CUSTOMERS.len())];
        Self { id: format!("order-{number:06}"), customer, cents: random.random_range(100..100_000) }
    }

    /// Returns the payload. It has digits beyond the precision of a double, as in bookkeeping.
    fn payload(&self, state: &str) -> String {
        let Self { id, customer, cents } = self;
        let (euros, cents) = (cents / 100, cents % 100);
        format!(
            r#"{{"orderId": "{id}", "customer": "{customer}", "state": "{state}", "total": {euros}.{cents:02},
                "entry": 12345678901234567890.{cents:02}, "items": [{{"sku": "A-17", "quantity": 2}}, {{"sku": "B-4", "quantity": 1}}]}}"#
        )
    }
}

impl Step {
    pub(super) const FIRST: Self = Self::Place;

    pub(super) fn next(self) -> Option<Self> {
        match self {
            Self::Place => Some(Self::Pay),
            Self::Pay => Some(Self::Ship),
            Self::Ship => None,
        }
    }

    /// Takes the step in the caller's transaction and returns the event's id.
    pub(super) async fn write(self, conn: &mut PgConnection, order: &Order) -> Result<Uuid, sqlx::Error> {
        match self {
            Self::Place => place(conn, order).await,
            Self::Pay => pay(conn, order).await,
            Self::Ship => ship(conn, order).await,
        }
    }
}

async fn place(conn: &mut PgConnection, order: &Order) -> Result<Uuid, sqlx::Error> {
    sqlx::query("insert into demo_orders (order_id, state, total) values ($1, 'placed', $2 / 100.0)")
        .bind(&order.id)
        .bind(i64::from(order.cents))
        .execute(&mut *conn)
        .await?;
    emit(conn, order, "OrderPlaced", "placed").await
}

/// Pays with a plain insert. The lock on the order's row keeps two payments of one order apart.
async fn pay(conn: &mut PgConnection, order: &Order) -> Result<Uuid, sqlx::Error> {
    sqlx::query("select from demo_orders where order_id = $1 for update").bind(&order.id).execute(&mut *conn).await?;
    sqlx::query("update demo_orders set state = 'paid' where order_id = $1")
        .bind(&order.id)
        .execute(&mut *conn)
        .await?;
    sqlx::query_scalar(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
         values ('order', $1, 'OrderPaid', $2::jsonb, jsonb_build_object('source', $3::text)) returning event_id",
    )
    .bind(&order.id)
    .bind(order.payload("paid"))
    .bind(SOURCE)
    .fetch_one(conn)
    .await
}

async fn ship(conn: &mut PgConnection, order: &Order) -> Result<Uuid, sqlx::Error> {
    sqlx::query("update demo_orders set state = 'shipped' where order_id = $1")
        .bind(&order.id)
        .execute(&mut *conn)
        .await?;
    emit(conn, order, "OrderShipped", "shipped").await
}

async fn emit(conn: &mut PgConnection, order: &Order, event_type: &str, state: &str) -> Result<Uuid, sqlx::Error> {
    sqlx::query_scalar("select outbox_emit('order', $1, $2, $3::jsonb, jsonb_build_object('source', $4::text))")
        .bind(&order.id)
        .bind(event_type)
        .bind(order.payload(state))
        .bind(SOURCE)
        .fetch_one(conn)
        .await
}
