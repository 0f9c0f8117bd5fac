//! Consumers: programs besides the fleet's own that read what devices send, and publish nothing.
//!
//! A consumer's certificate has the common name `consumer+NAME`, which no device can have. In an
//! external broker's ACL the rules for devices (`%u`) therefore never let it publish either:
//! mosquitto refuses them to every name with a `+` in it.

use dunlin_protocol::id::{DeviceId, FleetId};
use dunlin_protocol::topic::{Channel, Topic};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "consumer+";
/// With the prefix it fits a certificate's common name (64 characters, RFC 5280, A.1).
const NAME_MAX_CHARS: usize = 48;
/// Most subscriptions of one client at the embedded broker.
pub const FILTERS_MAX: usize = 32;

/// Why a text is no consumer's name, or rights cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumerError {
    /// Not a name.
    #[error(
        "consumer {got:?}: expected 1 to {NAME_MAX_CHARS} letters, digits, '-', '_' and '.', beginning with a letter or a digit"
    )]
    Name {
        /// The text, cut to 80 characters.
        got: String,
    },
    /// A channel that is nobody else's business.
    #[error(
        "channel {got:?} cannot be read by a consumer, expected some of {}",
        readable_names()
    )]
    Channel {
        /// The text, cut to 80 characters.
        got: String,
    },
    /// No channel at all.
    #[error(
        "a consumer of no channel reads nothing: expected some of {}",
        readable_names()
    )]
    NoChannel,
    /// More subscriptions than one client may have.
    #[error(
        "{channels} channels of {devices} devices are more than the {FILTERS_MAX} subscriptions that one client may have: name fewer, or no devices for all"
    )]
    TooMany {
        /// Channels asked for.
        channels: usize,
        /// Devices asked for.
        devices: usize,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What a consumer may read at all: what devices say of themselves.
fn readable() -> impl Iterator<Item = Channel> {
    Channel::ALL
        .into_iter()
        .filter(|channel| !channel.is_down() && *channel != Channel::Fetch)
}

fn readable_names() -> String {
    let names: Vec<&str> = readable().map(Channel::as_str).collect();
    names.join(", ")
}

/// The name an administrator gave to a consumer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConsumerName(DeviceId);

impl ConsumerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The certificate's common name: client id and, at an external broker, user name.
    #[must_use]
    pub fn client_id(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// The consumer that a certificate's common name names, if it names one.
    #[must_use]
    pub fn of_common_name(text: &str) -> Option<Self> {
        text.strip_prefix(PREFIX)?.parse().ok()
    }
}

impl FromStr for ConsumerName {
    type Err = ConsumerError;

    fn from_str(text: &str) -> Result<Self, ConsumerError> {
        // A consumer's name is written as a device's is, only shorter.
        match text.parse() {
            Ok(name) if text.len() <= NAME_MAX_CHARS => Ok(Self(name)),
            _ => Err(ConsumerError::Name { got: cut(text) }),
        }
    }
}

impl fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a consumer may read. It may publish nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRights {
    channels: BTreeSet<Channel>,
    devices: BTreeSet<DeviceId>,
}

impl ReadRights {
    /// Rights to some channels of some devices; no devices: of all, also those to come.
    ///
    /// # Errors
    /// A channel that no consumer reads, none, or more than one client can subscribe to.
    pub fn new(channels: &[String], devices: BTreeSet<DeviceId>) -> Result<Self, ConsumerError> {
        let channel = |text: &String| {
            let found = readable().find(|channel| channel.as_str() == text);
            found.ok_or_else(|| ConsumerError::Channel { got: cut(text) })
        };
        let channels: BTreeSet<Channel> = channels.iter().map(channel).collect::<Result<_, _>>()?;
        if channels.is_empty() {
            return Err(ConsumerError::NoChannel);
        }
        if channels.len().saturating_mul(devices.len()) > FILTERS_MAX {
            return Err(ConsumerError::TooMany {
                channels: channels.len(),
                devices: devices.len(),
            });
        }
        Ok(Self { channels, devices })
    }

    /// The channels.
    pub fn channels(&self) -> impl Iterator<Item = Channel> {
        self.channels.iter().copied()
    }

    /// The devices; none for all.
    #[must_use]
    pub fn devices(&self) -> &BTreeSet<DeviceId> {
        &self.devices
    }

    /// The topic filters that together are all it may read.
    #[must_use]
    pub fn filters(&self, fleet: &FleetId) -> Vec<String> {
        let of_channel = |channel: Channel| -> Vec<String> {
            if self.devices.is_empty() {
                return vec![Topic::filter_all_devices(fleet, channel)];
            }
            let topic = |device| Topic::new(fleet, device, channel).to_string();
            self.devices.iter().map(topic).collect()
        };
        self.channels().flat_map(of_channel).collect()
    }

    /// Whether it may subscribe to a filter: one of its [`filters`](Self::filters), or one device
    /// of them; nothing wider, and no shared subscription, which would take messages from others.
    #[must_use]
    pub fn may_subscribe(&self, fleet: &FleetId, filter: &str) -> bool {
        let all = |channel| filter == Topic::filter_all_devices(fleet, channel);
        if self.devices.is_empty() && self.channels().any(all) {
            return true;
        }
        filter.parse::<Topic>().is_ok_and(|topic| {
            topic.fleet == *fleet
                && self.channels.contains(&topic.channel)
                && (self.devices.is_empty() || self.devices.contains(&topic.device))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rights(channels: &[&str], devices: &[&str]) -> Result<ReadRights, ConsumerError> {
        let channels: Vec<String> = channels.iter().map(|c| (*c).to_owned()).collect();
        ReadRights::new(
            &channels,
            devices.iter().map(|d| d.parse().unwrap()).collect(),
        )
    }

    #[test]
    fn a_consumer_has_a_name_that_no_device_can_have() {
        let name: ConsumerName = "grafana-2".parse().unwrap();
        let client_id = name.client_id();
        assert_eq!(client_id, "consumer+grafana-2");
        assert!(client_id.parse::<DeviceId>().is_err());
        assert_eq!(ConsumerName::of_common_name(&client_id), Some(name));
        for other in [
            "grafana-2",
            "consumer-x",
            "consumer+",
            "consumer+a+b",
            "dunlin-server",
        ] {
            assert_eq!(ConsumerName::of_common_name(other), None, "{other}");
        }
        for bad in ["", "a/b", "#", "a+b", "ä", &"x".repeat(NAME_MAX_CHARS + 1)] {
            assert!(bad.parse::<ConsumerName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_devices_say_of_themselves_can_be_read() {
        let all = ["presence", "reported", "metrics", "sketch", "event", "log"];
        assert!(rights(&all, &[]).is_ok());
        for bad in ["desired", "command", "ack", "block", "fetch", "+", "#", ""] {
            assert!(rights(&["metrics", bad], &[]).is_err(), "{bad}");
        }
        assert_eq!(rights(&[], &[]), Err(ConsumerError::NoChannel));
        let many: Vec<String> = (0..17).map(|n| format!("d{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(rights(&["event"], &many).is_ok());
        assert!(matches!(
            rights(&["event", "log"], &many),
            Err(ConsumerError::TooMany { .. })
        ));
    }

    #[test]
    fn a_consumer_keeps_to_its_channels_and_devices() {
        let fleet: FleetId = "f".parse().unwrap();
        let all = rights(&["metrics", "event"], &[]).unwrap();
        assert_eq!(
            all.filters(&fleet),
            ["dunlin/v1/f/+/metrics", "dunlin/v1/f/+/event"]
        );
        let some = rights(&["metrics"], &["a", "b"]).unwrap();
        assert_eq!(
            some.filters(&fleet),
            ["dunlin/v1/f/a/metrics", "dunlin/v1/f/b/metrics"]
        );
        for rights in [&all, &some] {
            for own in rights.filters(&fleet) {
                assert!(rights.may_subscribe(&fleet, &own), "{own}");
            }
            assert!(rights.may_subscribe(&fleet, "dunlin/v1/f/a/metrics"));
            for bad in [
                "#",
                "dunlin/v1/f/#",
                "dunlin/v1/f/+/+",
                "dunlin/v1/f/a/+",
                "dunlin/v1/+/+/metrics",
                "dunlin/v1/g/+/metrics",
                "dunlin/v1/g/a/metrics",
                "dunlin/v1/f/+/desired",
                "dunlin/v1/f/a/command",
                "dunlin/v1/f/+/log",
                "$share/dunlin/dunlin/v1/f/+/metrics",
                "$share/x/dunlin/v1/f/a/metrics",
                "$SYS/#",
            ] {
                assert!(!rights.may_subscribe(&fleet, bad), "{bad}");
            }
        }
        assert!(!some.may_subscribe(&fleet, "dunlin/v1/f/+/metrics"));
        assert!(!some.may_subscribe(&fleet, "dunlin/v1/f/c/metrics"));
    }
}
