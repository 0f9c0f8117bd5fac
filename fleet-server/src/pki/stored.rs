//! The PKI's files: reading them, and making what is missing.

use super::{BACKDATE, Ca, Pair, PkiError, SERVER_LIFE, leaf, library, serial};
use crate::files::{self, PUBLIC, SECRET};
use dunlin_protocol::id::FleetId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::Path;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

pub(super) const PEM_MAX_BYTES: usize = 64 * 1024;
const CA_LIFE: Duration = Duration::days(3650);
/// A server's certificate nearer to its end than this is made anew.
const RENEW_BEFORE: Duration = Duration::days(30);

pub(super) fn missing(path: &Path) -> PkiError {
    damaged(path, "there is no such file")
}

pub(super) fn damaged(path: &Path, problem: impl std::fmt::Display) -> PkiError {
    PkiError::Damaged {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// A PEM file's text and certificates; `None` if there is no file.
pub(super) fn read_chain(
    path: &Path,
) -> Result<Option<(String, Vec<CertificateDer<'static>>)>, PkiError> {
    let Some(bytes) = files::read_bounded(path, PEM_MAX_BYTES)? else {
        return Ok(None);
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|e| damaged(path, e))?;
    if chain.is_empty() {
        return Err(damaged(path, "holds no certificate"));
    }
    let text = String::from_utf8(bytes).map_err(|e| damaged(path, e))?;
    Ok(Some((text, chain)))
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, PkiError> {
    let Some(bytes) = files::read_bounded(path, PEM_MAX_BYTES)? else {
        return Ok(None);
    };
    // The parser's message could quote the key.
    let bad = || damaged(path, "holds no private key in PKCS#8 PEM");
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    KeyPair::from_pem(&text).map(Some).map_err(|_| bad())
}

pub(super) fn open_ca(folder: &Path, fleet: &FleetId, now: OffsetDateTime) -> Result<Ca, PkiError> {
    let (cert_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
    if let Some((pem, chain)) = read_chain(&cert_file)? {
        let key = read_key(&key_file)?.ok_or(PkiError::CaKeyMissing(key_file))?;
        let der = chain[0].clone();
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| damaged(&cert_file, e))?;
        return Ok((issuer, pem, der));
    }
    let key = KeyPair::generate().map_err(library)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Dunlin fleet {fleet} CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    (params.not_before, params.not_after) = (now - BACKDATE, now + CA_LIFE);
    let certificate = params.self_signed(&key).map_err(library)?;
    let pem = certificate.pem();
    files::write_atomic(&key_file, key.serialize_pem().as_bytes(), SECRET)?;
    files::write_atomic(&cert_file, pem.as_bytes(), PUBLIC)?;
    let der = certificate.der().clone();
    Ok((Issuer::new(params, key), pem, der))
}

/// A certificate of the server's own.
pub(super) struct Wanted<'a> {
    pub(super) file: &'static str,
    pub(super) common_name: &'a str,
    pub(super) names: &'a [String],
    pub(super) usage: ExtendedKeyUsagePurpose,
}

pub(super) fn open_pair(
    folder: &Path,
    (issuer, ca_pem, ca_der): &Ca,
    wanted: &Wanted<'_>,
    now: OffsetDateTime,
) -> Result<Pair, PkiError> {
    let cert_file = folder.join(format!("{}.pem", wanted.file));
    let key_file = folder.join(format!("{}.key", wanted.file));
    if let (Some((_, chain)), Some(key)) = (read_chain(&cert_file)?, read_key(&key_file)?)
        && chain.get(1) == Some(ca_der)
        && is_current(&chain[0], &key, wanted.names, now)
    {
        let key_der = key.serialize_der();
        return Ok(Pair { chain, key_der });
    }
    let key = KeyPair::generate().map_err(library)?;
    let params = leaf(
        wanted.common_name,
        wanted.names,
        wanted.usage.clone(),
        (now - BACKDATE, now + SERVER_LIFE),
    )?;
    let certificate = params.signed_by(&key, issuer).map_err(library)?;
    files::write_atomic(&key_file, key.serialize_pem().as_bytes(), SECRET)?;
    let chain_pem = format!("{}{ca_pem}", certificate.pem());
    files::write_atomic(&cert_file, chain_pem.as_bytes(), PUBLIC)?;
    Ok(Pair {
        chain: vec![certificate.der().clone(), ca_der.clone()],
        key_der: key.serialize_der(),
    })
}

/// Whether a certificate is for this key and these names and has a while to go.
fn is_current(der: &[u8], key: &KeyPair, names: &[String], now: OffsetDateTime) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return false;
    };
    let ends = certificate.validity().not_after.timestamp();
    if ends < (now + RENEW_BEFORE).unix_timestamp() {
        return false;
    }
    if certificate.public_key().raw != key.subject_public_key_info() {
        return false;
    }
    let listed = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .map(name_text)
            .collect(),
        _ => Vec::new(),
    };
    names.iter().eq(listed.iter())
}

fn name_text(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(raw) => {
            match (<[u8; 4]>::try_from(*raw), <[u8; 16]>::try_from(*raw)) {
                (Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
                (_, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
                _ => String::new(),
            }
        }
        _ => String::new(),
    }
}
