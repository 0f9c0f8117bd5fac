//! Where records come from and results go, as one line of configuration says it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Longest topic or filter, in bytes; MQTT's own limit is 65,535.
const TOPIC_MAX_BYTES: usize = 1024;
const MQTT_PORT: u16 = 1883;

/// A broker and a topic on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MqttPlace {
    /// Host name or address.
    pub host: String,
    /// Port; 1883 unless given.
    pub port: u16,
    /// A topic, or as a source a filter.
    pub topic: String,
}

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `mqtt://host[:port]/filter`.
    Mqtt(MqttPlace),
    /// `folder:/path`.
    Folder(PathBuf),
    /// `stdin:`.
    Stdin,
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sink {
    /// `mqtt://host[:port]/topic`.
    Mqtt(MqttPlace),
    /// `file:/path`.
    File(PathBuf),
    /// `stdout:`.
    Stdout,
}

/// Why a text is no source or sink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It begins like none.
    #[error("expected {expected}, got {got:?}")]
    Kind {
        /// What there is.
        expected: &'static str,
        /// The text.
        got: String,
    },
    /// A path that depends on where the agent was started.
    #[error("expected an absolute path, got {0:?}")]
    Relative(String),
    /// Broker or topic.
    #[error("{what}, got {got:?}")]
    Mqtt {
        /// What is expected of it.
        what: &'static str,
        /// The part that is wrong.
        got: String,
    },
}

impl Source {
    /// Reads a source.
    ///
    /// # Errors
    /// [`PlaceError`]
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if text == "stdin:" {
            return Ok(Self::Stdin);
        }
        if let Some(rest) = text.strip_prefix("mqtt://") {
            return Ok(Self::Mqtt(mqtt(rest, true)?));
        }
        match text.strip_prefix("folder:") {
            Some(path) => Ok(Self::Folder(absolute(path)?)),
            None => Err(PlaceError::Kind {
                expected: "mqtt://host:port/topic, folder:/path or stdin:",
                got: text.to_owned(),
            }),
        }
    }
}

impl Sink {
    /// Reads a sink.
    ///
    /// # Errors
    /// [`PlaceError`]
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if text == "stdout:" {
            return Ok(Self::Stdout);
        }
        if let Some(rest) = text.strip_prefix("mqtt://") {
            return Ok(Self::Mqtt(mqtt(rest, false)?));
        }
        match text.strip_prefix("file:") {
            Some(path) => Ok(Self::File(absolute(path)?)),
            None => Err(PlaceError::Kind {
                expected: "mqtt://host:port/topic, file:/path or stdout:",
                got: text.to_owned(),
            }),
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, PlaceError> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(PlaceError::Relative(text.to_owned()))
    }
}

fn mqtt(rest: &str, filter: bool) -> Result<MqttPlace, PlaceError> {
    let wrong = |what, got: &str| PlaceError::Mqtt {
        what,
        got: got.to_owned(),
    };
    let (authority, topic) = rest
        .split_once('/')
        .ok_or_else(|| wrong("expected host:port/topic", rest))?;
    if authority.contains('@') {
        // What is wrong here may be a password: it is not repeated.
        return Err(wrong(
            "user and password belong in the file that `credentials` names",
            "them here (not shown)",
        ));
    }
    let port = |text: &str| {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        port.ok_or_else(|| wrong("expected a port from 1 to 65535", text))
    };
    // An IPv6 address has colons of its own and stands in brackets.
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((host, "")) => (host, MQTT_PORT),
        Some((host, rest)) => (host, port(rest.strip_prefix(':').unwrap_or(rest))?),
        None => match authority.rsplit_once(':') {
            Some((host, text)) => (host, port(text)?),
            None => (authority, MQTT_PORT),
        },
    };
    let host_fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(host_fits) {
        return Err(wrong("expected a host name or address", host));
    }
    let fits = if filter {
        is_filter(topic)
    } else {
        is_topic(topic)
    };
    if !fits {
        let what = if filter {
            "expected a topic or filter of 1 to 1024 bytes, + and # as whole levels, # last"
        } else {
            "expected a topic of 1 to 1024 bytes without + and #"
        };
        return Err(wrong(what, topic));
    }
    Ok(MqttPlace {
        host: host.to_owned(),
        port,
        topic: topic.to_owned(),
    })
}

/// Whether results may be published there.
#[must_use]
pub fn is_topic(text: &str) -> bool {
    let fits = !text.is_empty() && text.len() <= TOPIC_MAX_BYTES;
    fits && !text.contains(['+', '#', '\0']) && !text.starts_with('$')
}

fn is_filter(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    let whole = levels.iter().enumerate().all(|(at, level)| match *level {
        "+" => true,
        "#" => at + 1 == levels.len(),
        other => !other.contains(['+', '#', '\0']),
    });
    !text.is_empty() && text.len() <= TOPIC_MAX_BYTES && whole
}

/// Whether a filter lets a topic through (MQTT 5, 4.7).
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(want), Some(got)) if want == got => {}
            _ => return false,
        }
    }
}

impl MqttPlace {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mqtt(at) => write!(f, "mqtt://{}/{}", at.authority(), at.topic),
            Self::Folder(path) => write!(f, "folder:{}", path.display()),
            Self::Stdin => f.write_str("stdin:"),
        }
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mqtt(at) => write!(f, "mqtt://{}/{}", at.authority(), at.topic),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Stdout => f.write_str("stdout:"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_alike() {
        for text in [
            "mqtt://127.0.0.1:1883/line3/vibration",
            "mqtt://[::1]:1884/a/+/b/#",
            "folder:/var/spool/parts",
            "stdin:",
        ] {
            assert_eq!(Source::parse(text).unwrap().to_string(), text);
        }
        for text in ["mqtt://broker:1883/x", "file:/var/lib/x.jsonl", "stdout:"] {
            assert_eq!(Sink::parse(text).unwrap().to_string(), text);
        }
        let short = Source::parse("mqtt://broker/t").unwrap();
        assert_eq!(short.to_string(), "mqtt://broker:1883/t");
    }

    #[test]
    fn what_is_wrong_is_named_and_a_password_is_not() {
        let told = |text: &str| Source::parse(text).unwrap_err().to_string();
        assert!(told("kafka://x/y").starts_with("expected mqtt://"));
        assert!(told("folder:spool").contains("absolute path"));
        assert!(told("mqtt://h:0/t").contains("port"));
        assert!(told("mqtt://h:1883").contains("host:port/topic"));
        assert!(told("mqtt:///t").contains("host name"));
        assert!(told("mqtt://h/").contains("topic or filter"));
        assert!(told("mqtt://h/a/#/b").contains("# last"));
        let secret = told("mqtt://user:s3cret@h/t");
        assert!(
            secret.contains("credentials") && !secret.contains("s3cret"),
            "{secret}"
        );
        let sink = Sink::parse("mqtt://h/a/+").unwrap_err().to_string();
        assert!(sink.contains("without + and #"), "{sink}");
    }

    #[test]
    fn filters_match_as_mqtt_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "$SYS/x", false),
            ("+/+", "/x", true),
            ("a", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
