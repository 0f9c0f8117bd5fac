//! `POST /enroll`: a claim token's secret and a signing request against a device certificate.
//!
//! The certificate is signed first and counts only once the database knows it, in the same
//! transaction that spends the token. A device whose answer was lost asks again with the same key
//! and gets a fresh certificate without spending another use.

mod nonce;
mod pace;
pub mod succession;

use crate::acl::is_server_name;
use crate::api::App;
use crate::api::error::{ApiError, Raw};
use crate::api::tokens::random_hex;
use crate::clock;
use crate::store::{EnrolmentOutcome, NewDevice};
use axum::Json;
use axum::extract::State;
use dunlin_protocol::command::parse;
use dunlin_protocol::enroll::{ENROLL_MAX_BYTES, EnrollRequest, EnrollResponse};
use dunlin_protocol::id::DeviceId;
use http::StatusCode;
use sha2::Digest as _;
use std::sync::Arc;

const FACT_MAX_CHARS: usize = 128;

/// Enrols a device.
///
/// # Errors
/// 400 malformed, 401 the token is unknown, spent or expired, 409 the id is taken, 503 the fleet
/// has no trust root yet.
pub async fn enroll(
    State(app): State<Arc<App>>,
    Raw(body): Raw,
) -> Result<Json<EnrollResponse>, ApiError> {
    // The parser's message does not quote values, so not the secret either.
    let request: EnrollRequest = parse("enrolment", ENROLL_MAX_BYTES, &body)
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    check_facts(&request)?;
    let root_json = first_root(&app).await?;
    let claim_hash: [u8; 32] = sha2::Sha256::digest(request.secret.as_bytes()).into();
    let csr = app.pki.check_csr(&request.csr_pem)?;
    let device = choose_id(&app, &request, &claim_hash, &csr.public_key_sha256).await?;
    let public_key_sha256 = csr.public_key_sha256;
    let certificate = app.pki.sign_device(csr, &device, clock::now())?;
    let new = NewDevice {
        device: device.clone(),
        hardware: request.hardware,
        arch: request.arch,
        agent_version: request.agent_version,
        cert_sha256: certificate.sha256.0,
        public_key_sha256,
    };
    let labels = match app.store.enrol(&claim_hash, &new, clock::now_ms()).await? {
        EnrolmentOutcome::Enrolled(labels) => {
            tracing::info!(%device, certificate = %certificate.sha256.short(), "device enrolled");
            labels
        }
        EnrolmentOutcome::Repeated(labels) => {
            tracing::info!(%device, certificate = %certificate.sha256.short(), "enrolment repeated");
            labels
        }
        refused => return Err(refusal(&device, &refused)),
    };
    Ok(Json(EnrollResponse {
        fleet: app.settings.fleet.clone(),
        device,
        certificate_pem: certificate.pem,
        ca_pem: app.pki.ca_pem().to_owned(),
        root_json,
        mqtt_host: app.mqtt_host.clone(),
        mqtt_port: app.mqtt_port,
        repository_url: app.devices_url.clone(),
        labels,
    }))
}

fn check_facts(request: &EnrollRequest) -> Result<(), ApiError> {
    for (name, text) in [
        ("secret", &request.secret),
        ("arch", &request.arch),
        ("hardware", &request.hardware),
        ("agent_version", &request.agent_version),
    ] {
        let chars = text.chars().count();
        if !(1..=FACT_MAX_CHARS).contains(&chars) {
            let message = format!("{name}: expected 1 to {FACT_MAX_CHARS} characters, got {chars}");
            return Err(ApiError::bad_request(message));
        }
    }
    match request
        .device
        .as_ref()
        .filter(|d| is_server_name(d.as_str()))
    {
        Some(device) => Err(ApiError::bad_request(format!(
            "device id {device} is the server's own name"
        ))),
        None => Ok(()),
    }
}

async fn first_root(app: &App) -> Result<String, ApiError> {
    let repository = app.repository.clone();
    let root = tokio::task::spawn_blocking(move || repository.first_root()).await;
    let root = root.map_err(|e| ApiError::internal(&e))??;
    let Some(root) = root else {
        let message = "this fleet has no trust root yet; upload root.json first";
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_root",
            message,
        ));
    };
    String::from_utf8(root).map_err(|e| ApiError::internal(&e))
}

async fn choose_id(
    app: &App,
    request: &EnrollRequest,
    claim_hash: &[u8; 32],
    public_key_sha256: &[u8; 32],
) -> Result<DeviceId, ApiError> {
    if let Some(asked) = &request.device {
        return Ok(asked.clone());
    }
    if let Some(known) = app
        .store
        .device_of_key(claim_hash, public_key_sha256)
        .await?
    {
        return Ok(known);
    }
    let random = random_hex::<8>().map_err(|e| ApiError::internal(&e))?;
    let id = format!("dev-{random}").parse::<DeviceId>();
    id.map_err(|e| ApiError::internal(&e))
}

fn refusal(device: &DeviceId, outcome: &EnrolmentOutcome) -> ApiError {
    let unauthorized =
        |code, message: String| ApiError::new(StatusCode::UNAUTHORIZED, code, message);
    match outcome {
        EnrolmentOutcome::ExpiredToken { expires_ms } => {
            let ended = jiff::Timestamp::from_millisecond(*expires_ms).map(|t| t.to_string());
            let ended = ended.unwrap_or_default();
            unauthorized(
                "token_expired",
                format!("the claim token ended at {ended}; issue a new one"),
            )
        }
        EnrolmentOutcome::SpentToken => unauthorized(
            "token_spent",
            "every use of the claim token is spent; issue a new one".to_owned(),
        ),
        EnrolmentOutcome::IdTaken => ApiError::conflict(
            "id_taken",
            format!(
                "device {device} exists with another key; revoke it first, or choose another id"
            ),
        ),
        _ => unauthorized(
            "token_unknown",
            "the claim token is not known to this server".to_owned(),
        ),
    }
}
