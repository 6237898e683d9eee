//! How those who come are let in: one after another, into a bounded number of places.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Pause when the process is out of file descriptors or the like.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(200);

/// Waits for a place, and then for somebody to take it; `None` once `token` is cancelled. What goes wrong meanwhile passes:
/// it is logged behind `complaint`, and tried again.
pub async fn next<T, F: Future<Output = io::Result<T>>>(
    places: &Arc<Semaphore>,
    token: &CancellationToken,
    complaint: &'static str,
    accept: impl Fn() -> F,
) -> Option<(T, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    loop {
        // Both branches are cancellation-safe: a connection is taken from the kernel whole or not at all.
        let accepted = tokio::select! {
            accepted = accept() => accepted,
            () = token.cancelled() => return None,
        };
        match accepted {
            Ok(connection) => return Some((connection, place)),
            Err(error) => {
                tracing::warn!("{complaint}: {error}");
                sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}
