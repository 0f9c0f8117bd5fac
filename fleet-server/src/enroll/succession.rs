//! A certificate follows on another: `GET /identity`, `POST /identity/renew`, `POST /identity/confirm`
//! with the one that is valid, `POST /identity/recover` with one whose time is over.
//!
//! The certificate before stays good until the next is first used (a broker's CONNECT, a download or
//! `confirm`), so that a device that is cut off anywhere in between goes on with what it has.

use super::nonce::{NonceError, Nonces, VALID_MS};
use super::pace::Pace;
use crate::api::App;
use crate::api::error::{ApiError, Raw};
use crate::api::guard::{connected_ms, not_admitted, presented};
use crate::clock;
use crate::pki::{CheckedCsr, DevicePass, PkiError};
use crate::store::{Standing, Succession, Successor};
use axum::Json;
use axum::extract::State;
use dunlin_protocol::command::parse;
use dunlin_protocol::enroll::{
    IdentityView, RENEWAL_MAX_BYTES, RecoverRequest, RecoveryNonce, RenewRequest, RenewResponse,
    recovery_message,
};
use dunlin_protocol::id::{DeviceId, Digest};
use http::{Extensions, StatusCode};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Instant;

/// Requests a second that may come without a certificate, and at once.
const STRANGERS_RATE: u32 = 50;
const STRANGERS_BURST: u32 = 200;
/// An ECDSA P-256 signature in ASN.1 DER is shorter.
const PROOF_MAX_BYTES: usize = 80;

/// What recovery needs of the process.
#[derive(Debug)]
pub struct Desk {
    nonces: Nonces,
    strangers: Pace,
}

impl Desk {
    /// A desk.
    ///
    /// # Errors
    /// No randomness.
    pub fn new() -> Result<Self, getrandom::Error> {
        Ok(Self {
            nonces: Nonces::new()?,
            strangers: Pace::new(STRANGERS_RATE, STRANGERS_BURST),
        })
    }

    fn let_in(&self) -> Result<(), ApiError> {
        if self.strangers.take(Instant::now()) {
            return Ok(());
        }
        metrics::counter!("dunlin_recoveries_refused_total", "code" => "busy").increment(1);
        let message = "too many devices recover at this moment; try again later";
        Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            message,
        ))
    }
}

/// What the server thinks of the certificate shown. Counts as no use of it: a device tries its next
/// certificate with this before it gives up the one before.
///
/// # Errors
/// 401 no certificate, 403 it is not let in.
pub async fn view(
    State(app): State<Arc<App>>,
    extensions: Extensions,
) -> Result<Json<IdentityView>, ApiError> {
    let (device, certificate_sha256) = presented(&extensions)?;
    let standing = app.store.standing(&device, &certificate_sha256.0).await?;
    if !standing.is_admitted() {
        return Err(not_admitted(&device, standing));
    }
    Ok(Json(IdentityView {
        device,
        certificate_sha256,
    }))
}

/// Does nothing but count as a use of the certificate shown.
///
/// # Errors
/// 401 no certificate, 403 it is not let in.
pub async fn confirm(
    State(app): State<Arc<App>>,
    extensions: Extensions,
) -> Result<StatusCode, ApiError> {
    let (device, sha256) = presented(&extensions)?;
    let standing = app
        .store
        .admit(
            &device,
            &sha256.0,
            connected_ms(&extensions),
            clock::now_ms(),
        )
        .await?;
    match standing.is_admitted() {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_admitted(&device, standing)),
    }
}

/// Gives the next certificate for the one shown.
///
/// # Errors
/// 400 malformed, 401 no certificate, 403 it is not let in, 422 the key is the old one, 429 too many.
pub async fn renew(
    State(app): State<Arc<App>>,
    extensions: Extensions,
    Raw(body): Raw,
) -> Result<Json<RenewResponse>, ApiError> {
    let (device, holds) = presented(&extensions)?;
    // Whoever is not let in has no work done; what counts is asked again when it is recorded.
    let standing = app.store.standing(&device, &holds.0).await?;
    let given = async {
        if !standing.is_admitted() {
            return Err(not_admitted(&device, standing));
        }
        let request: RenewRequest = parse("renewal", RENEWAL_MAX_BYTES, &body)
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let csr = app.pki.check_csr(&request.csr_pem)?;
        give_next(&app, &device, &holds, csr).await
    };
    let given = given.await;
    tell(&app, "certificate_renewed", &device, given).await
}

/// A nonce for [`recover`].
///
/// # Errors
/// 403 recovery is turned off, 429 too many ask.
pub async fn nonce(State(app): State<Arc<App>>) -> Result<Json<RecoveryNonce>, ApiError> {
    grace(&app)?;
    app.desk.let_in()?;
    let nonce = app.desk.nonces.issue(clock::now_ms());
    Ok(Json(RecoveryNonce {
        nonce: nonce.map_err(|e| ApiError::internal(&e))?,
        valid_ms: u64::try_from(VALID_MS).unwrap_or_default(),
    }))
}

/// Gives the next certificate for one whose time is over, to whoever proves to hold its key.
///
/// What a stranger learns without that proof is only what the request itself says.
///
/// # Errors
/// 400 malformed, 403 by the code (`recovery_off`, `bad_nonce`, `nonce_old`, `bad_certificate`,
/// `bad_proof`, `revoked`, `superseded`, `unknown_device`, `unknown_certificate`, `ended_too_long`),
/// 409 `not_ended`, 422 `key_reused`, 429 too many.
pub async fn recover(
    State(app): State<Arc<App>>,
    Raw(body): Raw,
) -> Result<Json<RenewResponse>, ApiError> {
    let grace = grace(&app)?;
    app.desk.let_in()?;
    let request: RecoverRequest = parse("recovery", RENEWAL_MAX_BYTES, &body)
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    let (pass, csr) = prove(&app, &request)?;
    let given = async {
        let standing = app.store.standing(&pass.device, &pass.sha256.0).await?;
        if standing == Standing::Superseded {
            // Noted among the device's events: somebody holds a key that was replaced.
            let now_ms = clock::now_ms();
            app.store
                .admit(&pass.device, &pass.sha256.0, now_ms, now_ms)
                .await?;
        }
        if !standing.is_admitted() {
            return Err(not_admitted(&pass.device, standing));
        }
        in_grace(pass.not_after, clock::now(), grace)?;
        give_next(&app, &pass.device, &pass.sha256, csr).await
    };
    let given = given.await;
    tell(&app, "certificate_recovered", &pass.device, given).await
}

/// How long after its end a certificate may be recovered.
fn grace(app: &App) -> Result<SignedDuration, ApiError> {
    match app.settings.enrolment.recover_expired_days {
        0 => Err(forbidden(
            "recovery_off",
            "this server gives no certificate for one that has ended; enrol anew".to_owned(),
        )),
        days => Ok(SignedDuration::from_hours(24 * i64::from(days))),
    }
}

/// Everything that is known without the database: whose certificate it is, and that the sender holds
/// its key.
fn prove(app: &App, request: &RecoverRequest) -> Result<(DevicePass, CheckedCsr), ApiError> {
    app.desk
        .nonces
        .check(&request.nonce, clock::now_ms())
        .map_err(|e| match e {
            NonceError::Unknown => {
                forbidden("bad_nonce", "the nonce is not this server's".to_owned())
            }
            NonceError::Old => forbidden("nonce_old", "the nonce is too old".to_owned()),
        })?;
    let pass = app.pki.read_pass(&request.certificate_pem);
    let pass = pass.map_err(|e| match e {
        PkiError::Pass(_) => forbidden("bad_certificate", e.to_string()),
        other => other.into(),
    })?;
    let message = recovery_message(
        &app.settings.fleet,
        &pass.device,
        &request.nonce,
        &pass.sha256,
        &request.csr_pem,
    );
    let proof = (request.proof_hex.len() <= 2 * PROOF_MAX_BYTES)
        .then(|| hex::decode(&request.proof_hex).ok())
        .flatten();
    if !proof.is_some_and(|proof| pass.has_signed(&message, &proof)) {
        tracing::warn!(device = %pass.device, "recovery refused: the key's possession is not proven");
        metrics::counter!("dunlin_recoveries_refused_total", "code" => "bad_proof").increment(1);
        return Err(forbidden(
            "bad_proof",
            "the signature is not by the certificate's key (ECDSA P-256, SHA-256)".to_owned(),
        ));
    }
    Ok((pass, app.pki.check_csr(&request.csr_pem)?))
}

fn in_grace(not_after: Timestamp, now: Timestamp, grace: SignedDuration) -> Result<(), ApiError> {
    let over = now.duration_since(not_after);
    if over <= SignedDuration::ZERO {
        let message = format!("the certificate is valid until {not_after}: renew with it");
        return Err(ApiError::conflict("not_ended", message));
    }
    if over > grace {
        let days = grace.as_hours() / 24;
        return Err(forbidden(
            "ended_too_long",
            format!(
                "the certificate ended at {not_after}, more than {days} days ago (enrolment.recover_expired_days): enrol anew"
            ),
        ));
    }
    Ok(())
}

async fn give_next(
    app: &App,
    device: &DeviceId,
    holds: &Digest,
    csr: CheckedCsr,
) -> Result<(String, Digest), ApiError> {
    let public_key_sha256 = csr.public_key_sha256;
    if app.store.has_had_key(device, &public_key_sha256).await? {
        return Err(ApiError::refused(
            "key_reused",
            "the request is for a key that the device had before; make a new one",
        ));
    }
    let signed = app.pki.sign_device(csr, device, clock::now())?;
    let successor = Successor {
        sha256: signed.sha256,
        public_key_sha256,
    };
    let an_hour_max = app.settings.enrolment.certificates_an_hour_max();
    let recorded = app
        .store
        .succeed(device, holds, &successor, an_hour_max, clock::now_ms())
        .await?;
    match recorded {
        Succession::Recorded => Ok((signed.pem, signed.sha256)),
        Succession::Refused(standing) => Err(not_admitted(device, standing)),
        Succession::TooMany => Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many",
            format!("{device} was given {an_hour_max} certificates within an hour"),
        )),
    }
}

/// Logs how it went, and records among the device's events what it was given.
async fn tell(
    app: &App,
    code: &'static str,
    device: &DeviceId,
    given: Result<(String, Digest), ApiError>,
) -> Result<Json<RenewResponse>, ApiError> {
    match given {
        Ok((certificate_pem, sha256)) => {
            let certificate = sha256.short();
            tracing::info!(%device, certificate, code, "certificate given");
            metrics::counter!("dunlin_certificates_total", "how" => code).increment(1);
            let detail = format!("the server gave certificate {certificate}");
            app.store
                .note(device, code, &detail, clock::now_ms())
                .await?;
            Ok(Json(RenewResponse { certificate_pem }))
        }
        Err(error) => {
            tracing::warn!(%device, code = error.code, message = error.message, "no certificate given");
            metrics::counter!("dunlin_recoveries_refused_total", "code" => error.code).increment(1);
            Err(error)
        }
    }
}

fn forbidden(code: &'static str, message: String) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_certificate_is_recovered_between_its_end_and_the_end_of_grace() {
        let end: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let code = |after_s: i64| {
            let now = end + SignedDuration::from_secs(after_s);
            in_grace(end, now, SignedDuration::from_hours(48)).map_err(|e| e.code)
        };
        assert_eq!(code(-1), Err("not_ended"));
        assert_eq!(code(0), Err("not_ended"));
        assert_eq!(code(1), Ok(()));
        assert_eq!(code(48 * 3600), Ok(()));
        assert_eq!(code(48 * 3600 + 1), Err("ended_too_long"));
    }
}
