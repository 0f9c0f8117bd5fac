//! An ordinary MQTT 5 client of a broker beside the agent: topics in, results out.
//!
//! A subscription's session is resumed, and a message is acknowledged only when whoever took it
//! says so: what a killed process, a lost connection or a restarted broker had in flight comes
//! again. The library takes no new subscription in a session of which it remembers nothing, so a
//! marker file says for which filter the broker's session is; without it the session begins anew.

mod inbox;
mod publish;
mod subscribe;

pub use inbox::{Heard, Inbox};
pub use publish::{Outgoing, PublishError, Publisher};
pub use subscribe::{Acknowledge, Listening, Message, News, Subscription, subscribe};

use super::{CONNECT_TIMEOUT_MS, KEEP_ALIVE_S, backoff};
use rumqttc::{IncomingPacketSizeLimit, MqttOptions, NetworkOptions};
use std::path::PathBuf;
use std::time::Duration;

/// Longest file of user and password.
const CREDENTIALS_MAX_BYTES: u64 = 4096;

/// Where and as whom to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalSettings {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Client id, the same for ever: the broker keeps its session by it.
    pub client_id: String,
    /// File with the user in its first line and the password in its second; read at every connect.
    pub credentials: Option<PathBuf>,
    /// Largest packet.
    pub packet_max_bytes: u32,
}

/// How long to wait after so many failures in a row: doubled each time, spread by chance.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    backoff(failures)
}

fn options(settings: &LocalSettings) -> Result<MqttOptions, String> {
    let address = (settings.host.as_str(), settings.port);
    let mut options = MqttOptions::new(settings.client_id.as_str(), address);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT_MS / 1000);
    options.set_network_options(network);
    options.set_keep_alive(KEEP_ALIVE_S);
    options.set_max_packet_size(Some(settings.packet_max_bytes));
    let limit = IncomingPacketSizeLimit::Bytes(settings.packet_max_bytes);
    options.set_incoming_packet_size_limit(limit);
    if let Some(path) = &settings.credentials {
        let bytes = crate::files::read_bounded(path, CREDENTIALS_MAX_BYTES);
        let bytes = bytes.map_err(|e| e.to_string())?;
        // What is wrong with it is not shown: it holds a password.
        let (user, password) = credentials(&bytes).ok_or_else(|| {
            let expected = "expected the user in the first line, the password in the second";
            format!("{}: {expected}", path.display())
        })?;
        options.set_credentials(user, password.into_bytes());
    }
    Ok(options)
}

fn credentials(bytes: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let (user, password) = (lines.next()?, lines.next()?);
    let rest = lines.all(str::is_empty);
    (rest && !user.is_empty()).then(|| (user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::credentials;

    #[test]
    fn credentials_are_two_lines() {
        let two = Some(("sensor".to_owned(), "a b:c".to_owned()));
        assert_eq!(credentials(b"sensor\na b:c\n"), two);
        assert_eq!(credentials(b"sensor\r\na b:c\r\n\n"), two);
        for bad in [&b"sensor"[..], b"\npassword\n", b"a\nb\nc\n", b"\xff\nb"] {
            assert_eq!(credentials(bad), None);
        }
    }
}
