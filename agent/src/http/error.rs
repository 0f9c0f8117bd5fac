//! Why a request failed, and how the libraries' errors are told apart.

use hyper_util::client::legacy;
use std::error::Error as StdError;
use std::time::Duration;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not a URL that can be asked.
    #[error("{url:?} is no https URL: {problem}")]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No connection.
    #[error("cannot reach {url}: {problem}")]
    Connect {
        /// What was asked.
        url: String,
        /// The system's words.
        problem: String,
    },
    /// The two sides do not trust each other.
    #[error("TLS with {url}: {problem}")]
    Tls {
        /// What was asked.
        url: String,
        /// What failed.
        problem: String,
    },
    /// Nothing came in time.
    #[error("{url}: {what} did not come within {after_ms} ms")]
    Timeout {
        /// What was asked.
        url: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after_ms: u64,
    },
    /// Bytes drip too slowly to be an honest server's (slow retrieval).
    #[error("{url}: {got_bytes} bytes in {over_ms} ms, at least {least_bytes} are expected")]
    TooSlow {
        /// What was asked.
        url: String,
        /// Bytes that came.
        got_bytes: u64,
        /// Time they took.
        over_ms: u64,
        /// Fewest bytes accepted in that time.
        least_bytes: u64,
    },
    /// An answer other than success.
    #[error("{url}: the server answers {code}{}", sayable(.message))]
    Status {
        /// What was asked.
        url: String,
        /// HTTP status.
        code: u16,
        /// The server's code for the error, if it gave one.
        reason: Option<String>,
        /// The server's words, cut short, empty if none.
        message: String,
    },
    /// More bytes than this answer may have (endless data).
    #[error("{url}: more than the {max_bytes} bytes that are accepted")]
    TooLarge {
        /// What was asked.
        url: String,
        /// Limit in bytes.
        max_bytes: u64,
    },
    /// The answer broke off, or is not HTTP.
    #[error("{url}: the answer broke off: {problem}")]
    Broken {
        /// What was asked.
        url: String,
        /// What happened.
        problem: String,
    },
}

fn sayable(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl HttpError {
    /// A short, stable code for reports.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Url { .. } => "url",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Timeout { .. } => "timeout",
            Self::TooSlow { .. } => "too_slow",
            Self::Status { .. } => "status",
            Self::TooLarge { .. } => "too_large",
            Self::Broken { .. } => "broken",
        }
    }
}

pub(super) fn timeout(url: &str, what: &'static str, after: Duration) -> HttpError {
    HttpError::Timeout {
        url: url.to_owned(),
        what,
        after_ms: as_ms(after),
    }
}

pub(super) fn as_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn classify(url: &str, error: &legacy::Error) -> HttpError {
    let url = url.to_owned();
    if let Some(tls) = tls_error(error) {
        let problem = tls.to_string();
        return HttpError::Tls { url, problem };
    }
    let problem = causes(error);
    if error.is_connect() {
        HttpError::Connect { url, problem }
    } else {
        HttpError::Broken { url, problem }
    }
}

/// The TLS error somewhere below: `io::Error` hides what it wraps from `source()`.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// An error and what caused it, on one line.
pub(super) fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Code and words of `{"error":{"code","message"}}`, or the text itself, cut to one line.
pub(super) fn refusal_text(bytes: &[u8]) -> (Option<String>, String) {
    let line = |text: &str| -> String {
        let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        clean.take(200).collect::<String>().trim().to_owned()
    };
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = &json["error"];
    match (error["code"].as_str(), error["message"].as_str()) {
        (code, Some(message)) => (code.map(line), line(message)),
        _ => (None, line(&String::from_utf8_lossy(bytes))),
    }
}
