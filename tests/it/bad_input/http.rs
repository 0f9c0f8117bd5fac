//! Malformed and oversized requests at the admin API and at enrolment, and tokens that are no good.

use super::{fleet, goes_on};
use dunlin::token::{self, Claim};
use dunlin_agent::enroll::{EnrollError, enroll};
use dunlin_protocol::enroll::ClaimToken;
use dunlin_tests::fleet::{Fleet, agent_settings};
use dunlin_tests::http::{Answer, exchange, over_tcp, request};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

fn told(answer: &Answer, status: u16, words: &[&str]) {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    let message = answer.json()["error"]["message"]
        .as_str()
        .map(str::to_owned);
    let message = message.unwrap_or_else(|| panic!("no message: {text}"));
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_admin_api_says_what_is_wrong_with_a_body() {
    let fleet = fleet(1).await;
    let (admin, token) = (
        fleet.server().admin,
        fleet.server().first_admin_token.clone(),
    );
    let bearer = format!("Bearer {}", token.unwrap());
    let send = async |method: &str, path: &str, bearer: &str, body: &[u8]| {
        let headers = [
            ("authorization", bearer),
            ("content-type", "application/json"),
        ];
        over_tcp(admin, &request(method, path, &headers, body))
            .await
            .unwrap()
    };
    let claims = "/api/v1/tokens";
    let rollouts = "/api/v1/rollouts";
    told(
        &send("POST", claims, "Bearer wrong", b"{}").await,
        401,
        &["token"],
    );
    told(
        &send("POST", claims, &bearer, b"{").await,
        400,
        &["body", "EOF"],
    );
    told(
        &send("POST", claims, &bearer, b"{\"uses\":\"many\"}").await,
        400,
        &["many"],
    );
    told(
        &send("POST", rollouts, &bearer, b"\xff").await,
        400,
        &["body"],
    );
    told(
        &send("POST", rollouts, &bearer, b"{\"family\":\"digits\"}").await,
        400,
        &["version"],
    );
    let huge = vec![b' '; (1 << 20) + 1];
    told(
        &send("POST", rollouts, &bearer, &huge).await,
        413,
        &["longer"],
    );
    told(
        &send("GET", "/api/v1/nothing", &bearer, b"").await,
        404,
        &["/api/v1/nothing"],
    );
    told(
        &send("PATCH", rollouts, &bearer, b"").await,
        405,
        &["PATCH"],
    );
    told(
        &send("GET", "/api/v1/devices/nobody", &bearer, b"").await,
        404,
        &["nobody"],
    );

    // No HTTP at all, and a head without an end of its own.
    assert!(
        over_tcp(admin, b"\x16\x03\x01hello\r\n\r\n")
            .await
            .is_ok_and(|a| a.status == 400)
    );
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000));
    let answer = over_tcp(admin, long.as_bytes()).await.unwrap();
    assert!(
        [400, 414, 431].contains(&answer.status),
        "{}",
        answer.status
    );
    goes_on(&fleet).await;
    fleet.end().await.unwrap();
}

async fn over_tls(address: SocketAddr, ca_pem: &str, request: &[u8]) -> Answer {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::from(address.ip());
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    exchange(connector.connect(name, stream).await.unwrap(), request)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn enrolment_says_what_is_wrong_with_a_body() {
    let fleet = fleet(1).await;
    let devices = fleet.server().devices;
    let ca = fleet.operator.client().fleet().await.unwrap().ca_pem;
    let send = async |body: &[u8]| {
        let bytes = request(
            "POST",
            "/enroll",
            &[("content-type", "application/json")],
            body,
        );
        over_tls(devices, &ca, &bytes).await
    };
    told(&send(b"{").await, 400, &["enrolment", "EOF"]);
    told(
        &send(b"{\"secret\":\"x\"}").await,
        400,
        &["enrolment", "csr_pem"],
    );
    told(&send(&vec![b' '; (256 << 10) + 1]).await, 413, &["longer"]);
    let body = br#"{"secret":"aa","csr_pem":"no request","arch":"x86_64","hardware":"any","agent_version":"1"}"#;
    let answer = send(body).await;
    told(&answer, 400, &["signing request"]);
    goes_on(&fleet).await;
    fleet.end().await.unwrap();
}

async fn try_claim(fleet: &Fleet, name: &str, claim: &ClaimToken) -> Result<(), EnrollError> {
    let settings = agent_settings(&fleet.dir.path().join(name), name).unwrap();
    enroll(&settings, claim).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn claim_tokens_that_are_no_good_say_why() {
    let fleet = fleet(1).await;
    let good = fleet.operator.claim(1).await.unwrap();
    try_claim(&fleet, "first", &good).await.unwrap();
    let used_up = try_claim(&fleet, "second", &good).await.unwrap_err();
    assert!(
        matches!(used_up, EnrollError::TokenRefused { .. }),
        "{used_up:?}"
    );
    assert!(used_up.to_string().contains("spent"), "{used_up}");

    let mut unknown = fleet.operator.claim(1).await.unwrap();
    unknown.secret = "0".repeat(64);
    let told = try_claim(&fleet, "third", &unknown).await.unwrap_err();
    assert!(told.to_string().contains("not known"), "{told}");

    let claim = Claim {
        uses: 1,
        expires_in: Duration::from_secs(1),
        labels: [].into(),
    };
    let keys = fleet.dir.path().join("keys");
    let brief = token::create(&fleet.operator.session, &keys, &claim).await;
    let brief = brief.unwrap().token;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let expired = try_claim(&fleet, "fourth", &brief).await.unwrap_err();
    assert!(
        matches!(expired, EnrollError::TokenExpired { .. }),
        "{expired:?}"
    );

    // Sealed hashes that are not this fleet's: nothing is believed, no use is spent.
    let fresh = fleet.operator.claim(1).await.unwrap();
    let mut other = fresh.clone();
    other.ca_sha256 = dunlin_protocol::id::Digest::of(b"another CA");
    let told = try_claim(&fleet, "fifth", &other).await.unwrap_err();
    assert!(matches!(told, EnrollError::WrongCa { .. }), "{told:?}");
    try_claim(&fleet, "fifth", &fresh).await.unwrap();

    let text = fresh.to_string();
    for cut in [&text[1..], &text[..text.len() - 9], ""] {
        let told = cut.parse::<ClaimToken>().unwrap_err().to_string();
        assert!(told.contains("claim token"), "{told}");
    }
    goes_on(&fleet).await;
    fleet.end().await.unwrap();
}
