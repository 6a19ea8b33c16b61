//! Reads the four schemas, each on its own connections, because services of different databases could not join them either.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::order::Basket;
use super::service::Service;

/// The final state of all services, which has to agree.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    /// The orders that customers were told are placed.
    pub(super) placed: Vec<Basket>,
    /// The state of each order by order id.
    pub(super) orders: HashMap<String, String>,
    pub(super) stock: Vec<Stock>,
    /// The reservations: order, article, quantity.
    pub(super) reservations: Vec<(String, String, i64)>,
    pub(super) payments: Vec<Payment>,
    /// The accounts: customer, deposited, remaining.
    pub(super) accounts: Vec<(String, i64, i64)>,
    /// The mails: order, recipient, subject.
    pub(super) mails: Vec<(String, String, String)>,
    pub(super) events: Vec<Event>,
    /// The number of records per event on the topics.
    pub(super) seen: HashMap<Uuid, u64>,
    pub(super) dead_letters: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Stock {
    pub(super) sku: String,
    pub(super) delivered: i64,
    pub(super) on_shelf: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Payment {
    pub(super) order_id: String,
    pub(super) customer: Option<String>,
    pub(super) cents: i64,
    pub(super) state: String,
}

/// A row of one of the outboxes.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) event_id: Uuid,
    pub(super) order_id: String,
    pub(super) event_type: String,
    pub(super) event_version: i32,
    pub(super) status: String,
    pub(super) correlation_id: Option<String>,
    pub(super) causation_id: Option<String>,
    /// False if the event is to be published later.
    pub(super) due: bool,
}

impl Stock {
    fn read(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { sku: row.try_get("sku")?, delivered: row.try_get("delivered")?, on_shelf: row.try_get("on_shelf")? })
    }
}

impl Payment {
    fn read(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            order_id: row.try_get("order_id")?,
            customer: row.try_get("customer")?,
            cents: row.try_get("cents")?,
            state: row.try_get("state")?,
        })
    }
}

impl Event {
    fn read(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            event_id: row.try_get("event_id")?,
            order_id: row.try_get("order_id")?,
            event_type: row.try_get("event_type")?,
            event_version: row.try_get("event_version")?,
            status: row.try_get("status")?,
            correlation_id: row.try_get("correlation_id")?,
            causation_id: row.try_get("causation_id")?,
            due: row.try_get("due")?,
        })
    }
}

/// The connections to the services' schemas.
#[derive(Debug, Clone)]
pub(super) struct Databases(pub(super) HashMap<Service, PgPool>);

impl Databases {
    pub(super) fn pool(&self, service: Service) -> &PgPool {
        &self.0[&service]
    }

    /// Returns the current time of the database, whose clock decides which events are due.
    pub(super) async fn now(&self) -> Result<DateTime<Utc>, sqlx::Error> {
        sqlx::query_scalar("select now()").fetch_one(self.pool(Service::Order)).await
    }

    /// Reads all tables. Events that become due after `until` count as not due.
    pub(super) async fn read(&self, until: DateTime<Utc>) -> Result<Snapshot, sqlx::Error> {
        let pool = |service| self.pool(service);
        let orders: Vec<(String, String)> =
            sqlx::query_as("select order_id, state from orders").fetch_all(pool(Service::Order)).await?;
        let stock = sqlx::query("select sku, delivered, on_shelf from stock").try_map(Stock::read);
        let stock = stock.fetch_all(pool(Service::Inventory)).await?;
        let reservations = sqlx::query_as("select order_id, sku, quantity from reservations")
            .fetch_all(pool(Service::Inventory))
            .await?;
        let payments = sqlx::query("select order_id, customer, cents, state from payments").try_map(Payment::read);
        let payments = payments.fetch_all(pool(Service::Payment)).await?;
        let accounts =
            sqlx::query_as("select customer, deposited, cents from accounts").fetch_all(pool(Service::Payment)).await?;
        let mails = sqlx::query_as("select order_id, recipient, subject from sent_mails")
            .fetch_all(pool(Service::Mail))
            .await?;
        let mut events = Vec::new();
        for service in Service::ALL {
            let rows = sqlx::query(include_str!("events.sql")).bind(until).try_map(Event::read);
            events.extend(rows.fetch_all(pool(service)).await?);
        }
        Ok(Snapshot {
            orders: orders.into_iter().collect(),
            stock,
            reservations,
            payments,
            accounts,
            mails,
            events,
            ..Snapshot::default()
        })
    }
}
