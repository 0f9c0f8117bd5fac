//! The section of the inference API.

use super::{Check, ConfigError, Reader};
use crate::clients::{Accounts, ClientRule, Clients, UnknownAccount};
use crate::files::FileError;
use crate::inference::GrpcAddress;
use crate::inference::turns::{QUEUE_DEFAULT, Rules, RulesByModel, SHARE_DEFAULT};
use dunlin_protocol::bundle::segments::NAME_MAX_BYTES;
use dunlin_protocol::id::Family;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Value;

/// Most texts by key.
const TEXTS_MAX: usize = 32;
/// Longest path of a Unix socket, in bytes (`sun_path` less its final zero).
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// How the worker runs models and serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferenceSettings {
    /// Unix socket of the inference API, at most 107 bytes long.
    pub socket: PathBuf,
    /// Loopback address of the inference API, if it is to have one; port 0: any free one.
    pub listen: Option<SocketAddr>,
    /// Where the gRPC flavour is served, if it is to be: an absolute path, or a loopback address.
    pub grpc_listen: Option<GrpcAddress>,
    /// Group that the Unix sockets belong to, by name or number; the agent's own otherwise.
    pub socket_group: Option<String>,
    /// Which clients may ask for which models; none: everybody who reaches a socket, for every model.
    pub clients: Vec<ClientRule>,
    /// How models are served of which there is something to say.
    pub models: RulesByModel,
    /// What segment requests of this device belong to unless they say another, by the profile's key.
    pub segments: BTreeMap<String, String>,
    /// Length of a telemetry window, 100 to 86,400,000 ms.
    pub window_ms: u64,
    /// Memory the worker may use, 16 to 1,048,576 MiB.
    pub memory_limit_mib: u64,
}

/// One table of `[inference.models]`, as written.
pub(super) struct ModelInputs {
    family: String,
    queue: i64,
    concurrency: Option<i64>,
    priority: i64,
    cpu_share: i64,
}

fn key_of(family: &str, key: &str) -> String {
    format!("inference.models.{family}.{key}")
}

pub(super) fn read_models(from: &mut Reader) -> Vec<ModelInputs> {
    let tables = match from.take("inference.models") {
        None => return Vec::new(),
        Some(Value::Table(tables)) => tables,
        Some(other) => {
            from.wrong("inference.models", "a section for each model", &other);
            return Vec::new();
        }
    };
    let mut all = Vec::new();
    for (family, value) in tables {
        let Value::Table(table) = value else {
            from.wrong(&format!("inference.models.{family}"), "a section", &value);
            continue;
        };
        let mut one = Reader {
            table,
            errors: Vec::new(),
        };
        let queue = i64::try_from(QUEUE_DEFAULT).unwrap_or(i64::MAX);
        let concurrency = one.number("concurrency", 0);
        all.push(ModelInputs {
            queue: one.number("queue", queue),
            concurrency: (concurrency != 0).then_some(concurrency),
            priority: one.number("priority", 0),
            cpu_share: one.number("cpu_share", i64::from(SHARE_DEFAULT)),
            family: family.clone(),
        });
        for (name, value) in std::mem::take(&mut one.table) {
            one.unknown(name, &value);
        }
        from.errors
            .extend(one.errors.into_iter().map(|e| ConfigError {
                key: key_of(&family, &e.key),
                ..e
            }));
    }
    all
}

pub(super) fn texts_by_key(from: &mut Reader, key: &str) -> Vec<(String, String)> {
    let table = match from.take(key) {
        None => return Vec::new(),
        Some(Value::Table(table)) => table,
        Some(other) => {
            from.wrong(key, "texts by key, such as site = \"quay-4\"", &other);
            return Vec::new();
        }
    };
    let mut all = Vec::new();
    for (name, value) in table {
        match value {
            Value::String(text) => all.push((name, text)),
            other => from.wrong(&format!("{key}.{name}"), "a text", &other),
        }
    }
    all
}

/// Why it cannot be said who may reach the inference API.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The system's accounts cannot be read.
    #[error(transparent)]
    Accounts(#[from] FileError),
    /// One of them is not there.
    #[error(transparent)]
    Unknown(#[from] UnknownAccount),
}

impl InferenceSettings {
    /// The sockets' group and the clients' rules, by this system's accounts.
    ///
    /// # Errors
    /// An unknown account: a name that means nothing must not open what it was to close.
    pub fn access(&self) -> Result<(Option<u32>, Clients), AccessError> {
        if self.socket_group.is_none() && self.clients.is_empty() {
            return Ok((None, Clients::default()));
        }
        let accounts = Accounts::of_system()?;
        let gid = match &self.socket_group {
            None => None,
            Some(name) => Some(accounts.group(name).ok_or_else(|| UnknownAccount {
                key: "socket_group",
                account: format!("group {name:?}"),
            })?),
        };
        Ok((gid, Clients::resolve(&self.clients, &accounts)?))
    }
}

impl Check<'_> {
    pub(super) fn socket(&mut self, key: &str, path: PathBuf) -> PathBuf {
        let length = path.as_os_str().len();
        if !path.is_absolute() || length > SOCKET_PATH_MAX_BYTES {
            self.wrong(
                key,
                format!("an absolute path of at most {SOCKET_PATH_MAX_BYTES} bytes"),
                format!("{path:?}, {length} bytes (default: in state_dir)"),
            );
        }
        path
    }

    pub(super) fn listen(&mut self, text: Option<String>) -> Option<SocketAddr> {
        let text = text?;
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => return Some(address),
            // The inference API has no authentication of its own.
            Ok(_) => self.wrong(
                "inference.listen",
                "a loopback address, such as 127.0.0.1:8601",
                format!("{text:?}, which other machines can reach"),
            ),
            Err(_) => self.wrong(
                "inference.listen",
                "address and port, such as 127.0.0.1:8601",
                format!("{text:?}"),
            ),
        }
        None
    }

    pub(super) fn grpc_listen(&mut self, text: Option<String>) -> Option<GrpcAddress> {
        let key = "inference.grpc_listen";
        let text = text?;
        if !cfg!(feature = "grpc") {
            let expected = "no such key: this agent was built without the feature grpc";
            self.wrong(key, expected, format!("{text:?}"));
            return None;
        }
        match text.parse() {
            Ok(GrpcAddress::Unix(path)) => Some(GrpcAddress::Unix(self.socket(key, path))),
            Ok(GrpcAddress::Tcp(address)) if address.ip().is_loopback() => {
                Some(GrpcAddress::Tcp(address))
            }
            Ok(GrpcAddress::Tcp(_)) => {
                let got = format!("{text:?}, which other machines can reach");
                self.wrong(key, "a loopback address, such as 127.0.0.1:8602", got);
                None
            }
            Err(expected) => {
                self.wrong(key, expected, format!("{text:?}"));
                None
            }
        }
    }

    pub(super) fn models(&mut self, all: Vec<ModelInputs>) -> RulesByModel {
        let mut rules = RulesByModel::new();
        for inputs in all {
            let family = inputs.family;
            if let Err(e) = family.parse::<Family>() {
                self.wrong("inference.models", "names of model families", e.to_string());
            }
            let key = |name| key_of(&family, name);
            let concurrency = inputs
                .concurrency
                .map(|n| self.range(&key("concurrency"), n, 1, 1024));
            let of_model = Rules {
                queue: small(self.range(&key("queue"), inputs.queue, 0, 65_536)),
                concurrency: concurrency.map(small),
                priority: self.between(&key("priority"), inputs.priority, -100, 100),
                cpu_share: self.between(&key("cpu_share"), inputs.cpu_share, 1, 10_000),
            };
            rules.insert(family, of_model);
        }
        rules
    }

    pub(super) fn texts(
        &mut self,
        key: &str,
        all: Vec<(String, String)>,
    ) -> BTreeMap<String, String> {
        if all.len() > TEXTS_MAX {
            self.wrong(key, format!("at most {TEXTS_MAX}"), all.len().to_string());
        }
        for (name, value) in &all {
            let lengths = 1..=NAME_MAX_BYTES;
            if !lengths.contains(&name.len()) || !lengths.contains(&value.len()) {
                let expected = format!("keys and values of 1 to {NAME_MAX_BYTES} bytes");
                self.wrong(key, expected, format!("{name:?} = {value:?}"));
            }
        }
        all.into_iter().collect()
    }

    pub(super) fn clients(&mut self, lists: Vec<(String, Vec<String>)>) -> Vec<ClientRule> {
        let mut rules = Vec::new();
        for (who, models) in lists {
            let got = format!("{who:?} = {models:?}");
            match ClientRule::new(&who, models) {
                Ok(rule) => rules.push(rule),
                Err(expected) => self.wrong("inference.clients", expected, got),
            }
        }
        rules
    }
}

/// Of a number that was checked.
fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
