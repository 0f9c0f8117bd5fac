#![allow(clippy::unwrap_used)]
use super::*;
use crate::files::{FileSystem, Metadata, OpenFile};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};

fn ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn enrolled(ca: &CertifiedIssuer<'static, KeyPair>, csr: &str, name: &str) -> Enrolled {
    let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
    request.params.distinguished_name = rcgen::DistinguishedName::new();
    request
        .params
        .distinguished_name
        .push(DnType::CommonName, name);
    request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Enrolled {
        fleet: "demo".parse().unwrap(),
        device: "edge-1".parse().unwrap(),
        certificate_pem: request.signed_by(ca).unwrap().pem(),
        ca_pem: ca.pem(),
        mqtt_host: "localhost".to_owned(),
        mqtt_port: 8883,
        repository_url: "https://localhost:8443".to_owned(),
        labels: BTreeMap::new(),
        key_file: "device.key".to_owned(),
    }
}

#[test]
fn the_key_is_made_once_and_an_identity_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let key = DeviceKey::load_or_create(dir.path()).unwrap();
    let again = DeviceKey::load_or_create(dir.path()).unwrap();
    assert_eq!(
        key.pair.subject_public_key_info(),
        again.pair.subject_public_key_info()
    );
    assert!(Identity::load(dir.path()).unwrap().is_none());

    let ca = ca();
    let response = enrolled(&ca, &key.csr_pem("edge-1").unwrap(), "edge-1");
    let pin = Digest::of(ca.der());
    Identity::check(key, response.clone(), &pin)
        .unwrap()
        .store(dir.path())
        .unwrap();
    let identity = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(identity.enrolled, response);
    assert!(identity.validity().not_after > Timestamp::UNIX_EPOCH);
}

#[test]
fn a_certificate_of_another_key_name_or_ca_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let key = DeviceKey::load_or_create(dir.path()).unwrap();
    let other = DeviceKey::load_or_create(other_dir.path()).unwrap();
    let own = || DeviceKey::load_or_create(dir.path()).unwrap();
    let ca = ca();
    let pin = Digest::of(ca.der());
    let csr = key.csr_pem("x").unwrap();
    let says = |e: Result<Identity, IdentityError>| e.unwrap_err().to_string();

    let foreign = enrolled(&ca, &other.csr_pem("x").unwrap(), "edge-1");
    assert!(says(Identity::check(own(), foreign, &pin)).contains("another key"));
    let renamed = enrolled(&ca, &csr, "edge-2");
    assert!(says(Identity::check(own(), renamed, &pin)).contains("edge-2"));
    let wrong_pin = Identity::check(own(), enrolled(&ca, &csr, "edge-1"), &Digest::of(b""));
    assert!(says(wrong_pin).contains("claim token says"));
    let mut swapped = enrolled(&ca, &csr, "edge-1");
    let second_ca = self::ca();
    swapped.ca_pem = second_ca.pem();
    let unvouched = Identity::check(own(), swapped, &Digest::of(second_ca.der()));
    assert!(says(unvouched).contains("does not vouch"));
}

#[test]
fn an_open_or_damaged_key_is_neither_used_nor_replaced() {
    let dir = tempfile::tempdir().unwrap();
    DeviceKey::load_or_create(dir.path()).unwrap();
    let path = folder(dir.path()).join("device.key");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = DeviceKey::load_or_create(dir.path()).unwrap_err();
    assert!(matches!(open, IdentityError::OpenKey { mode: 0o644, .. }));
    files::write_atomic(&path, b"-----BEGIN PRIVATE KEY-----\nAA", 0o600).unwrap();
    let damaged = DeviceKey::load_or_create(dir.path()).unwrap_err();
    assert!(matches!(damaged, IdentityError::Damaged { .. }));
}

#[tokio::test]
async fn renewal_asks_the_proxy() {
    use crate::http::{Limits, Proxy};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let key = DeviceKey::load_or_create(dir.path()).unwrap();
    let ca = ca();
    let response = enrolled(&ca, &key.csr_pem("edge-1").unwrap(), "edge-1");
    let identity = Identity::check(key, response, &Digest::of(ca.der())).unwrap();
    identity.store(dir.path()).unwrap();
    let identity = Identity::load(dir.path()).unwrap().unwrap();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        // The tunnel comes about and is cut.
        let (mut client, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let head = String::from_utf8(head).unwrap();
        head.lines().next().unwrap().to_owned()
    });
    let limits = Limits {
        connect_timeout: std::time::Duration::from_secs(10),
        request_timeout: std::time::Duration::from_secs(10),
        rate_window: std::time::Duration::from_secs(10),
        rate_min_bytes_s: 1,
        bandwidth_bytes_s: 0,
    };
    let proxy = Proxy::fixed(&url.parse().unwrap());
    let renewer = crate::renew::Renewer::new(&identity, &Disk::native(), limits).through(proxy);
    renewer.renew_or_recover().await.unwrap_err();
    let first = asked.await.unwrap();
    assert_eq!(first, "CONNECT localhost:8443 HTTP/1.1");
}

/// A disk that dies at its n-th change: that one and all after it fail, as for a process that is
/// killed there.
#[derive(Debug)]
struct DiesAt {
    changes: AtomicUsize,
    dies_at: usize,
}

impl DiesAt {
    fn change(&self) -> io::Result<()> {
        match self.changes.fetch_add(1, Ordering::Relaxed) < self.dies_at {
            true => Ok(()),
            false => Err(io::Error::other("killed")),
        }
    }
}

fn unused<T>() -> io::Result<T> {
    Err(io::Error::other("not used by identities"))
}

impl FileSystem for DiesAt {
    fn open(&self, _: &Path) -> io::Result<Box<dyn OpenFile>> {
        unused()
    }
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>> {
        self.change()?;
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create_new(true).mode(mode);
        Ok(Box::new(options.open(path)?))
    }
    fn append(&self, _: &Path, _: u32) -> io::Result<Box<dyn OpenFile>> {
        unused()
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        std::fs::rename(from, to)
    }
    fn hard_link(&self, _: &Path, _: &Path) -> io::Result<()> {
        unused()
    }
    fn symlink(&self, _: &Path, _: &Path) -> io::Result<()> {
        unused()
    }
    fn read_link(&self, _: &Path) -> io::Result<PathBuf> {
        unused()
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        std::fs::remove_file(path)
    }
    fn create_dir(&self, _: &Path, _: u32) -> io::Result<()> {
        unused()
    }
    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        unused()
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.change()
    }
    fn set_mode(&self, _: &Path, _: u32) -> io::Result<()> {
        unused()
    }
    fn list(&self, path: &Path) -> io::Result<Vec<(std::ffi::OsString, Metadata)>> {
        let entries = std::fs::read_dir(path)?;
        entries
            .map(|entry| entry.and_then(|e| Ok((e.file_name(), e.metadata()?.into()))))
            .collect()
    }
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        Ok(std::fs::metadata(path)?.into())
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        unused()
    }
}

fn certificate_for(ca: &CertifiedIssuer<'static, KeyPair>, key: &DeviceKey) -> String {
    enrolled(ca, &key.csr_pem("edge-1").unwrap(), "edge-1").certificate_pem
}

fn an_enrolled_device(dir: &Path, ca: &CertifiedIssuer<'static, KeyPair>) -> Identity {
    let key = DeviceKey::load_or_create(dir).unwrap();
    let response = enrolled(ca, &key.csr_pem("edge-1").unwrap(), "edge-1");
    let identity = Identity::check(key, response, &Digest::of(ca.der())).unwrap();
    identity.store(dir).unwrap();
    identity
}

fn keys_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder(dir)).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.contains(".key")).collect()
}

#[test]
fn a_device_killed_anywhere_while_it_changes_its_certificate_has_a_whole_identity() {
    let ca = ca();
    let (mut olds, mut news) = (0, 0);
    for dies_at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let identity = an_enrolled_device(dir.path(), &ca);
        let old = identity.certificate_sha256();
        let key = identity.next_key().unwrap();
        let pem = certificate_for(&ca, &key);
        let candidate = identity.candidate(key, pem).unwrap();
        let changes = AtomicUsize::new(0);
        let disk = Disk::new(DiesAt { changes, dies_at });
        let adopted = identity.adopt(&disk, &candidate);

        let found = Identity::load(dir.path()).unwrap().unwrap();
        let is_new = found.certificate_sha256() == candidate.certificate_sha256();
        assert!(is_new || found.certificate_sha256() == old, "{dies_at}");
        if adopted.is_ok() {
            assert!(is_new, "{dies_at}");
            assert_eq!(identity.certificate_sha256(), found.certificate_sha256());
        }
        news += usize::from(is_new);
        olds += usize::from(!is_new);
        // The next renewal sweeps up whatever the kill left behind.
        let key = found.next_key().unwrap();
        let pem = certificate_for(&ca, &key);
        let last = found.candidate(key, pem).unwrap();
        found.adopt(&Disk::native(), &last).unwrap();
        assert_eq!(keys_in(dir.path()).len(), 1, "{dies_at}");
        let found = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!(found.certificate_sha256(), last.certificate_sha256());
        // Enrolling again is with the key in use.
        let again = DeviceKey::load_or_create(dir.path()).unwrap();
        assert_eq!(again.file, found.live.held().key.file);
        if adopted.is_ok() && keys_in(dir.path()).len() == 1 && dies_at > 16 {
            break;
        }
    }
    assert!(olds >= 6 && news >= 4, "{olds} {news}");
}

#[test]
fn a_renewal_and_an_enrolment_take_turns() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let running = an_enrolled_device(dir.path(), &ca);
    let next = |identity: &Identity| {
        let key = identity.next_key().unwrap();
        let pem = certificate_for(&ca, &key);
        identity.candidate(key, pem).unwrap()
    };
    let candidate = next(&running);
    let enrolling = IdentityLock::take(dir.path()).unwrap();
    let adopted = running.adopt(&Disk::native(), &candidate);
    assert!(matches!(adopted, Err(IdentityError::Busy { .. })));
    let anew = an_enrolled_device(dir.path(), &ca);
    drop(enrolling);

    // What was enrolled meanwhile stays, and the running agent uses it from now on.
    let adopted = running.adopt(&Disk::native(), &candidate);
    assert!(matches!(adopted, Err(IdentityError::Superseded)));
    let found = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(found.certificate_sha256(), anew.certificate_sha256());
    assert_eq!(running.certificate_sha256(), anew.certificate_sha256());
    let candidate = next(&running);
    running.adopt(&Disk::native(), &candidate).unwrap();
    let found = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(found.certificate_sha256(), candidate.certificate_sha256());

    // Another device's identity is not this agent's, and what is damaged is mended.
    let candidate = next(&running);
    let key = DeviceKey::load_or_create(dir.path()).unwrap();
    let other = enrolled(&ca, &key.csr_pem("edge-2").unwrap(), "edge-2");
    let own = read_enrolled(dir.path()).unwrap().unwrap();
    let file = own.key_file.clone();
    let other = Enrolled {
        device: "edge-2".parse().unwrap(),
        key_file: file,
        ..other
    };
    write_enrolled(&Disk::native(), dir.path(), &other).unwrap();
    let adopted = running.adopt(&Disk::native(), &candidate);
    assert!(matches!(adopted, Err(IdentityError::Superseded)));
    assert_ne!(running.certificate_sha256(), candidate.certificate_sha256());
    std::fs::write(enrolled_path(dir.path()), "{").unwrap();
    running.adopt(&Disk::native(), &candidate).unwrap();
    assert!(Identity::load(dir.path()).unwrap().is_some());
}

#[test]
fn a_next_certificate_of_another_key_device_or_ca_is_not_taken() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let identity = an_enrolled_device(dir.path(), &ca);
    let refused = |pem: String| {
        let key = identity.next_key().unwrap();
        identity.candidate(key, pem).unwrap_err().to_string()
    };
    let key = identity.next_key().unwrap();
    assert!(refused(certificate_for(&ca, &key)).contains("another key"));
    let other_ca = self::ca();
    assert!(refused(certificate_for(&other_ca, &key)).contains("does not vouch"));
    assert!(refused(String::new()).contains("no certificate"));
    let renamed = enrolled(&ca, &key.csr_pem("x").unwrap(), "edge-2");
    let error = identity
        .candidate(key, renamed.certificate_pem)
        .unwrap_err();
    assert!(error.to_string().contains("edge-2"));
}

#[test]
fn a_name_that_leads_elsewhere_is_no_key_file() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    an_enrolled_device(dir.path(), &ca);
    for bad in [
        "../device.key",
        "device..key",
        "device.0123456789abcdeF.key",
        "/etc/shadow",
        "",
    ] {
        let mut enrolled = read_enrolled(dir.path()).unwrap().unwrap();
        enrolled.key_file = bad.to_owned();
        write_enrolled(&Disk::native(), dir.path(), &enrolled).unwrap();
        let loaded = Identity::load(dir.path());
        assert!(
            matches!(loaded, Err(IdentityError::Damaged { .. })),
            "{bad}"
        );
    }
}

#[test]
fn what_an_agent_of_the_version_before_stored_is_read() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    an_enrolled_device(dir.path(), &ca);
    let path = enrolled_path(dir.path());
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("key_file").unwrap();
    std::fs::write(&path, json.to_string()).unwrap();
    assert!(Identity::load(dir.path()).unwrap().is_some());
}

/// Whether a device whose clock reads 1970 shakes hands with a server whose certificate is for this
/// span.
fn shakes_hands(
    identity: &Identity,
    ca: &CertifiedIssuer<'static, KeyPair>,
    span: (i32, i32),
) -> Result<(), rustls::Error> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = rcgen::date_time_ymd(span.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(span.1, 1, 1);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, ca).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone(), ca.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut client = rustls::ClientConnection::new(identity.rustls_client_config(), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn a_clock_at_1970_takes_the_servers_certificate_and_refuses_one_that_ended_before_the_floor() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let enrolled_now = an_enrolled_device(dir.path(), &ca);
    let trust = dir.path().join("trust");
    std::fs::create_dir(&trust).unwrap();
    std::fs::write(trust.join("time_floor"), "2027-06-01T00:00:00Z").unwrap();
    let at_1970 = Arc::new(Clock::over(|| Timestamp::UNIX_EPOCH, dir.path()));
    let held = enrolled_now.live.held();
    let key = DeviceKey::load(dir.path(), &held.key.file)
        .unwrap()
        .unwrap();
    let device = Identity::assemble(key, held.enrolled.clone(), at_1970).unwrap();
    shakes_hands(&device, &ca, (2027, 2028)).unwrap();
    // Made anew after the device last knew the time.
    shakes_hands(&device, &ca, (2029, 2030)).unwrap();
    let ended = shakes_hands(&device, &ca, (2024, 2026)).unwrap_err();
    assert!(
        matches!(
            ended,
            rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext { .. })
        ),
        "{ended:?}"
    );
    let other_ca = self::ca();
    shakes_hands(&device, &other_ca, (2027, 2028)).unwrap_err();
}
