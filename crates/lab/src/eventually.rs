//! Waits for the work of another process or task.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The longest wait for anything that works, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Polls until the probe returns `Ok`, and returns its value. The probe's `Err` describes the state that it saw instead.
///
/// # Panics
/// Panics with the last state if the probe has not returned `Ok` within the given time.
pub async fn eventually<T, S, P>(what: &str, within: Duration, mut probe: impl FnMut() -> P) -> T
where
    S: Debug,
    P: Future<Output = Result<T, S>>,
{
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_millis(2);
    loop {
        let state = match probe().await {
            Ok(reached) => return reached,
            Err(state) => state,
        };
        assert!(Instant::now() < deadline, "not within {within:?}: {what}; last state: {state:?}");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Polls until the probe returns `Ok(0)`: the work that is left, in any unit. A slow machine has any time as long as the rest gets smaller.
///
/// # Panics
/// Panics if the rest has not become smaller for the given time.
pub async fn until_nothing_is_left<P>(what: &str, patience: Duration, mut probe: impl FnMut() -> P)
where
    P: Future<Output = anyhow::Result<i64>>,
{
    let mut least = i64::MAX;
    loop {
        let rest = eventually(what, patience, || {
            let rest = probe();
            async move {
                match rest.await {
                    Ok(left) if left < least => Ok(left),
                    other => Err(other),
                }
            }
        });
        match rest.await {
            left if left <= 0 => return,
            left => least = left,
        }
    }
}
