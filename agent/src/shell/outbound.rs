//! What leaves the supervisor: reports, telemetry, and the last words. Nothing here may hold the
//! loop up: a full queue to the connection drops what is sent again anyway, and the telemetry
//! buffer, whose disk may hang, is waited for a moment only.

use super::{Shell, now_ms, record};
use crate::bundle::verify::TrustStore;
use crate::files::Disk;
use crate::mqtt::Outgoing;
use crate::pipe::FromWorker;
use crate::telemetry::TelemetryError;
use crate::worker::WorkerEvent;
use dunlin_protocol::command::Ack;
use dunlin_protocol::id::Digest;
use dunlin_protocol::telemetry::Record;
use dunlin_protocol::topic::Channel;
use std::time::Duration;

/// Longest wait for the telemetry buffer while serving.
const BUFFER_MS: u64 = 1_000;
/// Longest wait for the worker's last windows; the worker itself is given ten seconds.
const LAST_WINDOWS_MS: u64 = 12_000;
/// Longest wait for the buffer to be made durable, and for its end.
const CLOSE_MS: u64 = 5_000;
/// Longest wait for the goodbye to be said.
const GOODBYE_MS: u64 = 5_000;

/// Waits for the buffer, for a moment; `None` if it does not answer.
async fn soon<T>(what: &'static str, answer: impl Future<Output = T>) -> Option<T> {
    within(BUFFER_MS, what, answer).await
}

async fn within<T>(
    limit_ms: u64,
    what: &'static str,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let answer = tokio::time::timeout(Duration::from_millis(limit_ms), answer).await;
    if answer.is_err() {
        tracing::warn!(what, limit_ms, "no answer in time");
    }
    answer.ok()
}

impl Shell {
    /// `false`: not connected, or more is under way than the connection takes.
    fn send(&self, channel: Channel, payload: Vec<u8>) -> bool {
        match &self.link {
            Some(link) if self.connected => link.send(Outgoing { channel, payload }),
            _ => false,
        }
    }

    pub(super) fn send_report(&mut self) {
        let mut reported = self.updater.state().reported(crate::VERSION);
        let trust = TrustStore::new(&Disk::native(), &self.settings.state_dir);
        reported.trust = trust.trusted_versions();
        reported.capture = Some(self.captures.report());
        match serde_json::to_vec(&reported) {
            // One that finds no connection is owed to none: every connection begins with one.
            Ok(payload) => {
                let sent = self.send(Channel::Reported, payload);
                self.report_owed = self.connected && !sent;
            }
            Err(e) => tracing::error!(error = %e, "the reported state cannot be written as JSON"),
        }
    }

    pub(super) async fn send_telemetry(&self) {
        if !self.connected {
            return;
        }
        let batch = soon("telemetry buffer: next batch", self.telemetry.next_batch()).await;
        for segment in batch.unwrap_or_default() {
            if !self.send(segment.class.channel(), segment.payload) {
                // What is not acknowledged is given out again after ten seconds.
                return;
            }
        }
    }

    pub(super) async fn reset_inflight(&self) {
        let _ = soon("telemetry buffer: reset", self.telemetry.reset_inflight()).await;
    }

    pub(super) async fn acknowledged(&self, ack: Ack) {
        let _ = soon("telemetry buffer: acknowledgement", self.telemetry.ack(ack)).await;
    }

    pub(super) async fn push(&mut self, record: Record) {
        let pushed = soon("telemetry buffer: record", self.telemetry.push(record)).await;
        self.note_push(pushed);
    }

    /// Windows that have closed, and what those that are open have counted so far.
    pub(super) async fn push_windows(&mut self, closed: Vec<Record>, open: Vec<Record>) {
        let windows = self.telemetry.windows(closed, open);
        let pushed = soon("telemetry buffer: windows", windows).await;
        self.note_push(pushed);
    }

    fn note_push(&mut self, pushed: Option<Result<(), TelemetryError>>) {
        match pushed {
            Some(Ok(())) => {}
            Some(Err(e)) => {
                let dropped = self.live.record_dropped();
                tracing::error!(error = %e, dropped, "a telemetry record could not be buffered");
            }
            None => {
                let dropped = self.live.record_dropped();
                tracing::error!(
                    dropped,
                    "the telemetry buffer does not take records: one is dropped"
                );
            }
        }
    }

    pub(super) async fn record_event(
        &mut self,
        code: &str,
        detail: String,
        bundle: Option<Digest>,
    ) {
        let event = record::event(now_ms(), code, &detail, bundle);
        tracing::info!(code, %detail, "event");
        self.push(event).await;
    }

    pub(super) async fn record_metrics(&mut self) {
        let stats = soon("telemetry buffer: statistics", self.telemetry.stats()).await;
        let stats = stats.unwrap_or_default();
        let health = self.health.read();
        let state = self.updater.state();
        let record = self.live.metrics(now_ms(), state, &stats, health);
        self.push(record).await;
    }

    /// Ends in order: no more updates, the worker's last windows, then the buffer, then the
    /// connection. Every part is waited for with an end.
    pub(super) async fn drain(mut self) {
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        tracing::info!("draining");
        self.updater.close();
        self.end_pipelines().await;
        self.worker = None;
        let end = tokio::time::Instant::now() + Duration::from_millis(LAST_WINDOWS_MS);
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.worker_events.recv()).await {
            match event {
                WorkerEvent::Says(FromWorker::Window(window)) => self.windows.closed(*window),
                WorkerEvent::Says(FromWorker::Open(window)) => self.windows.open(*window),
                WorkerEvent::Says(FromWorker::Detectors { bundle, state }) => {
                    self.detectors.keep(bundle, *state);
                }
                WorkerEvent::Says(FromWorker::Captured { sealed, lost }) => {
                    self.captures.keep(sealed, lost, now_ms());
                }
                _ => {}
            }
        }
        // All that its last words left open, if it did not come to say that all has closed.
        let left = self.windows.died(now_ms());
        self.push_windows(left, Vec::new()).await;
        let said = within(CLOSE_MS, "captured samples: end", self.captures.close()).await;
        for said in said.unwrap_or_default() {
            self.record_event(said.code, said.detail, None).await;
        }
        tokio::task::block_in_place(|| self.detectors.write());
        let flushed = within(CLOSE_MS, "telemetry buffer: flush", self.telemetry.flush()).await;
        if let Some(Err(e)) = flushed {
            tracing::error!(error = %e, "the telemetry buffer could not be made durable");
        }
        self.send_telemetry().await;
        self.link = None;
        let said = async { while self.incoming.recv().await.is_some() {} };
        let _ = within(GOODBYE_MS, "goodbye to the broker", said).await;
        let _ = within(CLOSE_MS, "telemetry buffer: end", self.telemetry.close()).await;
        tracing::info!("stopped");
    }
}
