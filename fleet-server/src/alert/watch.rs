//! The loop: look, decide, store.

use super::reading::{self, Heard, Reading};
use super::rule::{Rule, When};
use super::track::{self, Change, Patience, Track, Verdict};
use crate::blobs::Blobs;
use crate::clock;
use crate::drift::query::{self, Drift, DriftError, DriftQuery, SENSITIVITY};
use crate::drift::statistics::{Sensitivity, range};
use crate::store::{
    DeviceFilter, DeviceRow, Look, NewAlert, SilenceRow, Store, StoreError, TrackKey,
};
use dunlin_protocol::id::{Family, FleetId};
use serde_json::{Value, json};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Most subjects a notification names; the rest is counted.
const SUBJECTS_MAX: usize = 50;

/// What the loop needs.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Rules, telemetry and alerts.
    pub store: Store,
    /// References of drift.
    pub blobs: Blobs,
    /// Named in notifications.
    pub fleet: FleetId,
    /// Time between two looks.
    pub every: Duration,
    /// Told when there is something to deliver.
    pub deliver: Arc<Notify>,
}

/// Why there was no look.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The scores.
    #[error(transparent)]
    Drift(#[from] DriftError),
}

impl Watch {
    /// Looks until it is told to stop.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut looks = tokio::time::interval(self.every);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if let Err(error) = self.look(clock::now_ms()).await {
                tracing::error!(%error, "alerts were not looked at");
            }
        }
    }

    /// One look.
    ///
    /// # Errors
    /// [`WatchError`]; nothing has changed then.
    pub async fn look(&self, now_ms: i64) -> Result<(), WatchError> {
        let rules = self.store.alert_rules().await?;
        if rules.is_empty() {
            return Ok(());
        }
        let tracks = self.store.alert_tracks().await?;
        let silences = self.store.silences(now_ms).await?;
        let webhooks: Vec<String> = self
            .store
            .webhooks()
            .await?
            .into_iter()
            .map(|w| w.name)
            .collect();
        let devices = self.store.list_devices(&DeviceFilter::default()).await?;
        let (mut look, mut scored) = (Look::default(), Scored::new());
        for rule in &rules {
            let readings = self.readings(rule, &devices, &mut scored, now_ms).await?;
            let told = decide(rule, readings, &tracks, &silences, now_ms, &mut look);
            for body in bodies(&self.fleet, rule, &told, now_ms) {
                let named =
                    |name: &&String| rule.webhooks.is_empty() || rule.webhooks.contains(name);
                let to = webhooks.iter().filter(named);
                look.deliveries
                    .extend(to.map(|name| (name.clone(), body.to_string())));
            }
        }
        if look != Look::default() {
            self.store.apply_look(&look, now_ms).await?;
            self.deliver.notify_one();
        }
        Ok(())
    }

    async fn readings(
        &self,
        rule: &Rule,
        devices: &[DeviceRow],
        scored: &mut Scored,
        now_ms: i64,
    ) -> Result<BTreeMap<String, Reading>, WatchError> {
        if let When::Silence { after_s, labels } = &rule.when {
            let heard: Vec<Heard> = devices.iter().filter(|d| !d.revoked).map(heard).collect();
            let readings = reading::of_devices(*after_s, labels, &heard, now_ms);
            return Ok(readings
                .into_iter()
                .map(|(device, reading)| (device.to_string(), reading))
                .collect());
        }
        let Some(family) = rule.family() else {
            return Ok(BTreeMap::new());
        };
        let serving = serving(family, devices);
        let (margin, out_of_range_margin) = match &rule.when {
            When::Drift {
                margin,
                out_of_range_margin,
                ..
            } => (*margin, *out_of_range_margin),
            _ => (SENSITIVITY.margin, range::MARGIN),
        };
        let query = DriftQuery {
            family: family.clone(),
            version: None,
            cohort: "all".to_owned(),
            devices: None,
            segment: rule.segment.clone(),
            since_ms: Some(now_ms.saturating_sub(look_back_ms(rule))),
            until_ms: None,
            sensitivity: Sensitivity {
                margin,
                ..SENSITIVITY
            },
            out_of_range_margin,
        };
        let key = (
            family.to_string(),
            rule.segment.clone(),
            rule.look_back_s,
            (margin.to_bits(), out_of_range_margin.to_bits()),
        );
        let drift = match scored.entry(key) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => {
                free.insert(query::drift(&self.store, &self.blobs, &query).await?)
            }
        };
        let readings = reading::of_family(&rule.when, drift, &serving);
        let subject = |version: u64| format!("{family}/{version}");
        Ok(readings
            .into_iter()
            .map(|(version, reading)| (subject(version), reading))
            .collect())
    }
}

/// What one look has scored: rules about the same telemetry share it. By family, segment,
/// look back and the margins' bits.
type Scored = BTreeMap<(String, Option<String>, u64, (u64, u64)), Vec<Drift>>;

fn heard(row: &DeviceRow) -> Heard {
    Heard {
        device: row.device.clone(),
        labels: row.labels.clone(),
        online: row.online,
        last_ms: row.last_seen_ms.unwrap_or(row.enrolled_ms),
    }
}

/// Versions of a family that any device serves.
fn serving(family: &Family, devices: &[DeviceRow]) -> BTreeSet<u64> {
    let models = devices.iter().filter(|d| !d.revoked);
    let models = models.filter_map(|d| d.reported.as_ref()?.of(family));
    models.filter_map(|m| Some(m.active?.version)).collect()
}

/// A subject of which something is to be told.
struct Told {
    subject: String,
    change: Change,
    seen: Value,
}

/// Steps every subject of a rule; what changes goes into the look, what is to be told comes back.
fn decide(
    rule: &Rule,
    mut readings: BTreeMap<String, Reading>,
    tracks: &BTreeMap<TrackKey, Track>,
    silences: &[SilenceRow],
    now_ms: i64,
    look: &mut Look,
) -> Vec<Told> {
    let own = tracks.keys().filter(|(name, _)| *name == rule.name);
    for (_, subject) in own {
        readings.entry(subject.clone()).or_insert(Reading {
            verdict: Verdict::Gone,
            seen: json!({"gone": true}),
        });
    }
    let ms = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX / 1000) * 1000;
    let patience = Patience {
        for_ms: ms(rule.for_s),
        clear_ms: ms(rule.clear_s),
    };
    let mut told = Vec::new();
    for (subject, reading) in readings {
        let key = (rule.name.clone(), subject.clone());
        let before = tracks.get(&key).copied().unwrap_or_default();
        let (after, change) = track::step(before, reading.verdict, patience, now_ms);
        if after != before {
            look.tracks.insert(key.clone(), after);
        }
        let Some(change) = change else {
            continue;
        };
        let silenced = silences.iter().any(|s| is_meant(s, &rule.name, &subject));
        match change {
            Change::Fired { since_ms } => look.fired.push(NewAlert {
                rule: rule.name.clone(),
                subject: subject.clone(),
                severity: severity(rule),
                since_ms,
                silenced,
                seen: reading.seen.clone(),
            }),
            Change::Resolved { .. } => look.resolved.push(key),
        }
        if !silenced {
            told.push(Told {
                subject,
                change,
                seen: reading.seen,
            });
        }
    }
    told
}

fn is_meant(silence: &SilenceRow, rule: &str, subject: &str) -> bool {
    silence.rule.as_ref().is_none_or(|name| name == rule)
        && silence.subject.as_ref().is_none_or(|name| name == subject)
}

fn severity(rule: &Rule) -> String {
    match serde_json::to_value(rule.severity) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// What webhooks are told: one message a rule and look, whatever number of subjects it is about, and a
/// second one if a model is to be trained anew.
fn bodies(fleet: &FleetId, rule: &Rule, told: &[Told], now_ms: i64) -> Vec<Value> {
    let is_fired = |t: &&Told| matches!(t.change, Change::Fired { .. });
    let mut fired: Vec<&Told> = told.iter().filter(is_fired).collect();
    let mut resolved: Vec<&Told> = told.iter().filter(|t| !is_fired(t)).collect();
    if fired.is_empty() && resolved.is_empty() {
        return Vec::new();
    }
    let more =
        fired.len().saturating_sub(SUBJECTS_MAX) + resolved.len().saturating_sub(SUBJECTS_MAX);
    fired.truncate(SUBJECTS_MAX);
    resolved.truncate(SUBJECTS_MAX);
    let subject = |t: &&Told| {
        let (Change::Fired { since_ms } | Change::Resolved { since_ms }) = t.change;
        json!({"subject": t.subject, "since_ms": since_ms, "seen": t.seen})
    };
    let firing: Vec<Value> = fired.iter().map(subject).collect();
    let over: Vec<Value> = resolved.iter().map(subject).collect();
    let head = |kind: &str| {
        json!({
            "kind": kind, "fleet": fleet, "rule": rule.name, "severity": severity(rule),
            "time_ms": now_ms, "links": links(rule, now_ms),
        })
    };
    let mut alert = head("alert");
    alert["firing"] = json!(firing);
    alert["resolved"] = json!(over);
    alert["more"] = json!(more);
    let mut bodies = vec![alert];
    if rule.retrain && !fired.is_empty() {
        let mut retrain = head("retrain");
        let trained = |t: &&Told| {
            let mut seen = subject(t);
            if let Some(exports) = exports(rule, t, now_ms) {
                seen["exports"] = exports;
            }
            seen
        };
        retrain["seen"] = fired.iter().map(trained).collect();
        bodies.push(retrain);
    }
    bodies
}

/// Paths of the admin API where the data of a subject are, as Parquet files: those of its version, from
/// when it began to be so, or from as far back as the rule looks.
fn exports(rule: &Rule, told: &Told, now_ms: i64) -> Option<Value> {
    let family = rule.family()?;
    let version: u64 = told.subject.rsplit('/').next()?.parse().ok()?;
    let (Change::Fired { since_ms } | Change::Resolved { since_ms }) = told.change;
    let since_ms = since_ms.saturating_sub(look_back_ms(rule));
    let table = |name: &str| {
        format!(
            "/api/v1/export/{name}.parquet?family={family}&version={version}{}&since_ms={since_ms}&until_ms={now_ms}",
            of_segment(rule)
        )
    };
    Some(json!({
        "windows": table("windows"), "histograms": table("histograms"), "reference": table("reference"),
    }))
}

fn look_back_ms(rule: &Rule) -> i64 {
    i64::try_from(rule.look_back_s).unwrap_or(i64::MAX / 1000) * 1000
}

/// A rule's segment as a parameter. It needs no escaping: it was checked to be a plain name.
fn of_segment(rule: &Rule) -> String {
    let segment = rule.segment.as_ref();
    segment.map_or_else(String::new, |s| format!("&segment={s}"))
}

/// Paths of the admin API where the numbers are.
fn links(rule: &Rule, now_ms: i64) -> Value {
    let Some(family) = rule.family() else {
        return json!({"devices": "/api/v1/devices"});
    };
    let since_ms = now_ms.saturating_sub(look_back_ms(rule));
    let time = format!("since_ms={since_ms}&until_ms={now_ms}");
    json!({"drift": format!("/api/v1/drift?family={family}{}&{time}", of_segment(rule))})
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_training_is_told_where_the_versions_telemetry_is() {
        let rule = json!({
            "name": "pump-drift", "retrain": true, "look_back_s": 3600,
            "when": {"kind": "drift", "family": "pump"},
        });
        let rule: Rule = serde_json::from_value(rule).unwrap();
        let told = |subject: &str| Told {
            subject: subject.to_owned(),
            change: Change::Fired {
                since_ms: 5_000_000,
            },
            seen: json!({"drifted": 2}),
        };
        let fleet = "pier".parse().unwrap();
        let bodies = bodies(&fleet, &rule, &[told("pump/3")], 9_000_000);
        assert_eq!(
            (&bodies[0]["kind"], &bodies[1]["kind"]),
            (&json!("alert"), &json!("retrain"))
        );
        assert_eq!(bodies[0]["firing"][0]["exports"], Value::Null);
        let seen = &bodies[1]["seen"][0];
        assert_eq!(seen["seen"]["drifted"], 2);
        assert_eq!(
            seen["exports"]["windows"],
            "/api/v1/export/windows.parquet?family=pump&version=3&since_ms=1400000&until_ms=9000000"
        );
        // A subject that is no version has no such files.
        let seen = super::bodies(&fleet, &rule, &[told("edge-1")], 9_000_000);
        assert_eq!(seen[1]["seen"][0]["exports"], Value::Null);
    }
}
