#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use dunlin_protocol::id::DeviceId;
use rcgen::SigningKey as _;
use rustls::pki_types::ServerName;
use std::os::unix::fs::PermissionsExt as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

fn open(folder: &Path, names: &[&str], day: i64) -> Pki {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let now = jiff::Timestamp::from_second(1_700_000_000 + day * 86_400).unwrap();
    Pki::open(folder, &"demo".parse().unwrap(), &names, now).unwrap()
}

fn csr(common_name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serialize_request(&key).unwrap().pem().unwrap()
}

#[test]
fn the_ca_stays_and_the_server_certificate_follows_names_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), &["localhost", "127.0.0.1"], 0);
    let again = open(dir.path(), &["localhost", "127.0.0.1"], 1);
    assert_eq!(first.ca_sha256(), again.ca_sha256());
    assert_eq!(first.server.chain(), again.server.chain());
    let renamed = open(dir.path(), &["fleet.example", "::1"], 1);
    assert_ne!(first.server.chain()[0], renamed.server.chain()[0]);
    assert_eq!(
        open(dir.path(), &["fleet.example", "::1"], 2)
            .server
            .chain(),
        renamed.server.chain()
    );
    assert_ne!(
        open(dir.path(), &["fleet.example", "::1"], 800)
            .server
            .chain(),
        renamed.server.chain()
    );
    let mode = std::fs::metadata(dir.path().join("ca.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    first.device_tls().unwrap();
    first.mqtt_tls().unwrap();
    client_tls_from_files(&first.mqtt_client_files()).unwrap();
}

#[test]
fn the_shared_subscription_has_a_name_that_stays_and_that_nobody_can_guess() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let name = |dir: &tempfile::TempDir, day| open(dir.path(), &["localhost"], day).share_name();
    // Also over the renewal of the server's own certificates.
    assert_eq!(name(&dirs[0], 0), name(&dirs[0], 800));
    assert_ne!(name(&dirs[0], 0), name(&dirs[1], 0));
    assert!(
        name(&dirs[0], 0)
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-')
    );
}

#[test]
fn a_consumers_certificate_names_no_device() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &["localhost"], 0);
    let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let checked = pki.check_csr(&csr("edge-1")).unwrap();
    let name = "grafana".parse().unwrap();
    let signed = pki.sign_consumer(checked, &name, now).unwrap();
    let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
    let (common_name, sha256) = peer_name(&der).unwrap();
    assert_eq!(common_name, "consumer+grafana");
    assert_eq!(sha256, signed.sha256);
    assert!(peer_identity(&der).is_err());
    assert!(pki.read_pass(&signed.pem).is_err());
    assert_eq!(signed.expires_ms, (1_700_000_000 + 365 * 24 * 3600) * 1000);
}

#[test]
fn only_the_key_is_taken_from_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &["localhost"], 0);
    let device: DeviceId = "edge-1".parse().unwrap();
    let checked = pki.check_csr(&csr("root")).unwrap();
    let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let signed = pki.sign_device(checked, &device, now).unwrap();
    let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
    assert_eq!(peer_identity(&der), Ok((device, signed.sha256)));
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(certificate.subject_alternative_name().unwrap().is_none());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
}

#[test]
fn bad_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &["localhost"], 0);
    let good = csr("a");
    for bad in ["", "nonsense", &good[..good.len() / 2], &good.repeat(100)] {
        assert!(matches!(pki.check_csr(bad), Err(PkiError::Csr(_))));
    }
    // One bit of the signature flipped: possession is not proven.
    let (_, pem) = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap();
    let mut der = pem.contents;
    let last = der.len() - 1;
    der[last] ^= 1;
    use base64::Engine as _;
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::engine::general_purpose::STANDARD.encode(der)
    );
    assert!(matches!(pki.check_csr(&forged), Err(PkiError::Csr(_))));
}

#[test]
fn a_ca_without_its_key_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &["localhost"], 0);
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let again = Pki::open(dir.path(), &"demo".parse().unwrap(), &[], now);
    assert!(matches!(again, Err(PkiError::CaKeyMissing(_))));
}

fn at_day(day: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000 + day * 86_400).unwrap()
}

fn device_key_and_pass(pki: &Pki, day: i64) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let checked = pki.check_csr(&csr.pem().unwrap()).unwrap();
    let device: DeviceId = "edge-1".parse().unwrap();
    let signed = pki.sign_device(checked, &device, at_day(day)).unwrap();
    (key, signed.pem)
}

#[test]
fn a_pass_is_read_after_its_end_and_only_its_key_signs_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &["localhost"], 0).with_device_life(60);
    let (key, pem) = device_key_and_pass(&pki, 0);
    let pass = pki.read_pass(&pem).unwrap();
    assert_eq!(pass.device.as_str(), "edge-1");
    assert_eq!(pass.issued, at_day(0));
    assert_eq!(
        pass.not_after,
        at_day(0) + jiff::SignedDuration::from_secs(60)
    );
    assert_eq!(
        pass.public_key_sha256,
        Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&key)).0
    );
    let signature = key.sign(b"message").unwrap();
    assert!(pass.has_signed(b"message", &signature));
    assert!(!pass.has_signed(b"massage", &signature));
    assert!(!pass.has_signed(b"message", &signature[1..]));
    assert!(!pass.has_signed(b"message", b""));
    let other = KeyPair::generate().unwrap();
    assert!(!pass.has_signed(b"message", &other.sign(b"message").unwrap()));
}

#[test]
fn only_device_certificates_of_this_ca_are_passes() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pki = open(dir.path(), &["localhost"], 0);
    let other = open(other_dir.path(), &["localhost"], 0);
    let (_, foreign) = device_key_and_pass(&other, 0);
    let says = |pem: &str| pki.read_pass(pem).unwrap_err().to_string();
    assert!(
        says(&foreign).contains("does not vouch"),
        "{}",
        says(&foreign)
    );
    assert!(says("").contains("PEM"));
    assert!(says(&foreign.repeat(100)).contains("at most"));
    // The server's own certificates are of this CA, and still no device's.
    let server = std::fs::read_to_string(dir.path().join("server.pem")).unwrap();
    assert!(
        says(&server).contains("does not vouch"),
        "{}",
        says(&server)
    );
    assert!(says(pki.ca_pem()).contains("does not vouch"));
}

#[test]
fn a_short_life_is_not_backdated_away() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &["localhost"], 0).with_device_life(20);
    let (_, pem) = device_key_and_pass(&pki, 0);
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let validity = certificate.validity();
    assert_eq!(pki.read_pass(&pem).unwrap().issued, at_day(0));
    let signed = at_day(0).as_second();
    assert_eq!(validity.not_before.timestamp(), signed - 1);
    assert_eq!(validity.not_after.timestamp(), signed + 20);
}

/// The leaf that a TLS server shows to a client of this fleet at a time.
fn shown(server: &Arc<ServerConfig>, client: &ClientConfig, day: i64) -> CertificateDer<'static> {
    #[derive(Debug)]
    struct At(i64);
    impl rustls::time_provider::TimeProvider for At {
        fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
            let seconds = u64::try_from(at_day(self.0).as_second()).unwrap();
            let since = std::time::Duration::from_secs(seconds);
            Some(rustls::pki_types::UnixTime::since_unix_epoch(since))
        }
    }
    let mut roots = RootCertStore::empty();
    let chain = client.client_auth_cert_resolver.resolve(&[], &[]).unwrap();
    roots.add(chain.cert[1].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_details(provider, Arc::new(At(day)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    client.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn a_running_server_renews_its_own_certificates_and_devices_notice_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &["localhost"], 0);
    let (server, client) = (pki.admin_tls().unwrap(), pki.mqtt_client_tls().unwrap());
    let own = || {
        client
            .client_auth_cert_resolver
            .resolve(&[], &[])
            .unwrap()
            .cert[0]
            .clone()
    };
    let (shown_first, own_first) = (shown(&server, &client, 1), own());
    assert!(!pki.renew_own(at_day(700)).unwrap(), "a while to go");
    assert_eq!(shown(&server, &client, 700), shown_first);

    assert!(pki.renew_own(at_day(800)).unwrap());
    let renewed = shown(&server, &client, 800);
    assert_ne!(renewed, shown_first);
    assert_ne!(own(), own_first);
    // Long after the first one's end, under the CA that every device pinned.
    assert_eq!(shown(&server, &client, 1500), renewed);
    assert!(!pki.renew_own(at_day(801)).unwrap(), "once");
    assert_eq!(
        open(dir.path(), &["localhost"], 801).server.chain()[0],
        renewed
    );
}

#[test]
fn another_ca_in_the_folder_is_not_taken_while_running() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pki = open(dir.path(), &["localhost"], 0);
    open(other_dir.path(), &["localhost"], 0);
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(other_dir.path().join(file), dir.path().join(file)).unwrap();
    }
    assert!(matches!(
        pki.renew_own(at_day(800)),
        Err(PkiError::Damaged { .. })
    ));
}

#[test]
fn to_an_external_broker_the_renewed_certificate_is_shown_too() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pki = open(dir.path(), &["localhost"], 0);
    let broker = open(other_dir.path(), &["localhost"], 0);
    let given = broker.mqtt_client_files();
    let pair = Some((given.cert.as_path(), given.key.as_path()));
    let configs = [
        pki.external_mqtt_tls(None, None).unwrap(),
        pki.external_mqtt_tls(Some(&given.ca), None).unwrap(),
        pki.external_mqtt_tls(Some(&given.ca), pair).unwrap(),
    ];
    let leaves = || {
        configs.each_ref().map(|config| {
            let shown = config.client_auth_cert_resolver.resolve(&[], &[]);
            shown.unwrap().cert[0].clone()
        })
    };
    let before = leaves();
    assert!(pki.renew_own(at_day(800)).unwrap());
    let after = leaves();
    let renewed = pki.mqtt_client.chain()[0].clone();
    assert_ne!(renewed, before[0]);
    assert_eq!(after, [renewed.clone(), renewed, before[2].clone()]);
    assert!(
        pki.external_mqtt_tls(Some(&dir.path().join("none.pem")), None)
            .is_err()
    );
}
