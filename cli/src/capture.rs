//! `dunlin capture`: samples that devices keep of their inputs, asked for and opened.
//!
//! The private key is read here and goes nowhere; the server hands out sealed batches alone.

mod key;
mod written;

pub use key::{KeyError, read_key, write_key};

use crate::args::{CaptureAction, CaptureArgs, CaptureRequestArgs, WhichCaptures};
use crate::bundle::text_of;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table::{self, Table};
use dunlin_protocol::capture::samples::{CapturedRow, SamplesError, rows};
use dunlin_protocol::capture::seal::{SEALED_MAX_BYTES, SealError, Sealed, SecretKey};
use dunlin_protocol::id::Digest;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use written::write_rows;

/// Why a sealed batch gives no rows.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// It holds no samples.
    #[error(transparent)]
    Samples(#[from] SamplesError),
}

/// Opens a sealed batch.
///
/// # Errors
/// The key is another's, the batch was changed, or it holds something else.
pub fn open(sealed: &[u8], key: &SecretKey) -> Result<Vec<CapturedRow>, OpenError> {
    let sealed = Sealed::parse(sealed)?;
    Ok(rows(&sealed.header, &sealed.open(key)?)?)
}

/// `dunlin capture`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &CaptureArgs) -> Result<Exit, Failure> {
    match &args.action {
        CaptureAction::Keygen { out } => keygen(out, args.shared.json),
        CaptureAction::Public { key } => {
            say_key(&read_key(key)?, args.shared.json);
            Ok(Exit::Done)
        }
        CaptureAction::Decrypt { batches, key, out } => decrypt(batches, key, out.as_deref()),
        action => on_server(&Session::open(&args.shared)?, action).await,
    }
}

async fn on_server(session: &Session, action: &CaptureAction) -> Result<Exit, Failure> {
    let client = &session.client;
    match action {
        CaptureAction::Request(request) => ask(session, request).await?,
        CaptureAction::Requests => {
            let answer = client.get("/api/v1/capture-requests").await?;
            show_requests(session, &answer);
        }
        CaptureAction::Cancel { request } => {
            let path = "/api/v1/capture-requests";
            client.delete(path, &request.to_string()).await?;
            say(session, &json!({"cancelled": request}), "request is ended");
        }
        CaptureAction::List { which } => {
            let list = client.captures(&query(which)).await?;
            show_list(session, &list);
        }
        CaptureAction::Get {
            which,
            key,
            out,
            sealed,
        } => {
            return get(
                session,
                which,
                (key.as_deref(), out.as_deref()),
                sealed.as_deref(),
            )
            .await;
        }
        CaptureAction::Delete { sha256 } => {
            client
                .delete("/api/v1/captures", &sha256.to_string())
                .await?;
            say(session, &json!({"deleted": sha256}), "batch is deleted");
        }
        CaptureAction::Audit => {
            let answer = client.get("/api/v1/audit").await?;
            show_audit(session, &answer);
        }
        // Done before a session was opened.
        CaptureAction::Keygen { .. }
        | CaptureAction::Public { .. }
        | CaptureAction::Decrypt { .. } => {}
    }
    Ok(Exit::Done)
}

fn keygen(out: &Path, json: bool) -> Result<Exit, Failure> {
    let mut random = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut random[..]).map_err(Failure::new)?;
    let key = SecretKey::derive(&random);
    write_key(out, &key)?;
    say_key(&key, json);
    if !json {
        eprintln!(
            "the private key is in {}; above is the public one, for a bundle's [capture] recipient",
            out.display()
        );
    }
    Ok(Exit::Done)
}

fn say_key(key: &SecretKey, json: bool) {
    let recipient = key.recipient();
    match json {
        true => table::print_json(&json!({ "recipient": recipient })),
        false => table::print_line(&recipient.to_string()),
    }
}

async fn ask(session: &Session, args: &CaptureRequestArgs) -> Result<(), Failure> {
    let body = json!({
        "devices": args.devices, "family": args.family, "version": args.model_version,
        "reason": args.reason, "expires_in_s": args.expires_in.as_secs(),
    });
    let made = session
        .client
        .post("/api/v1/capture-requests", body)
        .await?;
    let (id, devices) = (text_of(&made["id"]), text_of(&made["devices"]));
    say(
        session,
        &made,
        &format!("request {id} is made (devices: {devices})"),
    );
    Ok(())
}

fn query(which: &WhichCaptures) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
    query.extend(which.request.map(|n| ("request", n.to_string())));
    query.extend(which.device.as_ref().map(|d| ("device", d.to_string())));
    query.extend(which.family.as_ref().map(|f| ("family", f.to_string())));
    query.extend(which.model_version.map(|v| ("version", v.to_string())));
    query
}

/// Fetches batches, the oldest first, and opens them or writes them as they are.
async fn get(
    session: &Session,
    which: &WhichCaptures,
    (key, out): (Option<&Path>, Option<&Path>),
    folder: Option<&Path>,
) -> Result<Exit, Failure> {
    let key = key.map(read_key).transpose()?;
    let list = session.client.captures(&query(which)).await?;
    let mut rows = Vec::new();
    let (mut batches, mut failed) = (0_u64, 0_u64);
    for batch in list.iter().rev() {
        let sha256: Digest = text_of(&batch["sha256"]).parse().map_err(Failure::new)?;
        let sealed = session.client.capture(&sha256).await?;
        batches += 1;
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)
                .map_err(|e| Failure::new(format!("{}: {e}", folder.display())))?;
            files::write_secret(&folder.join(format!("{sha256}.sealed")), &sealed)?;
        }
        if let Some(key) = &key {
            failed += u64::from(!append(&sha256.to_string(), &sealed, key, &mut rows));
        }
    }
    if key.is_some() {
        write_rows(out, &rows)?;
    }
    eprintln!("{batches} batches fetched, {failed} of them not opened");
    Ok(if failed == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn decrypt(batches: &[PathBuf], key: &Path, out: Option<&Path>) -> Result<Exit, Failure> {
    let key = read_key(key)?;
    let mut rows = Vec::new();
    let mut failed = 0_u64;
    for path in batches {
        let sealed = files::read_bounded(path, SEALED_MAX_BYTES as u64)?;
        let name = path.display().to_string();
        failed += u64::from(!append(&name, &sealed, &key, &mut rows));
    }
    write_rows(out, &rows)?;
    Ok(if failed == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Adds a batch's rows; `false` if it does not open, which is told.
fn append(name: &str, sealed: &[u8], key: &SecretKey, all: &mut Vec<CapturedRow>) -> bool {
    match open(sealed, key) {
        Ok(rows) => {
            all.extend(rows);
            true
        }
        Err(error) => {
            eprintln!("dunlin: {name}: {error}");
            false
        }
    }
}

fn say(session: &Session, json: &Value, words: &str) {
    match session.json {
        true => table::print_json(json),
        false => table::print_line(words),
    }
}

fn show_requests(session: &Session, answer: &Value) {
    if session.json {
        return table::print_json(answer);
    }
    let mut shown = Table::new(&[
        "REQUEST", "DEVICE", "STATE", "BATCHES", "BYTES", "MADE", "BY", "REASON",
    ]);
    for request in answer["requests"].as_array().into_iter().flatten() {
        for device in request["devices"].as_array().into_iter().flatten() {
            let state = match device["detail"].as_str() {
                Some(detail) if !detail.is_empty() => {
                    format!("{}: {detail}", text_of(&device["state"]))
                }
                _ => text_of(&device["state"]),
            };
            shown.row([
                text_of(&request["id"]),
                text_of(&device["device"]),
                state,
                text_of(&device["batches"]),
                table::bytes_text(device["bytes"].as_u64().unwrap_or_default()),
                table::time_text(request["created_ms"].as_i64()),
                text_of(&request["created_by"]),
                text_of(&request["reason"]),
            ]);
        }
    }
    match shown.is_empty() {
        true => table::print_line("nothing was asked for"),
        false => table::print(&shown.to_text()),
    }
}

fn show_list(session: &Session, list: &[Value]) {
    if session.json {
        return table::print_json(&list);
    }
    let mut shown = Table::new(&[
        "BATCH", "DEVICE", "MODEL", "WINDOW", "CAUSE", "SAMPLES", "OF", "BYTES", "REQUEST",
    ]);
    for batch in list {
        let header = &batch["header"];
        let (family, version) = (text_of(&header["family"]), text_of(&header["version"]));
        shown.row([
            text_of(&batch["sha256"]),
            text_of(&header["device"]),
            format!("{family} {version}"),
            table::time_text(header["start_ms"].as_i64()),
            text_of(&header["cause"]),
            text_of(&header["samples"]),
            text_of(&header["considered"]),
            table::bytes_text(batch["bytes"].as_u64().unwrap_or_default()),
            text_of(&batch["request"]),
        ]);
    }
    match shown.is_empty() {
        true => table::print_line("no batches here"),
        false => table::print(&shown.to_text()),
    }
}

fn show_audit(session: &Session, answer: &Value) {
    if session.json {
        return table::print_json(answer);
    }
    let mut shown = Table::new(&["WHEN", "WHO", "WHAT", "WITH"]);
    for deed in answer["audit"].as_array().into_iter().flatten() {
        shown.row([
            table::time_text(deed["time_ms"].as_i64()),
            text_of(&deed["actor"]),
            text_of(&deed["action"]),
            deed["detail"].to_string(),
        ]);
    }
    match shown.is_empty() {
        true => table::print_line("nothing is in the audit log"),
        false => table::print(&shown.to_text()),
    }
}
