//! The fleet server's admin API, typed.
//!
//! Every call has a time-out and a bound on its answer; the server's own error object is what is
//! shown when it refuses.

mod captures;
mod consumers;
mod exports;
mod transport;
mod types;
mod upload;

pub use types::{
    BrokerAddress, CreateRollout, Fleet, IssuedClaim, IssuedConsumer, OnlineKeys, RolloutView,
};

use dunlin_protocol::archive::length_max;
use dunlin_protocol::id::{DeviceId, Digest, Family, RolloutId};
use dunlin_protocol::repository::RepositoryFile;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use transport::{Answer, Transport, bytes_body};

const JSON: &str = "application/json";
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Slowest upload that is waited for, in bytes a second.
const UPLOAD_MIN_BYTES_PER_S: u64 = 16 * 1024;

/// Why a call did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Address, CA or token cannot be used.
    #[error("{0}")]
    Setup(String),
    /// No connection, or it broke.
    #[error("fleet server {url} cannot be reached: {reason}")]
    Unreachable {
        /// Base URL.
        url: String,
        /// The cause.
        reason: String,
    },
    /// Connected, but no answer in time.
    #[error("fleet server {url}: no answer to {request} within {seconds} s")]
    TimedOut {
        /// Base URL.
        url: String,
        /// Method and path.
        request: String,
        /// Time waited, in seconds.
        seconds: u64,
    },
    /// The server said no.
    #[error("{}", refusal(*status, code, message))]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's code, empty if it sent none.
        code: String,
        /// The server's words.
        message: String,
    },
    /// An answer that cannot be read.
    #[error(
        "{request}: the answer is not understood: {problem}; are client and server one release apart at most?"
    )]
    Unreadable {
        /// Method and path.
        request: String,
        /// What is wrong.
        problem: String,
    },
    /// A file to upload cannot be read.
    #[error("{0}")]
    File(String),
}

fn refusal(status: u16, code: &str, message: &str) -> String {
    let hint = match status {
        401 => " (log in again: dunlin login --server URL --token-file FILE)",
        _ => "",
    };
    if code.is_empty() {
        format!("refused by the fleet server (HTTP {status}): {message}{hint}")
    } else {
        format!("refused by the fleet server ({code}): {message}{hint}")
    }
}

impl ApiError {
    /// Whether the server said that the thing asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// Where and as whom to connect.
#[derive(Clone)]
pub struct Connection {
    /// `https://HOST:PORT`, or `http://127.0.0.1:PORT` on loopback.
    pub url: String,
    /// Bearer token of an administrator.
    pub token: Option<String>,
    /// PEM of the CA (or of the server's own certificate) that vouches for the server.
    pub ca_pem: Option<String>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Path of a repository's file in the API; `%` is the one character in it that means something.
fn repository_path(file: &RepositoryFile) -> String {
    let name = file.to_string().replace('%', "%25");
    format!("/api/v1/repository/{name}")
}

/// A client of one fleet server.
#[derive(Clone)]
pub struct ApiClient {
    transport: Transport,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiClient({})", self.transport.base())
    }
}

impl ApiClient {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`ApiError::Setup`]: no such URL, plain HTTP beyond loopback, an unusable CA.
    pub fn new(connection: &Connection) -> Result<Self, ApiError> {
        let token = connection.token.clone();
        let transport = Transport::new(&connection.url, token, connection.ca_pem.as_deref())?;
        Ok(Self { transport })
    }

    /// The base URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.transport.base()
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, ApiError> {
        let body = bytes_body(body.map(|b| b.to_string()).unwrap_or_default());
        let sent = self
            .transport
            .send(method.clone(), path, JSON, body, CALL_TIMEOUT);
        accepted(sent.await?)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, ApiError> {
        let answer = self.exchange(method.clone(), path, body).await?;
        read(&format!("{method} {path}"), &answer.body)
    }

    /// GET any path as JSON (`/api/v1/…`).
    ///
    /// # Errors
    /// As every call: unreachable, refused, unreadable.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, None).await
    }

    /// Whether the server answers at all.
    ///
    /// # Errors
    /// It does not, or says that it is not healthy.
    pub async fn health(&self) -> Result<(), ApiError> {
        self.exchange(Method::GET, "/healthz", None).await.map(drop)
    }

    /// The fleet: its CA, online keys, addresses and newest metadata versions.
    ///
    /// # Errors
    /// As every call.
    pub async fn fleet(&self) -> Result<Fleet, ApiError> {
        self.get("/api/v1/fleet").await
    }

    /// Uploads a root metadata file.
    ///
    /// # Errors
    /// As every call; refused if it is not the next root or lists other online keys.
    pub async fn put_root(&self, root_json: &[u8]) -> Result<(), ApiError> {
        let body = bytes_body(root_json.to_vec());
        let path = "/api/v1/trust/root";
        let sent = self
            .transport
            .send(Method::PUT, path, JSON, body, CALL_TIMEOUT);
        accepted(sent.await?).map(drop)
    }

    /// Uploads a chain of root metadata files, oldest first; those that are there are passed over.
    ///
    /// # Errors
    /// As every call; refused if a link does not hold or the last one lists other online keys.
    pub async fn put_roots(&self, roots: &[String]) -> Result<(), ApiError> {
        let body = json!({ "roots": roots });
        self.exchange(Method::PUT, "/api/v1/trust/roots", Some(body))
            .await
            .map(drop)
    }

    /// Has the server make its next online keys, unless they wait already.
    ///
    /// # Errors
    /// As every call.
    pub async fn make_online_keys(&self) -> Result<OnlineKeys, ApiError> {
        self.call(Method::POST, "/api/v1/trust/online-keys", None)
            .await
    }

    /// A metadata file as the server has it, such as `3.targets.json`; `None` if it has none.
    ///
    /// # Errors
    /// As every call.
    pub async fn metadata_file(&self, name: &str) -> Result<Option<Vec<u8>>, ApiError> {
        let path = format!("/api/v1/trust/metadata/{}", escape(name));
        match self.exchange(Method::GET, &path, None).await {
            Ok(answer) => Ok(Some(answer.body.to_vec())),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A file of the repository as devices get it, of at most `max_bytes` bytes; `None` if the
    /// server has none of that name.
    ///
    /// # Errors
    /// As every call.
    pub async fn repository_file(
        &self,
        file: &RepositoryFile,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let mut bytes = Vec::new();
        let path = repository_path(file);
        let length = self
            .transport
            .download(&path, max_bytes, &mut bytes)
            .await?;
        Ok(length.map(|_| bytes))
    }

    /// Writes a file of the repository to `to`, as it comes; gives its length, or `None` if the
    /// server has none of that name.
    ///
    /// # Errors
    /// As every call, or the file cannot be written.
    pub async fn download(
        &self,
        file: &RepositoryFile,
        to: &mut std::fs::File,
    ) -> Result<Option<u64>, ApiError> {
        let max_bytes = length_max(file);
        self.transport
            .download(&repository_path(file), max_bytes, to)
            .await
    }

    /// PUT to any path of the API.
    ///
    /// # Errors
    /// As every call.
    pub async fn put(&self, path: &str, body: Value) -> Result<(), ApiError> {
        self.exchange(Method::PUT, path, Some(body)).await.map(drop)
    }

    /// POST to any path of the API.
    ///
    /// # Errors
    /// As every call.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value, ApiError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// POST without a body to any path of the API.
    ///
    /// # Errors
    /// As every call.
    pub async fn act(&self, path: &str) -> Result<(), ApiError> {
        self.exchange(Method::POST, path, None).await.map(drop)
    }

    /// Deletes one of a collection.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete(&self, path: &str, name: &str) -> Result<(), ApiError> {
        let path = format!("{path}/{}", escape(name));
        self.exchange(Method::DELETE, &path, None).await.map(drop)
    }

    /// Issues the right to enrol `uses` devices.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_claim(
        &self,
        uses: u32,
        expires_in_s: u64,
        labels: &BTreeMap<String, String>,
    ) -> Result<IssuedClaim, ApiError> {
        let body = json!({"uses": uses, "expires_in_s": expires_in_s, "labels": labels});
        self.call(Method::POST, "/api/v1/tokens", Some(body)).await
    }

    /// The claims that are left, without their secrets.
    ///
    /// # Errors
    /// As every call.
    pub async fn claims(&self) -> Result<Vec<Value>, ApiError> {
        let answer = self.get("/api/v1/tokens").await?;
        Ok(items(answer, "tokens"))
    }

    /// Withdraws a claim.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_claim(&self, id: &str) -> Result<(), ApiError> {
        let path = format!("/api/v1/tokens/{}", escape(id));
        self.exchange(Method::DELETE, &path, None).await.map(drop)
    }

    /// All devices that match all of `query` (`label` as `k=v`, `online`, `family`, `version`, …),
    /// page by page.
    ///
    /// # Errors
    /// As every call.
    pub async fn devices(&self, query: &[(&str, String)]) -> Result<Vec<Value>, ApiError> {
        let mut query = query.to_vec();
        let mut all = Vec::new();
        loop {
            let path = format!("/api/v1/devices{}", query_text(&query));
            let answer: Value = self.get(&path).await?;
            let next = answer["next"].as_str().map(str::to_owned);
            let page = items(answer, "devices");
            let is_last = page.is_empty();
            all.extend(page);
            match next {
                Some(after) if !is_last => {
                    query.retain(|(key, _)| *key != "after");
                    query.push(("after", after));
                }
                _ => return Ok(all),
            }
        }
    }

    /// One device.
    ///
    /// # Errors
    /// As every call.
    pub async fn device(&self, device: &DeviceId) -> Result<Value, ApiError> {
        self.get(&format!("/api/v1/devices/{device}")).await
    }

    /// Shuts a device out until it is enrolled again.
    ///
    /// # Errors
    /// As every call.
    pub async fn revoke_device(&self, device: &DeviceId) -> Result<(), ApiError> {
        let path = format!("/api/v1/devices/{device}");
        self.exchange(Method::DELETE, &path, None).await.map(drop)
    }

    /// Pins a device to a published bundle by hand.
    ///
    /// # Errors
    /// As every call; refused for an unknown bundle or one below the floor.
    pub async fn pin_device(
        &self,
        device: &DeviceId,
        family: &Family,
        version: u64,
    ) -> Result<(), ApiError> {
        let path = format!("/api/v1/devices/{device}/desired");
        let body = json!({"family": family, "version": version});
        self.exchange(Method::PUT, &path, Some(body))
            .await
            .map(drop)
    }

    /// Whether the server holds this blob.
    ///
    /// # Errors
    /// As every call.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, ApiError> {
        let path = format!("/api/v1/blobs/{digest}");
        match self.exchange(Method::HEAD, &path, None).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Uploads a blob from a file; the server checks its hash.
    ///
    /// # Errors
    /// As every call, or the file cannot be read.
    pub async fn put_blob(&self, digest: &Digest, file: &Path) -> Result<(), ApiError> {
        let unreadable =
            |e: std::io::Error| ApiError::File(format!("cannot read {}: {e}", file.display()));
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        let length = opened.metadata().map_err(unreadable)?.len();
        let body = upload::FileBody::new(opened, length, &digest.short());
        let timeout = CALL_TIMEOUT + Duration::from_secs(length / UPLOAD_MIN_BYTES_PER_S);
        let path = format!("/api/v1/blobs/{digest}");
        let kind = "application/octet-stream";
        let body = http_body_util::BodyExt::boxed(body);
        let sent = self.transport.send(Method::PUT, &path, kind, body, timeout);
        accepted(sent.await?).map(drop)
    }

    /// A blob's bytes as it travels, at most `length` of them.
    ///
    /// # Errors
    /// As every call; longer or shorter than that is unreadable.
    pub async fn blob(&self, digest: &Digest, length: u64) -> Result<Vec<u8>, ApiError> {
        let path = format!("/api/v1/blobs/{digest}");
        let timeout = CALL_TIMEOUT + Duration::from_secs(length / UPLOAD_MIN_BYTES_PER_S);
        let max = usize::try_from(length).unwrap_or(usize::MAX);
        let empty = bytes_body(Vec::new());
        let sent = self
            .transport
            .send_for(Method::GET, &path, JSON, empty, timeout, max);
        let bytes = accepted(sent.await?)?.body.to_vec();
        if Digest::of(&bytes) != *digest {
            return Err(ApiError::Unreadable {
                request: format!("GET {path}"),
                problem: format!("{} bytes with another SHA-256", bytes.len()),
            });
        }
        Ok(bytes)
    }

    /// Whether the server holds the patch between two models, named by the SHA-256 of their files.
    ///
    /// # Errors
    /// As every call.
    pub async fn has_patch(&self, from: &Digest, to: &Digest) -> Result<bool, ApiError> {
        let path = format!("/api/v1/patches/{from}/{to}");
        match self.exchange(Method::HEAD, &path, None).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Uploads the patch between two models.
    ///
    /// # Errors
    /// As every call; refused for models that are not published, and for a patch that spares
    /// nothing.
    pub async fn put_patch(
        &self,
        from: &Digest,
        to: &Digest,
        patch: Vec<u8>,
    ) -> Result<(), ApiError> {
        let seconds = patch.len() as u64 / UPLOAD_MIN_BYTES_PER_S;
        let timeout = CALL_TIMEOUT + Duration::from_secs(seconds);
        let path = format!("/api/v1/patches/{from}/{to}");
        let kind = "application/octet-stream";
        let body = bytes_body(patch);
        let sent = self.transport.send(Method::PUT, &path, kind, body, timeout);
        accepted(sent.await?).map(drop)
    }

    /// Publishes signed targets with the manifests that they newly list.
    ///
    /// # Errors
    /// As every call; refused naming the missing blob or the check that failed.
    pub async fn publish(&self, targets: &str, manifests: &[String]) -> Result<Value, ApiError> {
        self.publish_list(None, targets, manifests).await
    }

    /// Publishes the signed list of a delegated role (top-level targets if `None`) with the
    /// manifests that it newly lists.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_list(
        &self,
        role: Option<&str>,
        list: &str,
        manifests: &[String],
    ) -> Result<Value, ApiError> {
        let body = match role {
            None => json!({"targets": list, "manifests": manifests}),
            Some(role) => json!({"delegated": {role: list}, "manifests": manifests}),
        };
        self.call(Method::POST, "/api/v1/bundles", Some(body)).await
    }

    /// All published bundles.
    ///
    /// # Errors
    /// As every call.
    pub async fn bundles(&self) -> Result<Vec<Value>, ApiError> {
        Ok(items(self.get("/api/v1/bundles").await?, "bundles"))
    }

    /// One published bundle.
    ///
    /// # Errors
    /// As every call.
    pub async fn bundle(&self, family: &Family, version: u64) -> Result<Value, ApiError> {
        self.get(&format!("/api/v1/bundles/{family}/{version}"))
            .await
    }

    /// Starts a rollout.
    ///
    /// # Errors
    /// As every call; refused with what stands against it.
    pub async fn create_rollout(&self, rollout: &CreateRollout) -> Result<RolloutView, ApiError> {
        self.create_rollout_with(rollout, false).await
    }

    /// Starts a rollout; with `allow_no_way_back` also one whose devices could not go back to what
    /// they run now.
    ///
    /// # Errors
    /// As every call; refused with what stands against it.
    pub async fn create_rollout_with(
        &self,
        rollout: &CreateRollout,
        allow_no_way_back: bool,
    ) -> Result<RolloutView, ApiError> {
        let mut body = to_value(rollout)?;
        if allow_no_way_back {
            body["allow_no_way_back"] = true.into();
        }
        self.call(Method::POST, "/api/v1/rollouts", Some(body))
            .await
    }

    /// All rollouts.
    ///
    /// # Errors
    /// As every call.
    pub async fn rollouts(&self) -> Result<Vec<Value>, ApiError> {
        Ok(items(self.get("/api/v1/rollouts").await?, "rollouts"))
    }

    /// One rollout with its report, verdicts and devices.
    ///
    /// # Errors
    /// As every call.
    pub async fn rollout(&self, id: &RolloutId) -> Result<RolloutView, ApiError> {
        self.get(&format!("/api/v1/rollouts/{id}")).await
    }

    /// Ends a rollout; its devices go back.
    ///
    /// # Errors
    /// As every call; refused if it has ended.
    pub async fn abort_rollout(&self, id: &RolloutId) -> Result<(), ApiError> {
        let path = format!("/api/v1/rollouts/{id}/abort");
        self.exchange(Method::POST, &path, None).await.map(drop)
    }

    /// Goes on with a paused rollout.
    ///
    /// # Errors
    /// As every call; refused if it is not paused.
    pub async fn resume_rollout(&self, id: &RolloutId) -> Result<(), ApiError> {
        let path = format!("/api/v1/rollouts/{id}/resume");
        self.exchange(Method::POST, &path, None).await.map(drop)
    }

    /// Drift per version and cohort (`family`, `version`, `cohort`, `rollout`, `since_ms`, …).
    ///
    /// # Errors
    /// As every call.
    pub async fn drift(&self, query: &[(&str, String)]) -> Result<Value, ApiError> {
        self.get(&format!("/api/v1/drift{}", query_text(query)))
            .await
    }
}

fn to_value<T: Serialize>(value: &T) -> Result<Value, ApiError> {
    serde_json::to_value(value).map_err(|e| ApiError::Setup(format!("request: {e}")))
}

/// The list in an answer: the answer itself, or its field `name`.
pub(crate) fn items(answer: Value, name: &str) -> Vec<Value> {
    match answer {
        Value::Array(list) => list,
        Value::Object(mut object) => match object.remove(name).or_else(|| object.remove("items")) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn read<T: DeserializeOwned>(request: &str, body: &[u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(body).map_err(|e| ApiError::Unreadable {
        request: request.to_owned(),
        problem: e.to_string(),
    })
}

fn accepted(answer: Answer) -> Result<Answer, ApiError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let error: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = error["error"]["code"].as_str().unwrap_or_default();
    let message = match error["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => plain_message(answer.status, &answer.body),
    };
    Err(ApiError::Refused {
        status: answer.status.as_u16(),
        code: code.to_owned(),
        message: message.chars().take(4000).collect(),
    })
}

fn plain_message(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text: String = text.trim().chars().take(300).collect();
    if text.is_empty() {
        status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned()
    } else {
        text
    }
}

fn query_text(query: &[(&str, String)]) -> String {
    let pairs: Vec<String> = query
        .iter()
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests;
