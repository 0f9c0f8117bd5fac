//! How a version does in the shadow of what serves, over all devices of its rollout.

use crate::drift::statistics::paired::Disagreements;
use crate::store::DeviceRow;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::ShadowReport;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Comparisons of a version with the one that serves, on the same inputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Shadowed {
    /// Devices that compared.
    pub devices: u64,
    /// Answers that were compared.
    pub compared: u64,
    /// Of those, how many agreed: the same class, or numbers within a hundredth of each other.
    pub agreed: u64,
    /// Of the labelled, how many it alone got right.
    pub won: u64,
    /// Of the labelled, how many only the serving version got right.
    pub lost: u64,
    /// Inputs that it failed on.
    pub failed: u64,
    /// Samples passed over for want of time.
    pub passed_over: u64,
    /// Evidence that the two are not equally good, an e-value: 20 or more is evidence at .05, whenever
    /// one looks.
    pub differ_e: f64,
    /// Evidence, of the same kind, that it is the worse one.
    pub inferior_e: f64,
    /// Longest of the devices' medians of its time for one answer, in microseconds.
    pub latency_us: u64,
    /// Longest of the serving version's for the same inputs.
    pub serving_latency_us: u64,
}

/// Adds up what devices report of a bundle that is their target; none if no device compared.
#[must_use]
pub fn shadowed(devices: &[DeviceRow], family: &Family, bundle: Digest) -> Option<Shadowed> {
    let reports = devices.iter().filter_map(|device| {
        let model = device.reported.as_ref()?.of(family)?;
        let is_of_bundle = model.target.as_ref().is_some_and(|t| t.digest == bundle);
        model.shadow.filter(|s| is_of_bundle && s.compared > 0)
    });
    let reports: Vec<ShadowReport> = reports.collect();
    let sum = reports.iter().copied().reduce(|a, b| a.plus(&b))?;
    let disagreements = Disagreements {
        wins: sum.won,
        losses: sum.lost,
    };
    // JSON has no infinity.
    let finite = |e: f64| e.min(f64::MAX);
    let longest = |of: fn(&ShadowReport) -> u64| reports.iter().map(of).max().unwrap_or_default();
    Some(Shadowed {
        devices: reports.len() as u64,
        compared: sum.compared,
        agreed: sum.agreed,
        won: sum.won,
        lost: sum.lost,
        failed: sum.failed,
        passed_over: sum.passed_over,
        differ_e: finite(disagreements.differ()),
        inferior_e: finite(disagreements.inferior()),
        latency_us: longest(|r| r.latency_us),
        serving_latency_us: longest(|r| r.serving_latency_us),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::report::Reported;

    fn device(name: &str, digest: Digest, shadow: &str) -> DeviceRow {
        let report = format!(
            r#"{{"sequence":1,"revision":{{"epoch":1,"generation":1}},"progress":{{"state":"idle"}},
            "agent_version":"0.1.0","models":[{{"family":"digits","progress":{{"state":"idle"}},
            "target":{{"family":"digits","version":2,"digest":"{digest}"}},"shadow":{shadow}}}]}}"#
        );
        let reported: Reported = serde_json::from_str(&report).unwrap();
        DeviceRow {
            device: name.parse().unwrap(),
            labels: [].into(),
            hardware: "generic".to_owned(),
            arch: "x86_64".to_owned(),
            agent_version: "0.1.0".to_owned(),
            cert_sha256: Digest([0; 32]),
            revoked: false,
            online: true,
            last_seen_ms: None,
            enrolled_ms: 0,
            reported: Some(reported),
            desired: None,
        }
    }

    #[test]
    fn devices_that_compare_this_bundle_are_added_up() {
        let (mine, other) = (Digest::of(b"2"), Digest::of(b"3"));
        let devices = [
            device(
                "a",
                mine,
                r#"{"compared":100,"agreed":80,"won":12,"lost":3,"latency_us":90}"#,
            ),
            device(
                "b",
                mine,
                r#"{"compared":50,"agreed":40,"won":8,"lost":2,"latency_us":70}"#,
            ),
            device("c", mine, "{}"),
            device("d", other, r#"{"compared":9,"agreed":0,"lost":9}"#),
        ];
        let family = "digits".parse().unwrap();
        let all = shadowed(&devices, &family, mine).unwrap();
        assert_eq!((all.devices, all.compared, all.agreed), (2, 150, 120));
        assert_eq!((all.won, all.lost, all.latency_us), (20, 5, 90));
        assert!((all.differ_e - 24.290_515).abs() < 1e-6, "{}", all.differ_e);
        assert!(all.inferior_e < 1.0);
        assert_eq!(shadowed(&devices, &family, Digest::of(b"4")), None);
    }
}
