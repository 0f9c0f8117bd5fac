//! What the gate asks for, read from telemetry.

use super::{ExecuteError, View};
use crate::drift::gate::{DeviceSample, GateInput, Period};
use crate::rollout::report::GateRequest;
use crate::store::{PeriodQuery, PeriodSum, Store};

/// Reads what the gate asks for: each device's own time on the version before, and the span
/// since the stage's last success.
pub(super) async fn input(
    store: &Store,
    view: &View<'_>,
    request: &GateRequest,
    baseline_ms: i64,
) -> Result<GateInput, ExecuteError> {
    let mut queries = Vec::new();
    let sides = request
        .canaries
        .iter()
        .map(|d| (d, true))
        .chain(request.controls.iter().map(|d| (d, false)));
    let mut samples: Vec<(bool, DeviceSample, bool)> = Vec::new();
    for (device, is_canary) in sides {
        let row = view.index_of(device).map(|at| &view.rows[at]);
        let before = row
            .and_then(|row| row.before.as_ref())
            .map(|before| before.digest);
        let sample = DeviceSample {
            device: device.clone(),
            before: Period::default(),
            after: Period::default(),
        };
        let (Some(row), Some(before)) = (row, before) else {
            // No version before: a shortage, which the gate names.
            samples.push((is_canary, sample, false));
            continue;
        };
        samples.push((is_canary, sample, true));
        let period = |bundle, from_ms, until_ms| PeriodQuery {
            device: row.device.clone(),
            bundle,
            from_ms,
            until_ms,
        };
        let from_ms = request.before_until_ms.saturating_sub(baseline_ms);
        queries.push(period(before, from_ms, request.before_until_ms));
        let after = if is_canary {
            view.rollout.digest
        } else {
            before
        };
        queries.push(period(after, request.after_from_ms, request.after_until_ms));
    }
    let mut sums = store
        .periods(&view.rollout.family, &queries)
        .await?
        .into_iter();
    let mut input = GateInput::default();
    for (is_canary, mut sample, was_asked) in samples {
        if was_asked {
            sample.before = period_of(sums.next());
            sample.after = period_of(sums.next());
        }
        if is_canary {
            &mut input.canaries
        } else {
            &mut input.controls
        }
        .push(sample);
    }
    Ok(input)
}

pub(super) fn period_of(sum: Option<PeriodSum>) -> Period {
    let PeriodSum {
        inferences,
        confidence_sum_micro,
        outputs,
        ..
    } = sum.unwrap_or_default();
    Period {
        inferences,
        confidence_sum_micro,
        outputs,
    }
}
