//! What the early look rests on, read from telemetry and written down before it is acted on.
//!
//! Only devices with new windows are read, for many in one statement; each is written once, when it
//! has shown enough ([`member_change`]). So a tick's work is bounded, and a server killed at any
//! moment finds what it had seen.

use super::gate::period_of;
use super::{ExecuteError, View};
use crate::drift::early::{EarlyInput, applies, member_change};
use crate::rollout::pairs::{self, Entry, OpenMember};
use crate::store::{SpanEnd, SpanQuery, SpanSum, StageKey, Store};
use dunlin_protocol::id::Digest;

/// Most windows whose senders one tick looks up.
const WINDOWS_A_TICK: u32 = 2000;
/// Most devices that enter in one tick, since the time before is read for each.
const ENTRIES_A_TICK: usize = 50;

/// What the stage's pairs have shown by now; `None` if the policy wants no early look, nothing
/// runs, or the stage has no controls.
pub(super) async fn look(
    store: &Store,
    view: &View<'_>,
    baseline_ms: i64,
    now_ms: i64,
) -> Result<Option<EarlyInput>, ExecuteError> {
    let (Some(policy), Some(stage)) = (&view.policy.gate, view.stage()) else {
        return Ok(None);
    };
    let pairs = pairs::of_stage(&view.fleet, stage);
    let drawn = pairs.len() as u64;
    if policy.early.is_none() || drawn == 0 {
        return Ok(None);
    }
    if !applies(policy, drawn) {
        return Ok(Some(pairs::input(&pairs, &[])));
    }
    let key = StageKey {
        rollout: &view.rollout.id,
        stage,
    };
    let mut entries = store.rollout_entries(key).await?;
    let reader = Reader {
        store,
        view,
        needed: policy.min_inferences.max(1),
        baseline_ms,
        now_ms,
    };
    let Some(mark) = store.rollout_mark(key).await? else {
        // What counts is still to come, or its senders are heard of again.
        let newest = store.newest_window_mark().await?;
        store.enter(key, &[], newest, now_ms).await?;
        return Ok(Some(pairs::input(&pairs, &entries)));
    };
    let open = pairs::open(&pairs, &entries);
    if open.is_empty() {
        // Nobody to look for: what came meanwhile need not be looked through once there is.
        let newest = store.newest_window_mark().await?;
        if newest.saturating_sub(mark) >= i64::from(WINDOWS_A_TICK) {
            store.enter(key, &[], newest, now_ms).await?;
        }
    } else {
        let new = store
            .new_windows(&view.rollout.family, mark, WINDOWS_A_TICK)
            .await?;
        let heard: Vec<_> = open
            .into_iter()
            .filter(|member| new.devices.contains(member.device))
            .collect();
        let (entered, is_all) = reader.enter(&heard).await?;
        // What was put off is found again behind the old mark.
        let old = mark;
        let mark = if is_all { new.mark } else { old };
        if !entered.is_empty() || mark != old {
            store.enter(key, &entered, mark, now_ms).await?;
            entries = store.rollout_entries(key).await?;
        }
    }
    Ok(Some(pairs::input(&pairs, &entries)))
}

/// What reads members' windows.
struct Reader<'a> {
    store: &'a Store,
    view: &'a View<'a>,
    /// Usable inferences needed in each period.
    needed: u64,
    baseline_ms: i64,
    now_ms: i64,
}

impl Reader<'_> {
    /// Those of the members that have shown enough, or never will; and whether that is all of them
    /// rather than the most that one tick takes.
    async fn enter(&self, members: &[OpenMember<'_>]) -> Result<(Vec<Entry>, bool), ExecuteError> {
        let after = self.after(members).await?;
        let mut due: Vec<_> = members
            .iter()
            .zip(after)
            .filter(|(_, after)| after.is_full || after.sum.usable() >= self.needed)
            .collect();
        let is_all = due.len() <= ENTRIES_A_TICK;
        due.truncate(ENTRIES_A_TICK);
        let before = self.before(due.iter().map(|(member, _)| *member)).await?;
        let entries = due
            .into_iter()
            .zip(before)
            .map(|((member, after), before)| {
                let (before, after) = (period_of(Some(before.sum)), period_of(Some(after.sum)));
                Entry {
                    device: member.device.to_owned(),
                    change_nano: member_change(&before, &after, self.needed),
                }
            });
        Ok((entries.collect(), is_all))
    }

    async fn spans<'m>(
        &self,
        asked: impl Iterator<Item = (&'m OpenMember<'m>, Option<Digest>, i64, i64)>,
        end: SpanEnd,
    ) -> Result<Vec<SpanSum>, ExecuteError> {
        let mut queries = Vec::new();
        // Whoever has no such bundle shows nothing of it.
        let has_bundle: Vec<bool> = asked
            .map(|(member, bundle, from_ms, until_ms)| {
                let row = self
                    .view
                    .index_of(member.device)
                    .map(|at| &self.view.rows[at]);
                let query = row.zip(bundle).map(|(row, bundle)| SpanQuery {
                    device: row.device.clone(),
                    bundle,
                    from_ms,
                    until_ms,
                });
                let has_bundle = query.is_some();
                queries.extend(query);
                has_bundle
            })
            .collect();
        let found = self.store.spans(&self.view.rollout.family, &queries, end);
        let mut found = found.await?.into_iter();
        let sum = |has_bundle| if has_bundle { found.next() } else { None };
        Ok(has_bundle
            .into_iter()
            .map(sum)
            .map(Option::unwrap_or_default)
            .collect())
    }

    fn version_before(&self, member: &OpenMember<'_>) -> Option<Digest> {
        let at = self.view.index_of(member.device)?;
        let before = self.view.rows[at].before.as_ref()?;
        Some(before.digest)
    }

    /// Each member's first inferences since the moment from which it is measured.
    async fn after(&self, members: &[OpenMember<'_>]) -> Result<Vec<SpanSum>, ExecuteError> {
        let first = SpanEnd::First {
            inferences: self.needed,
        };
        let asked = members.iter().map(|member| {
            let bundle = if member.is_canary {
                Some(self.view.rollout.digest)
            } else {
                self.version_before(member)
            };
            (member, bundle, member.from_ms, self.now_ms)
        });
        self.spans(asked, first).await
    }

    /// Each member's last time on the version before, up to the rollout's first assignment.
    async fn before<'m>(
        &self,
        members: impl Iterator<Item = &'m OpenMember<'m>>,
    ) -> Result<Vec<SpanSum>, ExecuteError> {
        let assigned = self
            .view
            .fleet
            .iter()
            .filter_map(|seen| seen.assigned_at_ms);
        let until_ms = assigned.min().unwrap_or(self.now_ms);
        let from_ms = until_ms.saturating_sub(self.baseline_ms);
        let asked = members.map(|member| (member, self.version_before(member), from_ms, until_ms));
        self.spans(asked, SpanEnd::Last).await
    }
}
