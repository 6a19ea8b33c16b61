//! Places orders: most succeed, and every way to fail comes up regularly.

use std::error::Error;
use std::time::Duration;

use chrono::TimeDelta;
use sqlx::{Executor, PgPool};

use super::order::{self, Basket, Line, Release};
use super::service::Service;
use super::snapshot::Databases;
use event_outbox::outbox::Outbox;

/// The stock: more coffee and tea than all orders need, and two jars of honey.
const DELIVERED: &str = "insert into stock (sku, delivered, on_shelf) values ('coffee', 100000, 100000), ('tea', 100000, 100000), ('honey', 2, 2)";

/// The accounts. Eve's bank asks her first, and she does not answer. Dan has no money.
const DEPOSITED: &str = "insert into accounts (customer, deposited, cents, asks_first) values \
     ('ana', 10000000, 10000000, false), ('ben', 10000000, 10000000, false), ('dan', 100, 100, false), ('eve', 10000, 10000, true)";

/// The customers, and the orders that they were told are placed.
#[derive(Debug)]
pub(super) struct Customers {
    pool: PgPool,
    outbox: Outbox,
    deadline: TimeDelta,
    placed: Vec<Basket>,
}

impl Customers {
    /// Fills the stock and the accounts.
    pub(super) async fn open(databases: &Databases, outbox: Outbox, deadline: Duration) -> Result<Self, sqlx::Error> {
        databases.pool(Service::Inventory).execute(DELIVERED).await?;
        databases.pool(Service::Payment).execute(DEPOSITED).await?;
        let deadline = TimeDelta::from_std(deadline).unwrap_or(TimeDelta::MAX);
        Ok(Self { pool: databases.pool(Service::Order).clone(), outbox, deadline, placed: Vec::new() })
    }

    /// Places the order with this number.
    pub(super) async fn order(&mut self, number: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let (basket, release) = basket(number);
        let mut tx = self.pool.begin().await?;
        order::place(&mut tx, &self.outbox, &basket, release, self.deadline).await?;
        tx.commit().await?;
        self.placed.push(basket);
        Ok(())
    }

    /// Returns the placed orders.
    pub(super) fn placed(&self) -> &[Basket] {
        &self.placed
    }
}

fn basket(number: usize) -> (Basket, Release) {
    let line = |sku: &str, quantity| Line { sku: sku.to_owned(), quantity };
    let (customer, lines) = match number % 8 {
        2 => ("eve", vec![line("tea", 1)]),
        4 => ("dan", vec![line("tea", 2), line("coffee", 1)]),
        6 => ("ana", vec![line("coffee", 1), line("honey", 3)]),
        0 | 3 => ("ben", vec![line("tea", 1), line("coffee", 2)]),
        _ => ("ana", vec![line("coffee", 1)]),
    };
    let units: i64 = lines.iter().map(|line| line.quantity).sum();
    // The old checkout allows one article per order.
    let release = if lines.len() == 1 { Release::Old } else { Release::New };
    let basket = Basket {
        order_id: format!("o-{number:03}"),
        request_id: format!("req-{number:03}"),
        customer: customer.to_owned(),
        lines,
        total_cents: units * 450,
    };
    (basket, release)
}
