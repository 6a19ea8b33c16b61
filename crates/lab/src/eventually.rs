//! Waiting for something that another process or task does.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Long enough for anything that works, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(30);

/// Polls until the probe returns `Ok`, and returns that. The probe's `Err` is the state it saw instead.
///
/// # Panics
/// When it has not come to that within the given time; with the last state.
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
