//! A fleet server in this process, and devices as the agent's own code makes them.

use dunlin_agent::config::Settings as AgentSettings;
use dunlin_agent::files::Disk;
use dunlin_agent::http::{Client, HttpError, Limits};
use dunlin_agent::identity::{DeviceKey, Identity};
use dunlin_agent::renew::Renewer;
use dunlin_protocol::enroll::{RecoverRequest, RecoveryNonce, recovery_message};
use dunlin_protocol::id::{DeviceId, Digest};
use dunlin_server::config::EnrolmentSettings;
use dunlin_server::pki::Pki;
use dunlin_server::store::{Succession, Successor};
use dunlin_server::{RunningServer, Server, Settings};
use dunlin_tests::fleet::agent_settings;
use dunlin_tests::http;
use dunlin_tests::mosquitto::free_port;
use dunlin_tests::operator::{Operator, eventually};
use dunlin_tests::process::Process;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) const YEAR_S: u32 = 365 * 24 * 3600;
type Answer = (u16, String);

pub(crate) struct Desk {
    dir: TempDir,
    settings: Settings,
    server: Option<RunningServer>,
    operator: Operator,
    /// TLS of whoever has no certificate.
    stranger: std::sync::OnceLock<Arc<ClientConfig>>,
}

impl Desk {
    pub(crate) async fn open(enrolment: EnrolmentSettings) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("server");
        let mut settings = Settings::loopback("test".parse().unwrap(), state_dir);
        settings.enrolment = enrolment;
        // The same after a restart.
        settings.devices.listen.set_port(free_port().unwrap());
        let server = Server::start(settings.clone()).await.unwrap();
        let token = server.first_admin_token.clone().unwrap();
        let admin = server.admin.to_string();
        let operator = Operator::new(dir.path(), &admin, &token).await.unwrap();
        Self {
            dir,
            settings,
            server: Some(server),
            operator,
            stranger: std::sync::OnceLock::new(),
        }
    }

    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().shutdown().await;
    }

    pub(crate) async fn start(&mut self) {
        self.server = Some(Server::start(self.settings.clone()).await.unwrap());
    }

    pub(crate) async fn enrol(&self, name: &str) -> Device {
        let settings = agent_settings(&self.dir.path().join(name), name).unwrap();
        let claim = self.operator.claim(1).await.unwrap();
        dunlin_agent::enroll::enroll(&settings, &claim)
            .await
            .unwrap();
        let device = Device {
            id: name.parse().unwrap(),
            settings,
        };
        let tls = device.identity().anonymous_tls().unwrap();
        let _ = self.stranger.set(Arc::new(tls));
        device
    }

    /// A key that belongs to no device.
    pub(crate) fn stranger(&self) -> DeviceKey {
        DeviceKey::load_or_create(&self.dir.path().join("stranger")).unwrap()
    }

    pub(crate) async fn revoke(&self, name: &str) {
        let device: DeviceId = name.parse().unwrap();
        self.operator.client().revoke_device(&device).await.unwrap();
    }

    pub(crate) async fn has_event(&self, name: &str, code: &str) {
        eventually(code, async || {
            let text = self.events(name).await;
            Ok(text
                .contains(&format!("{code:?}"))
                .then_some(())
                .ok_or(text))
        })
        .await
        .unwrap();
    }

    pub(crate) async fn events(&self, name: &str) -> String {
        let path = format!("/api/v1/devices/{name}/events");
        let events: Value = self.operator.client().get(&path).await.unwrap();
        events.to_string()
    }

    /// Waits until the one device is connected.
    pub(crate) async fn is_online(&self) {
        self.operator.online(1).await.unwrap();
    }

    /// Waits until no device is connected.
    pub(crate) async fn is_offline(&self) {
        self.operator.online(0).await.unwrap();
    }

    /// A device's key and a certificate for it that the fleet's CA signed and that ended so many days
    /// ago.
    pub(crate) fn ended(&self, name: &str, days: i64) -> (Ended, Digest) {
        let device: DeviceId = name.parse().unwrap();
        let folder = self.settings.state_dir.join("pki");
        let now = jiff::Timestamp::now();
        let (fleet, names) = (&self.settings.fleet, &self.settings.names);
        let pki = Pki::open(&folder, fleet, names, now).unwrap();
        let pki = pki.with_device_life(60);
        let state = self.dir.path().join(format!("{name}-{days}"));
        let key = DeviceKey::load_or_create(&state).unwrap();
        let csr = pki.check_csr(&key.csr_pem(name).unwrap()).unwrap();
        let then = now - jiff::SignedDuration::from_hours(24 * days);
        let signed = pki.sign_device(csr, &device, then).unwrap();
        let ended = Ended {
            device,
            key,
            pem: signed.pem,
            sha256: signed.sha256,
        };
        (ended, signed.sha256)
    }

    /// What the holder of that key would send to recover.
    pub(crate) async fn prove(&self, ended: Ended) -> RecoverRequest {
        let next = DeviceKey::load_or_create(&self.dir.path().join(ended.sha256.short()));
        let csr_pem = next.unwrap().csr_pem("x").unwrap();
        let nonce = self.post_for("/identity/recover/nonce", b"null").await;
        let nonce: RecoveryNonce = serde_json::from_slice(&nonce.body).unwrap();
        let nonce = nonce.nonce;
        let Ended { device, sha256, .. } = &ended;
        let message = recovery_message(&self.settings.fleet, device, &nonce, sha256, &csr_pem);
        RecoverRequest {
            proof_hex: hex(&ended.key.sign(&message).unwrap()),
            certificate_pem: ended.pem,
            csr_pem,
            nonce,
        }
    }

    pub(crate) async fn recover(&self, request: &RecoverRequest) -> Answer {
        self.recover_raw(&serde_json::to_vec(request).unwrap())
            .await
    }

    pub(crate) async fn recover_raw(&self, body: &[u8]) -> Answer {
        self.post("/identity/recover", body).await
    }

    async fn post(&self, path: &str, body: &[u8]) -> Answer {
        status_and_code(&self.post_for(path, body).await)
    }

    async fn post_for(&self, path: &str, body: &[u8]) -> http::Answer {
        let tls = Arc::clone(self.stranger.get().expect("a device enrolled"));
        post(tls, self.settings.devices.listen.port(), path, body).await
    }
}

/// A certificate whose time is over, and its key.
pub(crate) struct Ended {
    device: DeviceId,
    key: DeviceKey,
    pem: String,
    sha256: Digest,
}

pub(crate) struct Device {
    id: DeviceId,
    settings: AgentSettings,
}

impl Device {
    /// As the device finds itself at a start.
    pub(crate) fn identity(&self) -> Identity {
        Identity::load(&self.settings.state_dir).unwrap().unwrap()
    }

    pub(crate) fn key(&self) -> DeviceKey {
        DeviceKey::load_or_create(&self.settings.state_dir).unwrap()
    }

    pub(crate) fn renewer(&self) -> Renewer {
        let limits = Limits::from(&self.settings.update);
        Renewer::new(&self.identity(), &Disk::native(), limits)
    }

    pub(crate) fn key_files(&self) -> Vec<String> {
        let folder = std::fs::read_dir(self.settings.state_dir.join("identity")).unwrap();
        let names = folder.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.ends_with(".key")).collect()
    }

    /// The same device once more, as of now: a disk copied, or stolen.
    pub(crate) fn copy(&self) -> Self {
        let mut settings = self.settings.clone();
        settings.state_dir = self.settings.state_dir.with_extension("copy");
        copy(&self.settings.state_dir, &settings.state_dir);
        let id = self.id.clone();
        Self { id, settings }
    }

    /// The agent as a process; to be called from the test's own thread.
    pub(crate) fn start(&self, program: &str) -> Process {
        let config = self.home().join("agent.toml");
        let arguments = ["agent", "run", "--config", config.to_str().unwrap()];
        let log = [("DUNLIN_LOG", "info")];
        Process::start_with(Path::new(program), &arguments, &log, &self.log_path()).unwrap()
    }

    fn home(&self) -> &Path {
        self.settings.state_dir.parent().unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.home().join("agent.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub(crate) async fn has_another_certificate(&self) {
        let before = self.identity().certificate_sha256();
        eventually("another certificate", async || {
            let is_another = self.identity().certificate_sha256() != before;
            Ok(is_another.then_some(()).ok_or(before.short()))
        })
        .await
        .unwrap();
    }

    /// Waits until the certificate is to be renewed, at the latest.
    pub(crate) async fn is_due(&self) {
        let due = dunlin_agent::renew::due(self.identity().validity(), u32::MAX);
        eventually("the certificate is due", async || {
            let left = due.as_second() - jiff::Timestamp::now().as_second();
            Ok((left <= 0).then_some(()).ok_or(format!("{left} s left")))
        })
        .await
        .unwrap();
    }

    /// Waits for the end of the certificate.
    pub(crate) async fn has_ended(&self) {
        let identity = self.identity();
        let end = identity.validity().not_after;
        eventually("the certificate ends", async || {
            // Whole seconds: it is good through its last one.
            let left = end.as_second() - identity.clock().now().as_second();
            Ok((left < 0).then_some(()).ok_or(format!("{left} s left")))
        })
        .await
        .unwrap();
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let identity = self.identity();
        let port = port(&identity);
        let tls = identity.rustls_client_config();
        let answer = post(tls, port, path, body.to_string().as_bytes()).await;
        status_and_code(&answer)
    }

    /// Records a certificate as one that follows on the device's present one.
    pub(crate) async fn was_given(&self, desk: &Desk, sha256: Digest) {
        let store = &desk.server.as_ref().unwrap().store;
        let holds = self.identity().certificate_sha256();
        let successor = Successor {
            sha256,
            public_key_sha256: sha256.0,
        };
        let given = store.succeed(&self.id, &holds, &successor, 99, 0).await;
        assert_eq!(given.unwrap(), Succession::Recorded);
    }

    /// For downloads, and what there is to download.
    pub(crate) fn client(&self) -> (Client, String) {
        let identity = self.identity();
        let limits = Limits::from(&self.settings.update);
        let client = Client::new(&identity.rustls_client_config(), limits);
        let base = &identity.enrolled.repository_url;
        (client, format!("{base}/repository/metadata/1.root.json"))
    }

    pub(crate) async fn download_refused(&self, code: &str) {
        let (client, url) = self.client();
        match client.get(&url, 1 << 20).await.unwrap_err() {
            HttpError::Status { reason, .. } => assert_eq!(reason.as_deref(), Some(code)),
            other => panic!("{other}"),
        }
    }

    /// A recovery as the device itself would ask for it.
    pub(crate) async fn recovery(&self) -> RecoverRequest {
        let identity = self.identity();
        let csr_pem = identity.next_key().unwrap().csr_pem("x").unwrap();
        let nonce = self.nonce(&identity).await;
        RecoverRequest {
            proof_hex: hex(&identity.prove(&nonce, &csr_pem).unwrap()),
            certificate_pem: identity.certificate_pem(),
            csr_pem,
            nonce,
        }
    }

    /// A recovery of this device's certificate with a signature by another key.
    pub(crate) async fn recovery_signed_by(&self, other: &DeviceKey) -> RecoverRequest {
        let identity = self.identity();
        let csr_pem = other.csr_pem("x").unwrap();
        let nonce = self.nonce(&identity).await;
        let enrolled = &identity.enrolled;
        let sha256 = identity.certificate_sha256();
        let message = recovery_message(&enrolled.fleet, &self.id, &nonce, &sha256, &csr_pem);
        RecoverRequest {
            proof_hex: hex(&other.sign(&message).unwrap()),
            certificate_pem: identity.certificate_pem(),
            csr_pem,
            nonce,
        }
    }

    async fn nonce(&self, identity: &Identity) -> String {
        let limits = Limits::from(&self.settings.update);
        let client = Client::new(&identity.anonymous_tls().unwrap(), limits);
        let base = &identity.enrolled.repository_url;
        let url = format!("{base}/identity/recover/nonce");
        let answer = client.post_json(&url, &(), 4096).await.unwrap();
        let nonce: RecoveryNonce = serde_json::from_slice(&answer).unwrap();
        nonce.nonce
    }
}

/// A device certificate of another fleet.
pub(crate) fn foreign_certificate() -> String {
    let dir = tempfile::tempdir().unwrap();
    let now = jiff::Timestamp::now();
    let fleet = "other".parse().unwrap();
    let pki = Pki::open(dir.path(), &fleet, &[], now).unwrap();
    let key = DeviceKey::load_or_create(dir.path()).unwrap();
    let csr = pki.check_csr(&key.csr_pem("edge-1").unwrap()).unwrap();
    let signed = pki.sign_device(csr, &"edge-1".parse().unwrap(), now);
    signed.unwrap().pem
}

fn port(identity: &Identity) -> u16 {
    let (_, port) = identity.enrolled.repository_url.rsplit_once(':').unwrap();
    port.parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn copy(from: &Path, to: &PathBuf) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (
            entry.as_ref().unwrap().path(),
            to.join(entry.unwrap().file_name()),
        );
        match entry.is_dir() {
            true => copy(&entry, &to),
            false => drop(std::fs::copy(&entry, &to).unwrap()),
        }
    }
}

async fn post(tls: Arc<ClientConfig>, port: u16, path: &str, body: &[u8]) -> http::Answer {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(tls).connect(name, tcp).await.unwrap();
    let headers = [("content-type", "application/json")];
    let request = http::request("POST", path, &headers, body);
    http::exchange(stream, &request).await.unwrap()
}

/// Status and the code of the error, empty if there is none.
fn status_and_code(answer: &http::Answer) -> Answer {
    let json = answer.json();
    let code = json["error"]["code"].as_str().unwrap_or_default();
    (answer.status, code.to_owned())
}
