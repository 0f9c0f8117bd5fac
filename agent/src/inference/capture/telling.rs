//! From closed windows to sealed batches at the supervisor.

use super::super::models::Served;
use super::{Batch, random};
use crate::pipe::FromWorker;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

/// Seals the samples that are due, beside requests, and tells them.
///
/// # Errors
/// Nobody listens any more.
pub(crate) async fn tell_samples(
    served: &Served,
    alarmed: bool,
    out: &mpsc::Sender<FromWorker>,
) -> Result<(), SendError<FromWorker>> {
    let (batches, mut lost) = served.take_samples(alarmed);
    for batch in batches {
        let sealing = move || random().and_then(|random| Batch::seal(batch, random));
        let sealed = tokio::task::spawn_blocking(sealing).await;
        match sealed.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(sealed) => {
                let lost = std::mem::take(&mut lost);
                out.send(FromWorker::Captured { sealed, lost }).await?;
            }
            Err(problem) => {
                tracing::error!(%problem, "samples not sealed, they are dropped");
                lost += 1;
            }
        }
    }
    Ok(())
}
