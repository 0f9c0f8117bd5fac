//! The section `capture`.

use super::{Check, Reader};
use dunlin_protocol::capture::OwnerRules;
use dunlin_protocol::capture::seal::check_recipient;
use dunlin_protocol::id::RecipientKey;
use toml::Value;

/// Most recipients that an owner can name.
const RECIPIENTS_MAX: usize = 16;

/// What of inputs is kept on this device, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSettings {
    /// Whether anything is, and for whom.
    pub owner: OwnerRules,
    /// Most space that sealed samples take on disk, 1 to 65,536 MiB.
    pub max_mib: u64,
    /// Longest time that they wait to be fetched, 1 to 3,650 days.
    pub max_days: u64,
}

pub(super) struct Inputs {
    allow: bool,
    recipients: Vec<String>,
    max_mib: i64,
    max_days: i64,
}

pub(super) fn read(from: &mut Reader) -> Inputs {
    let allow = match from.take("capture.allow") {
        None => false,
        Some(Value::Boolean(allow)) => allow,
        Some(other) => {
            from.wrong("capture.allow", "true or false", &other);
            false
        }
    };
    Inputs {
        allow,
        recipients: from.texts("capture.recipients"),
        max_mib: from.number("capture.max_mib", 16),
        max_days: from.number("capture.max_days", 30),
    }
}

impl Check<'_> {
    pub(super) fn capture(&mut self, inputs: Inputs) -> CaptureSettings {
        let key = "capture.recipients";
        if inputs.recipients.len() > RECIPIENTS_MAX {
            let got = inputs.recipients.len().to_string();
            self.wrong(key, format!("at most {RECIPIENTS_MAX}"), got);
        }
        let mut recipients = Vec::new();
        for text in inputs.recipients.iter().take(RECIPIENTS_MAX) {
            let read = text.parse::<RecipientKey>().map_err(|e| e.to_string());
            let usable = |key| {
                check_recipient(&key)
                    .map(|()| key)
                    .map_err(|e| e.to_string())
            };
            match read.and_then(usable) {
                Ok(recipient) => recipients.push(recipient),
                Err(problem) => {
                    self.wrong(key, "public keys of `dunlin capture keygen`", problem);
                }
            }
        }
        CaptureSettings {
            owner: OwnerRules {
                allow: inputs.allow,
                recipients,
            },
            max_mib: self.range("capture.max_mib", inputs.max_mib, 1, 65_536),
            max_days: self.range("capture.max_days", inputs.max_days, 1, 3650),
        }
    }
}
