//! What the pipelines' process says, in the device's metrics and events.

use super::Shell;
use crate::pipeline::queue::Counts;
use crate::pipeline::{ChildEvent, Progress};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest wait for their last words.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Every pipeline's counters over all lives of their process.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Of lives that ended, and of the one that lives.
    counts: BTreeMap<String, (Counts, Counts)>,
    deaths: u64,
}

impl Tally {
    fn said(&mut self, progress: Progress) {
        self.counts.entry(progress.pipeline).or_default().1 = progress.counts;
    }

    /// What waited or was in work is with its source again.
    fn died(&mut self) {
        self.deaths += 1;
        for (before, now) in self.counts.values_mut() {
            *before = sum(before, now);
            before.returned = [
                before.answered,
                before.failed,
                before.dropped_oldest,
                before.dropped_newest,
            ]
            .into_iter()
            .fold(before.received, u64::saturating_sub);
            before.waiting = 0;
            *now = Counts::default();
        }
    }

    pub(super) fn metrics(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let deaths = (!self.counts.is_empty()).then(|| ("pipeline_deaths".to_owned(), self.deaths));
        let each = self.counts.iter().flat_map(|(name, (before, now))| {
            let counts = sum(before, now);
            [
                ("received", counts.received),
                ("answered", counts.answered),
                ("failed", counts.failed),
                ("dropped_oldest", counts.dropped_oldest),
                ("dropped_newest", counts.dropped_newest),
                ("returned", counts.returned),
                ("waiting", counts.waiting),
            ]
            .map(|(what, n)| (format!("pipeline.{name}.{what}"), n))
        });
        deaths.into_iter().chain(each)
    }
}

fn sum(a: &Counts, b: &Counts) -> Counts {
    Counts {
        received: a.received.saturating_add(b.received),
        answered: a.answered.saturating_add(b.answered),
        failed: a.failed.saturating_add(b.failed),
        dropped_oldest: a.dropped_oldest.saturating_add(b.dropped_oldest),
        dropped_newest: a.dropped_newest.saturating_add(b.dropped_newest),
        returned: a.returned.saturating_add(b.returned),
        waiting: a.waiting.saturating_add(b.waiting),
    }
}

impl Shell {
    pub(super) async fn pipeline_event(&mut self, event: ChildEvent) {
        match event {
            ChildEvent::Says(progress) => {
                for reason in &progress.reasons {
                    // Waiting for a model or a broker is the state of things, not an event.
                    if reason.code == "record" {
                        let detail = format!(
                            "{}: {} ({} since the last time)",
                            progress.pipeline, reason.detail, reason.times
                        );
                        self.record_event("pipeline_record_failed", detail, None)
                            .await;
                    }
                }
                self.live.pipelines.said(progress);
            }
            ChildEvent::Died(how) => {
                tracing::warn!(%how, "the pipelines' process died");
                self.live.pipelines.died();
                let detail = format!("the pipelines' process died: {how}");
                self.record_event("pipelines_died", detail, None).await;
            }
        }
    }

    /// Ends them while the worker still answers, and takes their last counters.
    pub(super) async fn end_pipelines(&mut self) {
        if self.pipelines.take().is_none() {
            return;
        }
        let end = tokio::time::Instant::now() + END_TIMEOUT;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.pipeline_events.recv()).await
        {
            if let ChildEvent::Says(progress) = event {
                self.live.pipelines.said(progress);
            }
        }
        self.record_metrics().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(counts: Counts) -> Progress {
        Progress {
            pipeline: "line3".to_owned(),
            counts,
            reasons: Vec::new(),
        }
    }

    #[test]
    fn counters_go_on_after_a_death_and_what_was_in_work_is_returned() {
        let mut tally = Tally::default();
        let first = Counts {
            received: 10,
            answered: 4,
            failed: 1,
            dropped_oldest: 1,
            returned: 1,
            waiting: 2,
            ..Counts::default()
        };
        tally.said(progress(first));
        tally.died();
        tally.said(progress(Counts {
            received: 3,
            answered: 2,
            waiting: 1,
            ..Counts::default()
        }));
        let metrics: BTreeMap<_, _> = tally.metrics().collect();
        for (name, n) in [
            ("pipeline_deaths", 1),
            ("pipeline.line3.received", 13),
            ("pipeline.line3.answered", 6),
            ("pipeline.line3.returned", 4),
            ("pipeline.line3.waiting", 1),
        ] {
            assert_eq!(metrics.get(name), Some(&n), "{name}");
        }
    }
}
