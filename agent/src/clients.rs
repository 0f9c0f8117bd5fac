//! Which applications may ask for which models. Pure, but for reading the system's accounts at start.
//!
//! Who asks is known by what the kernel says of the other end of the Unix socket, or by a token that the
//! request carries. Without rules, whoever reaches a socket may ask for everything.

use crate::files;
use dunlin_protocol::id::{Digest, Family};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Most rules.
const RULES_MAX: usize = 64;
const ACCOUNTS_MAX_BYTES: u64 = 4 << 20;
/// Every model.
const EVERY: &str = "*";

/// Who a rule is about, by numbers, as the kernel knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Who {
    /// A user.
    User(u32),
    /// A group: those whose own it is, and its members.
    Group {
        /// Its number.
        gid: u32,
        /// Its members' user ids.
        members: Vec<u32>,
    },
    /// Whoever has the token with this SHA-256.
    Token(Digest),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    who: Who,
    /// Families, or `*`.
    models: Vec<String>,
}

/// The rules; none: everybody may ask for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clients(Vec<Rule>);

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this machine, by the kernel's word.
    Process {
        /// Its effective user when it connected.
        uid: u32,
        /// Its effective group.
        gid: u32,
    },
    /// Anybody.
    Unknown,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    peer: Peer,
    token: Option<Digest>,
}

/// Why somebody may not ask for a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nobody knows who it is.
    #[error("expected an Authorization: Bearer token that this device knows (inference.clients)")]
    Unknown,
    /// It is known, and no rule lets it.
    #[error("not open to {0} (inference.clients)")]
    NotYours(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { uid, gid } => write!(f, "user {uid}, group {gid}"),
            Self::Unknown => f.write_str("this client"),
        }
    }
}

impl Clients {
    /// Who sent a request with these headers.
    pub(crate) fn caller(&self, peer: Peer, headers: &HeaderMap) -> Caller {
        let token = if self.0.is_empty() {
            None
        } else {
            let value = headers.get(AUTHORIZATION).map(|v| v.as_bytes());
            let token = value.and_then(|v| v.split_at_checked(7));
            token
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
                .map(|(_, token)| Digest::of(token.trim_ascii()))
        };
        Caller { peer, token }
    }

    /// Lets a user ask for more models, where rules decide at all.
    #[must_use]
    pub fn letting(mut self, uid: u32, models: impl IntoIterator<Item = String>) -> Self {
        let models: Vec<String> = models.into_iter().collect();
        if !self.0.is_empty() && !models.is_empty() {
            let who = Who::User(uid);
            self.0.push(Rule { who, models });
        }
        self
    }

    /// Whether a caller may ask for a model.
    pub(crate) fn may(&self, caller: &Caller, model: &str) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut known = matches!(caller.peer, Peer::Process { .. });
        for rule in self.0.iter().filter(|rule| rule.who.is(caller)) {
            if rule.models.iter().any(|m| m == EVERY || m == model) {
                return Ok(());
            }
            known = true;
        }
        if known {
            return Err(Refusal::NotYours(caller.peer.to_string()));
        }
        Err(Refusal::Unknown)
    }
}

impl Who {
    fn is(&self, caller: &Caller) -> bool {
        match (self, caller.peer) {
            // Digests are compared: the time that takes says nothing of the token.
            (Self::Token(token), _) => caller.token == Some(*token),
            (Self::User(user), Peer::Process { uid, .. }) => *user == uid,
            (
                Self::Group {
                    gid: group,
                    members,
                },
                Peer::Process { uid, gid },
            ) => *group == gid || members.contains(&uid),
            (_, Peer::Unknown) => false,
        }
    }
}

/// Users and groups of the system, as `/etc/passwd` and `/etc/group` have them.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    users: String,
    groups: String,
}

impl Accounts {
    /// Reads the system's.
    ///
    /// # Errors
    /// Which file cannot be read.
    pub fn of_system() -> Result<Self, files::FileError> {
        let read = |path: &str| {
            let bytes = files::read_bounded(Path::new(path), ACCOUNTS_MAX_BYTES)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Self {
            users: read("/etc/passwd")?,
            groups: read("/etc/group")?,
        })
    }

    fn entry<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
        let lines = table
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>());
        let mut lines = lines.filter(|fields| fields.len() >= 4);
        lines.find(|fields| fields[0] == name)
    }

    /// A user's number, by name or number.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<u32> {
        let named = Self::entry(&self.users, name);
        named.map_or(name, |fields| fields[2]).parse().ok()
    }

    /// A group's number, by name or number.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        let named = Self::entry(&self.groups, name);
        named.map_or(name, |fields| fields[2]).parse().ok()
    }

    fn members(&self, gid: u32) -> Vec<u32> {
        let lines = self
            .groups
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>());
        let of_group = lines.filter(|f| f.len() >= 4 && f[2].parse() == Ok(gid));
        let names = of_group.flat_map(|f| f[3].split(',').collect::<Vec<_>>());
        names.filter_map(|name| self.user(name.trim())).collect()
    }
}

/// One rule as configured: `user:camera`, `group:vision` or `token:SHA-256` and what it may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRule {
    who: String,
    models: Vec<String>,
}

impl ClientRule {
    /// Checks a rule's form; whether the account exists is seen at start.
    ///
    /// # Errors
    /// What was expected.
    pub fn new(who: &str, models: Vec<String>) -> Result<Self, String> {
        let valid = match who.split_once(':') {
            Some(("user" | "group", name)) => !name.is_empty() && name.len() <= 64,
            Some(("token", digest)) => digest.parse::<Digest>().is_ok(),
            _ => false,
        };
        if !valid {
            return Err("user:NAME, group:NAME or token:SHA-256".to_owned());
        }
        let named = |m: &String| m == EVERY || m.parse::<Family>().is_ok();
        if models.is_empty() || models.len() > RULES_MAX || !models.iter().all(named) {
            return Err(format!("1 to {RULES_MAX} model names, or [\"{EVERY}\"]"));
        }
        Ok(Self {
            who: who.to_owned(),
            models,
        })
    }
}

/// An account of the configuration that this system has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("inference.{key}: there is no {account} in /etc/passwd or /etc/group")]
pub struct UnknownAccount {
    /// The key.
    pub key: &'static str,
    /// `user "camera"`, `group "vision"`.
    pub account: String,
}

impl Clients {
    /// The rules by the numbers that this system's accounts have.
    ///
    /// # Errors
    /// An account that there is not.
    pub fn resolve(rules: &[ClientRule], accounts: &Accounts) -> Result<Self, UnknownAccount> {
        let resolve = |rule: &ClientRule| {
            let (kind, name) = rule.who.split_once(':').unwrap_or_default();
            let who = match kind {
                "user" => accounts.user(name).map(Who::User),
                "group" => accounts.group(name).map(|gid| Who::Group {
                    gid,
                    members: accounts.members(gid),
                }),
                _ => name.parse().ok().map(Who::Token),
            };
            let models = rule.models.clone();
            who.map(|who| Rule { who, models })
                .ok_or_else(|| UnknownAccount {
                    key: "clients",
                    account: format!("{kind} {name:?}"),
                })
        };
        rules
            .iter()
            .map(resolve)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            users:
                "root:x:0:0:root:/root:/bin/sh\ncamera:x:901:901::/:/bin/false\nlab:x:902:100::/:"
                    .to_owned(),
            groups: "root:x:0:\nvision:x:700:lab,nobody\ncamera:x:901:\n".to_owned(),
        }
    }

    fn rules(rules: &[(&str, &[&str])]) -> Clients {
        let rule = |(who, models): &(&str, &[&str])| {
            let models = models.iter().map(ToString::to_string).collect();
            ClientRule::new(who, models).unwrap()
        };
        let rules: Vec<_> = rules.iter().map(rule).collect();
        Clients::resolve(&rules, &accounts()).unwrap()
    }

    fn process(uid: u32, gid: u32) -> Caller {
        let peer = Peer::Process { uid, gid };
        Caller { peer, token: None }
    }

    fn with_token(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        headers
    }

    #[test]
    fn without_rules_everybody_may_ask_for_everything() {
        let clients = Clients::default();
        let caller = clients.caller(Peer::Unknown, &HeaderMap::new());
        assert_eq!(clients.may(&caller, "digits"), Ok(()));
    }

    #[test]
    fn a_rule_opens_its_models_to_its_users_and_groups() {
        let clients = rules(&[
            ("user:camera", &["digits"]),
            ("group:vision", &["faces", "digits"]),
            ("user:1000", &["*"]),
        ]);
        for (uid, gid, model, may) in [
            (901, 901, "digits", true),
            (901, 901, "faces", false),
            (902, 100, "faces", true),
            (5, 700, "faces", true),
            (1000, 1000, "anything", true),
            (0, 0, "digits", false),
        ] {
            let got = clients.may(&process(uid, gid), model);
            assert_eq!(got.is_ok(), may, "{uid}:{gid} {model}");
        }
        let refused = clients.may(&process(0, 0), "digits").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "not open to user 0, group 0 (inference.clients)"
        );
    }

    #[test]
    fn a_token_opens_over_any_socket_and_nothing_else_does_over_tcp() {
        let token = format!("token:{}", Digest::of(b"secret"));
        let clients = rules(&[(&token, &["digits"]), ("user:0", &["digits"])]);
        let caller = |headers: &HeaderMap| clients.caller(Peer::Unknown, headers);
        assert_eq!(
            clients.may(&caller(&with_token("secret")), "digits"),
            Ok(())
        );
        for headers in [HeaderMap::new(), with_token("Secret")] {
            let refusal = clients.may(&caller(&headers), "digits");
            assert_eq!(refusal, Err(Refusal::Unknown));
        }
        let other = clients.may(&caller(&with_token("secret")), "faces");
        assert!(matches!(other, Err(Refusal::NotYours(_))));
    }

    #[test]
    fn rules_have_a_form_and_accounts_must_exist() {
        let models = || vec!["digits".to_owned()];
        for who in ["camera", "user:", "token:abc", "host:x"] {
            assert!(ClientRule::new(who, models()).is_err(), "{who}");
        }
        assert!(ClientRule::new("user:a", vec![]).is_err());
        assert!(ClientRule::new("user:a", vec!["no such/name".to_owned()]).is_err());
        let stranger = ClientRule::new("group:nobody-here", models()).unwrap();
        let error = Clients::resolve(&[stranger], &accounts()).unwrap_err();
        assert!(
            error.to_string().contains("group \"nobody-here\""),
            "{error}"
        );
    }

    #[test]
    fn rules_travel_to_the_worker_unchanged() {
        let clients = rules(&[("user:camera", &["digits"]), ("group:vision", &["*"])]);
        let json = serde_json::to_string(&clients).unwrap();
        assert_eq!(serde_json::from_str::<Clients>(&json).unwrap(), clients);
    }

    #[test]
    fn a_user_may_be_let_more_only_where_rules_decide() {
        let may = |clients: &Clients, uid, model| clients.may(&process(uid, 1), model).is_ok();
        let models = || ["digits".to_owned()];
        let ruled = rules(&[("user:camera", &["faces"])]).letting(77, models());
        assert!(may(&ruled, 77, "digits") && !may(&ruled, 77, "faces"));
        assert!(!may(&ruled, 78, "digits") && may(&ruled, 901, "faces"));
        let open = Clients::default().letting(77, models());
        assert!(may(&open, 78, "faces"), "no rules: everybody");
    }
}
