//! A server in this process, its operator with keys, and devices.

use dunlin_protocol::bundle::{
    Blob, DType, Files, Limits, Lineage, Manifest, Resources, Steps, TensorSpec,
};
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{
    Key, Role, SigningKey, TargetCustom, TargetEntry, new_root, new_targets, sign_envelope,
};
use dunlin_server::{RunningServer, Server, Settings};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(crate) struct Fleet {
    pub(crate) server: RunningServer,
    pub(crate) token: String,
    pub(crate) dir: tempfile::TempDir,
    root: SigningKey,
    targets: [SigningKey; 3],
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", self.bytes))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

pub(crate) async fn send(client: &HttpClient, request: Request<Full<Bytes>>) -> Answer {
    let response = client.request(request).await.unwrap();
    let (head, body) = response.into_parts();
    Answer {
        status: head.status,
        headers: head.headers,
        bytes: body.collect().await.unwrap().to_bytes(),
    }
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, token) = Self::start_in(&dir).await;
        Self {
            server,
            token: token.unwrap(),
            dir,
            root: key(1),
            targets: [key(2), key(3), key(4)],
        }
    }

    /// One that looks at its alert rules ten times a second.
    pub(crate) async fn start_looking_often() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, token) = Self::start_with(&dir, |s| s.alerts_tick_ms = 100).await;
        Self {
            server,
            token: token.unwrap(),
            dir,
            root: key(1),
            targets: [key(2), key(3), key(4)],
        }
    }

    /// One that stores a MiB of captured samples of each device.
    pub(crate) async fn start_with_little_room() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, token) = Self::start_with(&dir, |s| s.captures.device_max_mib = 1).await;
        Self {
            server,
            token: token.unwrap(),
            dir,
            root: key(1),
            targets: [key(2), key(3), key(4)],
        }
    }

    /// A start on a folder that a server left.
    pub(crate) async fn resume(dir: tempfile::TempDir, token: String) -> Self {
        let (server, _) = Self::start_in(&dir).await;
        Self {
            server,
            token,
            dir,
            root: key(1),
            targets: [key(2), key(3), key(4)],
        }
    }

    async fn start_in(dir: &tempfile::TempDir) -> (RunningServer, Option<String>) {
        Self::start_with(dir, |s| s.alerts_tick_ms = 1_000).await
    }

    async fn start_with(
        dir: &tempfile::TempDir,
        tune: impl FnOnce(&mut Settings),
    ) -> (RunningServer, Option<String>) {
        let state_dir = dir.path().join("state");
        let mut settings = Settings::loopback("demo".parse().unwrap(), state_dir);
        tune(&mut settings);
        let server = Server::start(settings).await.unwrap();
        let token = server.first_admin_token.clone();
        (server, token)
    }

    /// A clean stop and a start on the same folder.
    pub(crate) async fn restart(self) -> Self {
        self.server.shutdown().await;
        let (server, token) = Self::start_in(&self.dir).await;
        assert_eq!(token, None, "the first token is made once");
        Self { server, ..self }
    }

    pub(crate) fn plain() -> HttpClient {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(None, None))
            .https_or_http()
            .enable_http1()
            .build();
        Client::builder(TokioExecutor::new()).build(connector)
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.server.admin))
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::from(body))
            .unwrap()
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Answer {
        send(&Self::plain(), self.request(method, path, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, body.to_string().into_bytes())
            .await
    }

    pub(crate) async fn root_json(&self, version: u64, with_own_keys: bool) -> Vec<u8> {
        let online = self.get("/api/v1/fleet").await.json()["online_keys"].clone();
        let online = |role: &str| match with_own_keys {
            true => Key::from_json(&online[role]).unwrap(),
            false => key(9).public_key(),
        };
        self.root_with(version, online("snapshot"), online("timestamp"))
    }

    /// A root with these keys for the server.
    pub(crate) fn root_with(&self, version: u64, snapshot: Key, timestamp: Key) -> Vec<u8> {
        let targets = self.targets.iter().map(SigningKey::public_key).collect();
        let roles = BTreeMap::from([
            (Role::Root, (vec![self.root.public_key()], 1)),
            (Role::Targets, (targets, 2)),
            (Role::Snapshot, (vec![snapshot], 1)),
            (Role::Timestamp, (vec![timestamp], 1)),
        ]);
        let signed = new_root(version, in_days(300), &roles).unwrap();
        sign_envelope(signed, &[&self.root]).unwrap().to_bytes()
    }

    pub(crate) async fn set_root(&self) {
        let root = self.root_json(1, true).await;
        let set = self.call(Method::PUT, "/api/v1/trust/root", root).await;
        assert_eq!(set.status, StatusCode::OK, "{:?}", set.bytes);
    }

    pub(crate) async fn put_blob(&self, content: &[u8]) -> StatusCode {
        let path = format!("/api/v1/blobs/{}", Digest::of(content));
        self.call(Method::PUT, &path, content.to_vec()).await.status
    }

    /// Targets of this version, signed by so many of the three keys, two of which must.
    pub(crate) fn targets_json(&self, version: u64, bundles: &[Bundle], signers: usize) -> String {
        let entries: Vec<TargetEntry> = bundles.iter().map(|b| b.target.clone()).collect();
        let signed = new_targets(version, in_days(90), &entries);
        let keys: Vec<&SigningKey> = self.targets.iter().take(signers).collect();
        let bytes = sign_envelope(signed, &keys).unwrap().to_bytes();
        String::from_utf8(bytes).unwrap()
    }

    pub(crate) async fn publish(&self, version: u64, bundles: &[Bundle], signers: usize) -> Answer {
        let manifests: Vec<&str> = bundles.iter().map(|b| b.manifest.as_str()).collect();
        let targets = self.targets_json(version, bundles, signers);
        self.post(
            "/api/v1/bundles",
            &json!({ "targets": targets, "manifests": manifests }),
        )
        .await
    }

    pub(crate) async fn claim(&self, uses: u32) -> String {
        let issued = self
            .post(
                "/api/v1/tokens",
                &json!({ "uses": uses, "labels": { "site": "north" } }),
            )
            .await;
        assert_eq!(issued.status, StatusCode::CREATED, "{:?}", issued.bytes);
        issued.json()["secret"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn ca(&self) -> CertificateDer<'static> {
        let fleet = self.get("/api/v1/fleet").await.json();
        CertificateDer::from_pem_slice(fleet["ca_pem"].as_str().unwrap().as_bytes()).unwrap()
    }

    /// Enrols with a device's key; the answer, and a client with the certificate it got.
    pub(crate) async fn enrol(
        &self,
        secret: &str,
        device: Option<&str>,
        key: &KeyPair,
    ) -> (Answer, Option<HttpClient>) {
        let csr = CertificateParams::default().serialize_request(key).unwrap();
        let body = json!({
            "secret": secret, "device": device, "csr_pem": csr.pem().unwrap(),
            "arch": "x86_64", "hardware": "generic", "agent_version": "0.1.0",
        });
        let ca = self.ca().await;
        let answer = self
            .device_call(
                &device_client(&ca, None),
                Method::POST,
                "/enroll",
                &[],
                body.to_string(),
            )
            .await;
        if answer.status != StatusCode::OK {
            return (answer, None);
        }
        let pem = answer.json()["certificate_pem"]
            .as_str()
            .unwrap()
            .to_owned();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let own = (certificate, key.serialize_der());
        (answer, Some(device_client(&ca, Some(own))))
    }

    pub(crate) async fn device_call(
        &self,
        client: &HttpClient,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let uri = format!("https://localhost:{}{path}", self.server.devices.port());
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(client, request.body(Full::new(body.into())).unwrap()).await
    }

    pub(crate) async fn download(
        &self,
        client: &HttpClient,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.device_call(client, Method::GET, path, headers, String::new())
            .await
    }
}

pub(crate) fn device_client(
    ca: &CertificateDer<'static>,
    own: Option<(CertificateDer<'static>, Vec<u8>)>,
) -> HttpClient {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls(Some(ca), own))
        .https_only()
        .enable_http1()
        .build();
    Client::builder(TokioExecutor::new()).build(connector)
}

fn tls(
    ca: Option<&CertificateDer<'static>>,
    own: Option<(CertificateDer<'static>, Vec<u8>)>,
) -> rustls::ClientConfig {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    if let Some(ca) = ca {
        roots.add(ca.clone()).unwrap();
    }
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(vec![certificate], PrivateKeyDer::try_from(key).unwrap())
            .unwrap(),
    }
}

fn in_days(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}

/// A bundle as an operator's tool packs it.
#[derive(Clone)]
pub(crate) struct Bundle {
    pub(crate) manifest: String,
    pub(crate) target: TargetEntry,
    pub(crate) model: Vec<u8>,
    pub(crate) golden: Vec<u8>,
}

pub(crate) fn bundle(version: u64, rollback_floor: u64) -> Bundle {
    bundle_with(version, rollback_floor, None)
}

/// One with a reference profile.
pub(crate) fn bundle_with(version: u64, rollback_floor: u64, profile: Option<&[u8]>) -> Bundle {
    let model = format!("model {version}").into_bytes();
    let golden = format!("golden {version}").into_bytes();
    let blob = |bytes: &[u8]| Blob {
        sha256: Digest::of(bytes),
        length: bytes.len() as u64,
        packed: None,
    };
    let tensor = |name: &str| TensorSpec {
        name: name.to_owned(),
        dtype: DType::FP32,
        shape: vec![1, 4],
        layout: None,
    };
    let manifest = Manifest {
        schema: Manifest::SCHEMA.to_owned(),
        kind: "model".to_owned(),
        family: "digits".parse().unwrap(),
        version,
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        steps: Steps::default(),
        application: None,
        labels: Vec::new(),
        limits: Limits {
            tolerance_abs: 1e-3,
            latency_budget_ms: 100,
        },
        resources: Resources {
            ram_bytes: 1,
            disk_bytes: 1,
            arch: vec!["any".to_owned()],
            agent_min: "0.1.0".to_owned(),
        },
        lineage: Lineage::default(),
        capture: None,
        files: Files {
            model: blob(&model),
            golden: blob(&golden),
            profile: profile.map(blob),
            card: None,
        },
    };
    let bytes = manifest.to_bytes().unwrap();
    let custom = TargetCustom {
        family: manifest.family.clone(),
        version,
        hardware: vec!["any".to_owned()],
        rollback_floor,
        kind: "model".to_owned(),
    };
    Bundle {
        target: TargetEntry::of(manifest.target_path(), &bytes, &custom),
        manifest: String::from_utf8(bytes).unwrap(),
        model,
        golden,
    }
}
