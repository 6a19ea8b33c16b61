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
