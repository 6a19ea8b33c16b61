//! Reads the four schemas, each on its own connections, because services of different databases could not join them either.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::order::Basket;
use super::service::Service;
use crate::demo::outbox_row::OutboxRow;
use crate::demo::watch::Sighting;

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
    /// The rows of the outboxes.
    pub(super) events: Vec<OutboxRow>,
    /// The records of the topics, without dead letters.
    pub(super) sightings: Vec<Sighting>,
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
            events.extend(OutboxRow::read_all(pool(service), until).await?);
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
