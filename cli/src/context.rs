//! Which fleet server a command talks to, and as whom.
//!
//! Option, then environment, then `context.toml`. A token is never an argument: other users of the
//! machine could read it in the process list.

use crate::api::{ApiClient, ApiError, Connection, Fleet};
use crate::args::{LoginArgs, Shared};
use crate::failure::{Exit, Failure};
use crate::files::{self, FileError};
use crate::table;
use dunlin_protocol::id::Digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

const CONTEXT_MAX_BYTES: u64 = 64 * 1024;
const TOKEN_MAX_BYTES: u64 = 4096;
const CA_MAX_BYTES: u64 = 256 * 1024;

/// Why no connection could be put together.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// No server named anywhere.
    #[error("no fleet server: give --server URL, set DUNLIN_SERVER, or run `dunlin login`")]
    NoServer,
    /// No token found.
    #[error(
        "no token for {url}: give --token-file FILE, set DUNLIN_TOKEN or DUNLIN_TOKEN_FILE, or run `dunlin login`"
    )]
    NoToken {
        /// The server.
        url: String,
    },
    /// A file cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// The context file is damaged.
    #[error("{path}: {problem}; run `dunlin login` to write it anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No home folder to keep the context in.
    #[error("neither HOME nor XDG_CONFIG_HOME is set: name the file with --context FILE")]
    NoHome,
    /// The token file is empty.
    #[error("{0} holds no token")]
    EmptyToken(String),
}

/// What `dunlin login` keeps.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Base URL of the admin API.
    pub server: String,
    /// File with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The token itself, when it came from standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// PEM that vouches for the admin API's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The fleet CA pinned at login; claim tokens are sealed with no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet_ca_sha256: Option<Digest>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("server", &self.server)
            .field("fleet_ca_sha256", &self.fleet_ca_sha256)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of the first certificate in a PEM text, over its DER.
///
/// # Errors
/// [`ApiError::Setup`] if there is none.
pub fn certificate_sha256(pem: &str) -> Result<Digest, ApiError> {
    match CertificateDer::from_pem_slice(pem.as_bytes()) {
        Ok(der) => Ok(Digest::of(&der)),
        Err(e) => Err(ApiError::Setup(format!("fleet CA: no certificate: {e}"))),
    }
}

/// What a command connects with.
#[derive(Debug)]
pub struct Session {
    /// The client.
    pub client: ApiClient,
    /// The fleet CA pinned at login, if the server is the one logged in to.
    pub fleet_ca_sha256: Option<Digest>,
    /// Output as JSON.
    pub json: bool,
}

impl Session {
    /// Puts the connection together from options, environment and context.
    ///
    /// # Errors
    /// Nothing names a server or a token, or a file is unusable.
    pub fn open(shared: &Shared) -> Result<Self, Failure> {
        let saved = load(shared)?;
        let saved_url = (!saved.server.is_empty()).then(|| saved.server.clone());
        let named = shared.server.clone();
        let url = named
            .or_else(|| saved_url.clone())
            .ok_or(ContextError::NoServer)?;
        // What was saved for one server is not shown to another.
        let is_saved = saved_url.as_deref().map(normal) == Some(normal(&url));
        let saved = if is_saved { saved } else { Context::default() };
        let token = token(shared, &saved)?;
        let ca_pem = match &shared.ca {
            Some(file) => Some(files::read_text(file, CA_MAX_BYTES).map_err(ContextError::from)?),
            None => saved.ca_pem,
        };
        let token = token.ok_or_else(|| ContextError::NoToken { url: url.clone() })?;
        let client = ApiClient::new(&Connection {
            url,
            token: Some(token),
            ca_pem,
        })?;
        Ok(Self {
            client,
            fleet_ca_sha256: saved.fleet_ca_sha256,
            json: shared.json,
        })
    }

    /// The fleet, whose CA must be the pinned one, and that CA's hash.
    ///
    /// # Errors
    /// As every call, or another CA than at login.
    pub async fn fleet(&self) -> Result<(Fleet, Digest), Failure> {
        let fleet = self.client.fleet().await?;
        let got = certificate_sha256(&fleet.ca_pem)?;
        match self.fleet_ca_sha256 {
            Some(pinned) if pinned != got => Err(Failure::new(format!(
                "the fleet CA is {got}, but {pinned} was pinned at login: this is another server, or its state \
                 was replaced. If that is right, run `dunlin login` again"
            ))),
            _ => Ok((fleet, got)),
        }
    }
}

fn normal(url: &str) -> &str {
    url.trim_end_matches('/')
}

fn path(shared: &Shared) -> Result<PathBuf, ContextError> {
    if let Some(file) = &shared.context {
        return Ok(file.clone());
    }
    let folder = |name: &str| {
        let value = std::env::var_os(name).filter(|v| !v.is_empty());
        value.map(PathBuf::from)
    };
    let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    Ok(config
        .ok_or(ContextError::NoHome)?
        .join("dunlin/context.toml"))
}

fn load(shared: &Shared) -> Result<Context, ContextError> {
    let path = match path(shared) {
        Ok(path) => path,
        // Without a home, options and environment may still say everything.
        Err(ContextError::NoHome) => return Ok(Context::default()),
        Err(e) => return Err(e),
    };
    if !path.exists() {
        return Ok(Context::default());
    }
    let text = files::read_text(&path, CONTEXT_MAX_BYTES)?;
    toml::from_str(&text).map_err(|e| ContextError::Damaged {
        path,
        // The parser's full text quotes the line, which could be the token.
        problem: e.message().to_owned(),
    })
}

fn token(shared: &Shared, saved: &Context) -> Result<Option<String>, ContextError> {
    if let Some(file) = &shared.token_file {
        return read_token(file).map(Some);
    }
    if let Some(token) = std::env::var("DUNLIN_TOKEN")
        .ok()
        .filter(|t| !t.trim().is_empty())
    {
        return Ok(Some(token.trim().to_owned()));
    }
    match &saved.token_file {
        Some(file) => read_token(file).map(Some),
        None => Ok(saved.token.clone()),
    }
}

fn read_token(file: &Path) -> Result<String, ContextError> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin()
            .lock()
            .take(TOKEN_MAX_BYTES)
            .read_to_string(&mut text);
        read.map_err(|error| FileError::Io {
            action: "cannot read",
            path: PathBuf::from("standard input"),
            error,
        })?;
        text
    } else {
        files::read_text(file, TOKEN_MAX_BYTES)?
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(ContextError::EmptyToken(file.display().to_string()));
    }
    Ok(token.to_owned())
}

/// `dunlin login`.
///
/// # Errors
/// The server cannot be reached, refuses the token, or the context cannot be written.
pub async fn login(args: &LoginArgs) -> Result<Exit, Failure> {
    let shared = &args.shared;
    let url = shared.server.clone().ok_or(ContextError::NoServer)?;
    let ca_pem = match &shared.ca {
        Some(file) => Some(files::read_text(file, CA_MAX_BYTES).map_err(ContextError::from)?),
        None => None,
    };
    let token = token(shared, &Context::default())?;
    let token = token.ok_or_else(|| ContextError::NoToken { url: url.clone() })?;
    let client = ApiClient::new(&Connection {
        url: url.clone(),
        token: Some(token.clone()),
        ca_pem: ca_pem.clone(),
    })?;
    let fleet = client.fleet().await?;
    let pin = certificate_sha256(&fleet.ca_pem)?;
    let named_file = shared
        .token_file
        .as_deref()
        .filter(|f| *f != Path::new("-"));
    let token_file = match named_file {
        Some(file) => Some(std::path::absolute(file).map_err(Failure::usage)?),
        None => None,
    };
    let context = Context {
        server: normal(&url).to_owned(),
        token: token_file.is_none().then_some(token),
        token_file,
        ca_pem,
        fleet_ca_sha256: Some(pin),
    };
    let path = path(shared)?;
    if let Some(folder) = path.parent() {
        files::make_private_folder(folder)?;
    }
    let text = toml::to_string(&context).map_err(Failure::new)?;
    files::write_secret(&path, text.as_bytes())?;
    if shared.json {
        table::print_json(&json!({
            "server": context.server, "fleet": fleet.fleet, "fleet_ca_sha256": pin, "context": path,
        }));
    } else {
        table::print_line(&format!(
            "Logged in to fleet {} at {}\nfleet CA pinned: {pin}\nkept in {}",
            fleet.fleet,
            context.server,
            path.display()
        ));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shared(context: &Path) -> Shared {
        Shared {
            context: Some(context.to_owned()),
            ..Shared::default()
        }
    }

    #[test]
    fn options_win_and_a_saved_token_stays_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("context.toml");
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "tok\n").unwrap();
        let saved = Context {
            server: "http://127.0.0.1:1".to_owned(),
            token: Some("saved".to_owned()),
            ..Context::default()
        };
        files::write_secret(&file, toml::to_string(&saved).unwrap().as_bytes()).unwrap();
        let session = Session::open(&shared(&file)).unwrap();
        assert_eq!(session.client.url(), "http://127.0.0.1:1");
        let other = Shared {
            server: Some("http://127.0.0.1:2".to_owned()),
            ..shared(&file)
        };
        let refused = Session::open(&other).unwrap_err();
        assert!(refused.message.contains("no token"), "{refused}");
        assert_eq!(refused.exit, Exit::Usage);
        let with_file = Shared {
            token_file: Some(token_file),
            ..other
        };
        assert!(Session::open(&with_file).is_ok());
    }

    #[test]
    fn a_damaged_context_does_not_print_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("context.toml");
        std::fs::write(&file, "server = 3\ntoken = 'geheim'\n").unwrap();
        let refused = Session::open(&shared(&file)).unwrap_err();
        assert!(!refused.message.contains("geheim"), "{refused}");
        assert!(refused.message.contains("dunlin login"), "{refused}");
    }
}
