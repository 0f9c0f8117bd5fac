//! Inputs kept on a device, sealed to an operator's key, and fetched by command.
//!
//! A device keeps inputs of a model only where the signed bundle says so ([`CaptureRules`]) and the
//! device's owner lets it ([`OwnerRules`]); [`standing`] is that decision. What it keeps is sealed
//! ([`seal`]) before it is written anywhere, to the key that the bundle names: neither the device
//! that sealed it nor the fleet server that stores it can open it.

pub mod samples;
pub mod seal;

use crate::id::{Digest, Family, RecipientKey};
use serde::{Deserialize, Serialize};

/// Most samples of one model and window.
pub const SAMPLES_MAX: u32 = 1024;
/// Most bytes of one sample's tensors.
pub const SAMPLE_MAX_BYTES: u64 = 1 << 20;
/// Most bytes of all samples of one model and window.
pub const WINDOW_MAX_BYTES: u64 = 2 << 20;
/// Most open requests that a device is told of at once.
pub const WANTED_MAX: usize = 16;
/// Largest answer that tells a device what is wanted of it, in bytes.
pub const WANTED_MAX_BYTES: u64 = 64 * 1024;

/// Which values of a request are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// What the application sent, before the processing steps.
    #[default]
    Sent,
    /// What the graph was given, after them.
    Graph,
}

/// What a bundle lets devices keep of the inputs of its model, as signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRules {
    /// Whose key samples are sealed to.
    pub recipient: RecipientKey,
    /// Which values are kept.
    #[serde(default)]
    pub stage: Stage,
    /// Most samples a window, 1 to [`SAMPLES_MAX`].
    #[serde(default = "samples")]
    pub samples: u32,
    /// Most bytes of one sample's tensors; a larger one is counted and not kept.
    #[serde(default = "sample_max_bytes")]
    pub sample_max_bytes: u64,
}

fn samples() -> u32 {
    16
}

fn sample_max_bytes() -> u64 {
    64 * 1024
}

impl CaptureRules {
    /// Rules with every default.
    #[must_use]
    pub fn to(recipient: RecipientKey) -> Self {
        Self {
            recipient,
            stage: Stage::default(),
            samples: samples(),
            sample_max_bytes: sample_max_bytes(),
        }
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=SAMPLES_MAX).contains(&self.samples) {
            let got = self.samples;
            return Err(("capture.samples", format!("1 to {SAMPLES_MAX}, got {got}")));
        }
        if !(1..=SAMPLE_MAX_BYTES).contains(&self.sample_max_bytes) {
            let problem = format!("1 to {SAMPLE_MAX_BYTES}, got {}", self.sample_max_bytes);
            return Err(("capture.sample_max_bytes", problem));
        }
        let all = u64::from(self.samples).saturating_mul(self.sample_max_bytes);
        if all > WINDOW_MAX_BYTES {
            let problem = format!(
                "samples times sample_max_bytes is {all}, at most {WINDOW_MAX_BYTES} are kept of a window"
            );
            return Err(("capture", problem));
        }
        seal::check_recipient(&self.recipient).map_err(|e| ("capture.recipient", e.to_string()))
    }
}

/// What a device's owner lets be kept, by the agent's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRules {
    /// Whether anything is.
    pub allow: bool,
    /// To whom it may be sealed; empty: to whomever the signed bundle names.
    #[serde(default)]
    pub recipients: Vec<RecipientKey>,
}

/// Whether inputs of a model are kept on a device, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Both sides say yes.
    Kept,
    /// The bundle has no `capture` section.
    BundleForbids,
    /// The device's owner does not allow it.
    OwnerForbids,
    /// The owner allows it, yet not to the recipient that the bundle names.
    RecipientForbidden,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kept => "inputs are kept, sealed",
            Self::BundleForbids => "off: the bundle has no capture section",
            Self::OwnerForbids => "off: capture.allow is false in this device's configuration",
            Self::RecipientForbidden => {
                "off: the bundle's recipient is not among capture.recipients of this device"
            }
        })
    }
}

/// Whether both sides say yes.
#[must_use]
pub fn standing(bundle: Option<&CaptureRules>, owner: &OwnerRules) -> Standing {
    match bundle {
        _ if !owner.allow => Standing::OwnerForbids,
        None => Standing::BundleForbids,
        Some(rules) => {
            let any = owner.recipients.is_empty();
            match any || owner.recipients.contains(&rules.recipient) {
                true => Standing::Kept,
                false => Standing::RecipientForbidden,
            }
        }
    }
}

/// What somebody wants of a device's samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Number of the request.
    pub id: u64,
    /// Of this family only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Of this version only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl Wanted {
    /// Whether samples of a bundle are asked for.
    #[must_use]
    pub fn matches(&self, family: &Family, version: u64) -> bool {
        self.family.as_ref().is_none_or(|f| f == family)
            && self.version.is_none_or(|v| v == version)
    }
}

/// What is wanted of a device, the oldest request first (answer to `GET /captures`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedList {
    /// At most [`WANTED_MAX`].
    pub wanted: Vec<Wanted>,
}

/// A device has sent all it has for a request (`POST /captures/{request}/done`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Batches that it sent for this request in this go.
    pub sent: u64,
    /// Why it sent none, if its owner or its bundle forbids it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Path of a batch in the devices' routes: stored under the request it answers, by its SHA-256.
#[must_use]
pub fn batch_path(request: u64, sha256: &Digest) -> String {
    format!("/captures/{request}/{sha256}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(of: u8) -> RecipientKey {
        seal::SecretKey::derive(&[of; 32]).recipient()
    }

    #[test]
    fn nothing_is_kept_unless_both_say_yes() {
        let rules = CaptureRules::to(key(1));
        let yes = OwnerRules {
            allow: true,
            recipients: Vec::new(),
        };
        let only = |of| OwnerRules {
            allow: true,
            recipients: vec![key(of)],
        };
        let no = OwnerRules::default();
        assert_eq!(standing(None, &no), Standing::OwnerForbids);
        assert_eq!(standing(Some(&rules), &no), Standing::OwnerForbids);
        assert_eq!(standing(None, &yes), Standing::BundleForbids);
        assert_eq!(standing(Some(&rules), &yes), Standing::Kept);
        assert_eq!(standing(Some(&rules), &only(1)), Standing::Kept);
        let other = standing(Some(&rules), &only(2));
        assert_eq!(other, Standing::RecipientForbidden);
    }

    #[test]
    fn rules_are_bounded_and_default() {
        let text = format!(r#"{{"recipient":"{}"}}"#, key(1));
        let rules: CaptureRules = serde_json::from_str(&text).unwrap();
        assert_eq!(rules, CaptureRules::to(key(1)));
        rules.check().unwrap();
        let wrong = |rules: CaptureRules| rules.check().unwrap_err().0;
        let (r, samples) = (rules.clone(), 0);
        assert_eq!(wrong(CaptureRules { samples, ..r }), "capture.samples");
        let (r, sample_max_bytes) = (rules.clone(), SAMPLE_MAX_BYTES + 1);
        let large = CaptureRules {
            sample_max_bytes,
            ..r
        };
        assert_eq!(wrong(large), "capture.sample_max_bytes");
        let (r, samples) = (rules.clone(), 33);
        assert_eq!(wrong(CaptureRules { samples, ..r }), "capture");
        // A point of low order: everybody could open what is sealed to it.
        let recipient = RecipientKey([0; 32]);
        assert_eq!(
            wrong(CaptureRules { recipient, ..rules }),
            "capture.recipient"
        );
    }

    #[test]
    fn a_request_is_for_all_or_for_one() {
        let family: Family = "digits".parse().unwrap();
        let mut wanted = Wanted {
            id: 1,
            family: None,
            version: None,
        };
        assert!(wanted.matches(&family, 3));
        wanted.version = Some(2);
        assert!(!wanted.matches(&family, 3) && wanted.matches(&family, 2));
        wanted.family = Some("other".parse().unwrap());
        assert!(!wanted.matches(&family, 2));
    }
}
