//! `dunlin token`: the right to enrol, sealed so that first contact is authenticated.

use crate::args::{TokenAction, TokenArgs};
use crate::bundle::text_of;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::keys;
use crate::table::{self, Table};
use dunlin_protocol::enroll::ClaimToken;
use dunlin_protocol::id::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// What a claim token gives.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Devices that may enrol with it.
    pub uses: u32,
    /// Validity.
    pub expires_in: Duration,
    /// Labels its devices get.
    pub labels: BTreeMap<String, String>,
}

/// A sealed claim token with what the server said of it.
#[derive(Debug)]
pub struct Sealed {
    /// Id for listing and withdrawing.
    pub id: String,
    /// The token; its `Display` is what devices are given.
    pub token: ClaimToken,
    /// End of validity, as the server says it.
    pub expires_at: Value,
}

/// Issues a claim token and seals it with the hashes of the fleet CA and of the key folder's own
/// first root.
///
/// # Errors
/// No root in the folder, another root or CA on the server than expected, or the call failed.
pub async fn create(
    session: &Session,
    key_folder: &Path,
    claim: &Claim,
) -> Result<Sealed, Failure> {
    let root_sha256 = keys::first_root_digest(key_folder)?;
    let (fleet, ca_sha256) = session.fleet().await?;
    match session.client.metadata_file("1.root.json").await? {
        None => {
            return Err(Failure::new(format!(
                "the server has no root metadata yet, so no device could be served: run `dunlin keys upload-root --dir {}` first",
                key_folder.display()
            )));
        }
        Some(bytes) if Digest::of(&bytes) != root_sha256 => {
            return Err(Failure::new(format!(
                "the server's 1.root.json has SHA-256 {}, yours in {} has {root_sha256}: devices would refuse this server. Use the key folder of this fleet",
                Digest::of(&bytes),
                key_folder.display()
            )));
        }
        Some(_) => {}
    }
    let seconds = claim.expires_in.as_secs();
    let issued = session
        .client
        .create_claim(claim.uses, seconds, &claim.labels)
        .await?;
    Ok(Sealed {
        id: issued.id,
        token: ClaimToken {
            url: fleet.devices_url,
            secret: issued.secret,
            ca_sha256,
            root_sha256,
        },
        expires_at: issued.expires_at,
    })
}

/// `dunlin token`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &TokenArgs) -> Result<Exit, Failure> {
    let session = Session::open(&args.shared)?;
    match &args.action {
        TokenAction::Create {
            keys,
            uses,
            expires_in,
            labels,
        } => {
            let claim = Claim {
                uses: *uses,
                expires_in: *expires_in,
                labels: labels.iter().cloned().collect(),
            };
            let sealed = create(&session, keys, &claim).await?;
            if session.json {
                table::print_json(&json!({
                    "id": sealed.id, "token": sealed.token.to_string(), "expires_at": sealed.expires_at,
                    "uses": uses, "labels": claim.labels,
                }));
            } else {
                // The token alone on standard output, so that it can be sent on as it is.
                table::print_line(&sealed.token.to_string());
                eprintln!(
                    "claim {} for {uses} device(s), valid until {}; on the device: dunlin-agent enroll < FILE",
                    sealed.id,
                    when(&sealed.expires_at)
                );
            }
        }
        TokenAction::List => list(&session).await?,
        TokenAction::Revoke { id } => {
            session.client.delete_claim(id).await?;
            if session.json {
                table::print_json(&json!({"revoked": id}));
            } else {
                table::print_line(&format!("claim {id} is withdrawn"));
            }
        }
    }
    Ok(Exit::Done)
}

/// A time as the server sent it: unix milliseconds or text.
fn when(value: &Value) -> String {
    match value.as_i64() {
        Some(ms) => table::time_text(Some(ms)),
        None => text_of(value),
    }
}

async fn list(session: &Session) -> Result<(), Failure> {
    let claims = session.client.claims().await?;
    if session.json {
        table::print_json(&claims);
        return Ok(());
    }
    let mut rows = Table::new(&["id", "uses left>", "valid until", "labels"]);
    for claim in &claims {
        let first = |names: [&str; 2]| {
            let found = names.iter().map(|n| &claim[*n]).find(|v| !v.is_null());
            found.cloned().unwrap_or_default()
        };
        rows.row([
            text_of(&claim["id"]),
            text_of(&first(["uses_left", "uses"])),
            when(&first(["expires_at", "expires_ms"])),
            labels_text(&claim["labels"]),
        ]);
    }
    if rows.is_empty() {
        table::print_line("no claim token is left");
    } else {
        table::print(&rows.to_text());
    }
    Ok(())
}

/// Labels as `a=b, c=d`.
pub(crate) fn labels_text(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    let pairs: Vec<String> = pairs
        .map(|(key, value)| format!("{key}={}", text_of(value)))
        .collect();
    pairs.join(", ")
}
