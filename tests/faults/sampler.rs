//! Watches the rows during a trial, for guarantee G6: PUBLISHED and DEAD rows stay unchanged.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_outbox::ledger::RowStatus;
use sqlx::AssertSqlSafe;
use tokio::task::JoinHandle;
use uuid::Uuid;

use lab::Outbox;
use lab::book::status;

const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Looking may take this share of the time.
const SHARE: u32 = 10;

/// A task that reads the rows until its result is wanted.
#[derive(Debug)]
pub(crate) struct Sampler {
    ends: Arc<AtomicBool>,
    task: JoinHandle<Vec<(Uuid, RowStatus)>>,
}

impl Sampler {
    pub(crate) fn start(outbox: &Outbox) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(sample(outbox.clone(), Arc::clone(&ends)));
        Self { ends, task }
    }

    /// Returns every observed change, in order. Reads the rows one last time after this call.
    pub(crate) async fn end(self) -> anyhow::Result<Vec<(Uuid, RowStatus)>> {
        self.ends.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

async fn sample(outbox: Outbox, ends: Arc<AtomicBool>) -> Vec<(Uuid, RowStatus)> {
    let (mut known, mut changes) = (HashMap::new(), Vec::new());
    loop {
        let last = ends.load(Ordering::Relaxed);
        let began = Instant::now();
        // The server may be down or the table locked; then there is nothing to read.
        if let Ok(rows) = look(&outbox).await {
            for (event, status) in rows {
                if known.insert(event, status) != Some(status) {
                    changes.push((event, status));
                }
            }
        }
        if last {
            return changes;
        }
        tokio::time::sleep(BETWEEN_LOOKS.max(began.elapsed() * SHARE)).await;
    }
}

async fn look(outbox: &Outbox) -> anyhow::Result<Vec<(Uuid, RowStatus)>> {
    let all = AssertSqlSafe(format!("select event_id, status from {}", outbox.events()));
    let rows: Vec<(Uuid, String)> = sqlx::query_as(all).fetch_all(&mut outbox.connect().await?).await?;
    rows.into_iter().map(|(event, text)| Ok((event, status(&text)?))).collect()
}
