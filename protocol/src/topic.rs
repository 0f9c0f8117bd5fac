//! MQTT topics: `dunlin/v1/{fleet}/{device}/{channel}`, a codec both ways.

use crate::id::{DeviceId, FleetId, IdError};
use std::fmt;
use std::str::FromStr;

/// What a message is about. The direction is part of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Down: the state the device should reach.
    Desired,
    /// Down: something to do once.
    Command,
    /// Down: segments stored by the server, free to delete.
    Ack,
    /// Down: a block of a repository's file, for networks without HTTPS.
    Block,
    /// Up, retained, last will: connected or not.
    Presence,
    /// Up: the state the device is in.
    Reported,
    /// Up: flat scalars for ordinary consumers.
    Metrics,
    /// Up: drift windows.
    Sketch,
    /// Up: things that happened.
    Event,
    /// Up: log lines.
    Log,
    /// Up: asks for a block of a repository's file.
    Fetch,
}

impl Channel {
    /// Every channel, down before up.
    pub const ALL: [Self; 11] = [
        Self::Desired,
        Self::Command,
        Self::Ack,
        Self::Block,
        Self::Presence,
        Self::Reported,
        Self::Metrics,
        Self::Sketch,
        Self::Event,
        Self::Log,
        Self::Fetch,
    ];

    /// The topic's last level.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Command => "command",
            Self::Ack => "ack",
            Self::Block => "block",
            Self::Presence => "presence",
            Self::Reported => "reported",
            Self::Metrics => "metrics",
            Self::Sketch => "sketch",
            Self::Event => "event",
            Self::Log => "log",
            Self::Fetch => "fetch",
        }
    }

    /// Whether the server publishes on it (and the device reads it).
    #[must_use]
    pub fn is_down(self) -> bool {
        matches!(
            self,
            Self::Desired | Self::Command | Self::Ack | Self::Block
        )
    }
}

/// Why a text is not one of Dunlin's topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Not `dunlin/v1/{fleet}/{device}/{channel}`.
    #[error("topic {got:?} is not dunlin/v1/{{fleet}}/{{device}}/{{channel}}")]
    Shape {
        /// The topic, cut to 200 characters.
        got: String,
    },
    /// The last level is no channel.
    #[error(
        "topic channel {got:?} is unknown, expected one of desired, command, ack, block, presence, reported, metrics, sketch, event, log, fetch"
    )]
    Channel {
        /// The level found, cut to 200 characters.
        got: String,
    },
    /// The fleet or the device is no identifier.
    #[error("topic: {0}")]
    Id(#[from] IdError),
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

/// One topic, of exactly one device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topic {
    /// The fleet.
    pub fleet: FleetId,
    /// The device, sender of up and receiver of down channels.
    pub device: DeviceId,
    /// What the message is about.
    pub channel: Channel,
}

impl Topic {
    /// A topic from its parts.
    #[must_use]
    pub fn new(fleet: &FleetId, device: &DeviceId, channel: Channel) -> Self {
        Self {
            fleet: fleet.clone(),
            device: device.clone(),
            channel,
        }
    }

    /// The filter that matches one channel of every device of a fleet.
    #[must_use]
    pub fn filter_all_devices(fleet: &FleetId, channel: Channel) -> String {
        format!("{PREFIX}/{fleet}/+/{}", channel.as_str())
    }

    /// The same filter as a shared subscription (MQTT 5, section 4.8.2): each message goes to one
    /// of the group's subscribers.
    #[must_use]
    pub fn filter_shared(group: &str, fleet: &FleetId, channel: Channel) -> String {
        format!(
            "$share/{group}/{}",
            Self::filter_all_devices(fleet, channel)
        )
    }
}

const PREFIX: &str = "dunlin/v1";

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}/{}/{}/{}",
            self.fleet,
            self.device,
            self.channel.as_str()
        )
    }
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let mut levels = text.split('/');
        let mut next = || levels.next();
        let (Some("dunlin"), Some("v1"), Some(fleet), Some(device), Some(channel), None) =
            (next(), next(), next(), next(), next(), next())
        else {
            return Err(TopicError::Shape { got: cut(text) });
        };
        let channel = Channel::ALL
            .into_iter()
            .find(|c| c.as_str() == channel)
            .ok_or_else(|| TopicError::Channel { got: cut(channel) })?;
        Ok(Self {
            fleet: fleet.parse()?,
            device: device.parse()?,
            channel,
        })
    }
}

/// Whether a device's connection may publish to `topic`: its own prefix, up channels only.
#[must_use]
pub fn device_may_publish(fleet: &FleetId, device: &DeviceId, topic: &str) -> bool {
    own(fleet, device, topic).is_some_and(|c| !c.is_down())
}

/// Whether a device's connection may subscribe to `filter`: its own prefix, down channels only,
/// no wildcard and no shared subscription.
#[must_use]
pub fn device_may_subscribe(fleet: &FleetId, device: &DeviceId, filter: &str) -> bool {
    own(fleet, device, filter).is_some_and(Channel::is_down)
}

fn own(fleet: &FleetId, device: &DeviceId, topic: &str) -> Option<Channel> {
    let topic: Topic = topic.parse().ok()?;
    (topic.fleet == *fleet && topic.device == *device).then_some(topic.channel)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_survives_the_round_trip() {
        let (fleet, device) = ("f".parse().unwrap(), "d-1".parse().unwrap());
        for channel in Channel::ALL {
            let topic = Topic::new(&fleet, &device, channel);
            assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "dunlin/v1/f/d",
            "dunlin/v2/f/d/event",
            "dunlin/v1/f/d/event/x",
            "dunlin/v1//d/event",
            "dunlin/v1/f/+/event",
            "dunlin/v1/f/d/nope",
            "/dunlin/v1/f/d/event",
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_keeps_to_its_own_prefix_and_direction() {
        let (f, d) = ("f".parse().unwrap(), "d".parse().unwrap());
        assert!(device_may_publish(&f, &d, "dunlin/v1/f/d/event"));
        assert!(!device_may_publish(&f, &d, "dunlin/v1/f/e/event"));
        assert!(!device_may_publish(&f, &d, "dunlin/v1/f/d/desired"));
        assert!(device_may_subscribe(&f, &d, "dunlin/v1/f/d/desired"));
        for bad in [
            "#",
            "dunlin/v1/f/d/#",
            "dunlin/v1/f/+/desired",
            "dunlin/v1/f/e/desired",
            "$share/g/dunlin/v1/f/d/desired",
            "dunlin/v1/f/d/event",
        ] {
            assert!(!device_may_subscribe(&f, &d, bad), "{bad}");
        }
    }
}
