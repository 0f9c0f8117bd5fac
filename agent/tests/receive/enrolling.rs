//! First contact, honest and otherwise.

use super::repository::Repository;
use super::server::Server;
use dunlin_agent::config::Settings;
use dunlin_agent::enroll::{EnrollError, enroll};
use dunlin_agent::identity::Identity;
use dunlin_protocol::enroll::{ClaimToken, EnrollRequest, EnrollResponse};
use dunlin_protocol::id::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;

struct Desk {
    server: Arc<Server>,
    root: Vec<u8>,
    dir: TempDir,
    settings: Settings,
}

impl Desk {
    async fn open() -> Self {
        let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
        let root = Repository::new().metadata("1.root.json");
        let settings = Settings::in_folder(dir.path()).unwrap();
        let desk = Self {
            server,
            root,
            dir,
            settings,
        };
        desk.serve_root(desk.root.clone());
        desk
    }

    fn serve_root(&self, root: Vec<u8>) {
        let root_json = String::from_utf8(root).unwrap();
        self.server.on_enroll(move |server, body| {
            let request: EnrollRequest = serde_json::from_slice(body).unwrap();
            if request.secret != "secret" {
                return (
                    403,
                    br#"{"error":{"code":"token_unknown","message":"no such token"}}"#.to_vec(),
                );
            }
            let response = EnrollResponse {
                fleet: "demo".parse().unwrap(),
                device: "edge-7".parse().unwrap(),
                certificate_pem: server.certify(&request.csr_pem, "edge-7"),
                ca_pem: server.ca_pem(),
                root_json: root_json.clone(),
                mqtt_host: "localhost".to_owned(),
                mqtt_port: 8883,
                repository_url: server.url.clone(),
                labels: BTreeMap::from([("site".to_owned(), "lab".to_owned())]),
            };
            (200, serde_json::to_vec(&response).unwrap())
        });
    }

    fn token(&self) -> ClaimToken {
        ClaimToken {
            url: self.server.url.clone(),
            secret: "secret".to_owned(),
            ca_sha256: self.server.ca_sha256(),
            root_sha256: Digest::of(&self.root),
        }
    }

    async fn enroll(&self, token: &ClaimToken) -> Result<EnrollResponse, EnrollError> {
        enroll(&self.settings, token).await
    }

    fn key(&self) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join("identity/device.key")).ok()
    }
}

#[tokio::test]
async fn a_token_makes_an_identity_and_a_trust_root() {
    let desk = Desk::open().await;
    let response = desk.enroll(&desk.token()).await.unwrap();
    assert_eq!(response.device.as_str(), "edge-7");
    let identity = Identity::load(desk.dir.path()).unwrap().unwrap();
    assert_eq!(identity.enrolled.labels["site"], "lab");
    let stored = std::fs::read(desk.dir.path().join("trust/root.json")).unwrap();
    assert_eq!(stored, desk.root);

    // Again: another certificate for the same key.
    let key = desk.key();
    desk.enroll(&desk.token()).await.unwrap();
    assert_eq!(desk.key(), key);
    let renewed = Identity::load(desk.dir.path()).unwrap().unwrap();
    assert_ne!(
        renewed.enrolled.certificate_pem,
        identity.enrolled.certificate_pem
    );
}

#[tokio::test]
async fn a_refused_or_expired_token_says_so_and_the_key_is_used_again() {
    let desk = Desk::open().await;
    let mut token = desk.token();
    token.secret = "guess".to_owned();
    let error = desk.enroll(&token).await.unwrap_err();
    assert!(matches!(error, EnrollError::TokenRefused { code: 403, .. }));
    assert!(error.to_string().contains("no such token"), "{error}");
    assert!(!format!("{error:?}").contains("guess"));
    let key = desk.key().unwrap();
    assert!(Identity::load(desk.dir.path()).unwrap().is_none());

    desk.server.on_enroll(|_, _| {
        let body = br#"{"error":{"code":"token_expired","message":"expired 2 h ago"}}"#;
        (403, body.to_vec())
    });
    let error = desk.enroll(&desk.token()).await.unwrap_err();
    assert!(matches!(error, EnrollError::TokenExpired { .. }), "{error}");
    desk.serve_root(desk.root.clone());
    desk.enroll(&desk.token()).await.unwrap();
    assert_eq!(desk.key().unwrap(), key);
}

#[tokio::test]
async fn a_server_of_another_ca_never_sees_the_secret() {
    let desk = Desk::open().await;
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    desk.server.on_enroll(move |_, _| {
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
        (500, Vec::new())
    });
    let mut token = desk.token();
    token.ca_sha256 = Digest::of(b"our own CA");
    let error = desk.enroll(&token).await.unwrap_err();
    let EnrollError::WrongCa { got, .. } = &error else {
        panic!("{error}");
    };
    assert!(got.contains(&desk.server.ca_sha256()));
    assert!(!asked.load(std::sync::atomic::Ordering::SeqCst));

    // The right CA under another name is as wrong.
    let mut token = desk.token();
    token.url = token.url.replace("localhost", "127.0.0.1");
    let error = desk.enroll(&token).await.unwrap_err().to_string();
    assert!(error.contains("TLS with"), "{error}");
}

#[tokio::test]
async fn another_root_than_the_sealed_one_is_not_taken() {
    let desk = Desk::open().await;
    let mut other = desk.root.clone();
    other.push(b' ');
    desk.serve_root(other);
    let error = desk.enroll(&desk.token()).await.unwrap_err();
    assert!(matches!(error, EnrollError::WrongRoot { .. }), "{error}");
    assert!(!desk.dir.path().join("trust/root.json").exists());

    // Sealed, but signed by nobody.
    let forged = br#"{"signed":{"_type":"root"},"signatures":[]}"#.to_vec();
    desk.serve_root(forged.clone());
    let mut token = desk.token();
    token.root_sha256 = Digest::of(&forged);
    let error = desk.enroll(&token).await.unwrap_err();
    assert!(matches!(error, EnrollError::BadRoot(_)), "{error}");
    assert!(Identity::load(desk.dir.path()).unwrap().is_none());
}

#[tokio::test]
async fn an_enrolled_device_keeps_its_root() {
    let desk = Desk::open().await;
    desk.enroll(&desk.token()).await.unwrap();
    let mut other = Repository::new();
    other.sign_root(2, &[]);
    let root = other.metadata("2.root.json");
    desk.serve_root(root.clone());
    let mut token = desk.token();
    token.root_sha256 = Digest::of(&root);
    let error = desk.enroll(&token).await.unwrap_err();
    assert!(
        matches!(error, EnrollError::DifferentRoot { .. }),
        "{error}"
    );
    let stored = std::fs::read(desk.dir.path().join("trust/root.json")).unwrap();
    assert_eq!(stored, desk.root);
}

#[tokio::test]
async fn a_certificate_for_another_device_is_refused() {
    let desk = Desk::open().await;
    let root_json = String::from_utf8(desk.root.clone()).unwrap();
    desk.server.on_enroll(move |server, body| {
        let request: EnrollRequest = serde_json::from_slice(body).unwrap();
        let response = serde_json::json!({
            "fleet": "demo", "device": "edge-7",
            "certificate_pem": server.certify(&request.csr_pem, "edge-8"),
            "ca_pem": server.ca_pem(), "root_json": root_json,
            "mqtt_host": "h", "mqtt_port": 1, "repository_url": "https://h",
        });
        (200, response.to_string().into_bytes())
    });
    let error = desk.enroll(&desk.token()).await.unwrap_err();
    assert!(error.to_string().contains("edge-8"), "{error}");
    assert!(Identity::load(desk.dir.path()).unwrap().is_none());
}
