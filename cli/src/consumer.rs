//! `dunlin consumer`: credentials for programs besides the fleet's own that read what devices send.

use crate::api::IssuedConsumer;
use crate::args::{ConsumerAction, ConsumerArgs, ConsumerFiles};
use crate::bundle::text_of;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table::{self, Table, time_text};
use dunlin_server::consumer::ConsumerName;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const CSR_MAX_BYTES: u64 = 16 * 1024;
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "client.pem";
const KEY: &str = "client.key";

/// A key, if it was made here, and the request for its certificate.
struct Request {
    key_pem: Option<Zeroizing<String>>,
    csr_pem: String,
}

/// The request in `csr`, or one for a new key (P-256).
fn request(csr: Option<&Path>) -> Result<Request, Failure> {
    if let Some(file) = csr {
        return Ok(Request {
            key_pem: None,
            csr_pem: files::read_text(file, CSR_MAX_BYTES)?,
        });
    }
    let key = KeyPair::generate().map_err(Failure::new)?;
    let request = CertificateParams::default().serialize_request(&key);
    let csr_pem = request.and_then(|r| r.pem()).map_err(Failure::new)?;
    Ok(Request {
        key_pem: Some(Zeroizing::new(key.serialize_pem())),
        csr_pem,
    })
}

/// The folder for a consumer's files, there before anything is asked for; removed again if nothing
/// came of it.
struct Folder {
    path: PathBuf,
    is_new: bool,
}

impl Folder {
    fn open(name: &str, chosen: &ConsumerFiles) -> Result<Self, Failure> {
        // Also so that the name is no path.
        name.parse::<ConsumerName>().map_err(Failure::usage)?;
        let path = chosen.out.clone().unwrap_or_else(|| PathBuf::from(name));
        let is_new = !path.exists();
        files::make_private_folder(&path)?;
        Ok(Self { path, is_new })
    }

    /// Writes what was issued: the key first, so that a cut leaves no certificate without it.
    fn take<E: Into<Failure>>(
        &self,
        request: &Request,
        issued: Result<IssuedConsumer, E>,
    ) -> Result<IssuedConsumer, Failure> {
        let issued = issued.map_err(|error| {
            if self.is_new {
                // It is empty, or somebody else's by now and stays.
                let _ = std::fs::remove_dir(&self.path);
            }
            error.into()
        })?;
        if let Some(key) = &request.key_pem {
            files::write_secret(&self.path.join(KEY), key.as_bytes())?;
        }
        files::write_whole(&self.path.join(CA), issued.ca_pem.as_bytes())?;
        let certificate = issued.certificate_pem.as_bytes();
        files::write_whole(&self.path.join(CERTIFICATE), certificate)?;
        Ok(issued)
    }
}

/// Adds a consumer and writes its files into a folder.
///
/// # Errors
/// The folder has a key already, the call failed, or a file cannot be written.
pub async fn add(
    session: &Session,
    name: &str,
    channels: &[String],
    devices: &[String],
    chosen: &ConsumerFiles,
) -> Result<IssuedConsumer, Failure> {
    let request = request(chosen.csr.as_deref())?;
    let folder = Folder::open(name, chosen)?;
    let key = folder.path.join(KEY);
    if chosen.csr.is_none() && key.exists() {
        return Err(Failure::new(format!(
            "{} is there already and is not overwritten: choose another folder with --out",
            key.display()
        )));
    }
    let client = &session.client;
    let issued = client.add_consumer(name, channels, devices, &request.csr_pem);
    folder.take(&request, issued.await)
}

async fn renew(
    session: &Session,
    name: &str,
    chosen: &ConsumerFiles,
) -> Result<IssuedConsumer, Failure> {
    let request = request(chosen.csr.as_deref())?;
    let folder = Folder::open(name, chosen)?;
    let issued = session.client.renew_consumer(name, &request.csr_pem);
    folder.take(&request, issued.await)
}

/// `dunlin consumer`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &ConsumerArgs) -> Result<Exit, Failure> {
    let session = Session::open(&args.shared)?;
    match &args.action {
        ConsumerAction::Add {
            name,
            channels,
            devices,
            files,
        } => {
            let issued = add(&session, name, channels, devices, files).await?;
            tell(&session, &issued, files);
        }
        ConsumerAction::Renew { name, files } => {
            let issued = renew(&session, name, files).await?;
            tell(&session, &issued, files);
        }
        ConsumerAction::List => {
            let consumers = session.client.consumers().await?;
            if session.json {
                table::print_json(&consumers);
            } else {
                table::print(&list(&consumers));
            }
        }
        ConsumerAction::Revoke { name } => {
            session.client.revoke_consumer(name).await?;
            if session.json {
                table::print_json(&json!({"revoked": name}));
            } else {
                table::print_line(&format!(
                    "{name} is shut out: its connection is dropped and its certificate refused \
                     (mosquitto: once it has read its ACL file again)"
                ));
            }
        }
    }
    Ok(Exit::Done)
}

fn tell(session: &Session, issued: &IssuedConsumer, chosen: &ConsumerFiles) {
    let folder = chosen.out.clone().unwrap_or_else(|| (&issued.name).into());
    let file = |name: &str| folder.join(name).display().to_string();
    let key_file = match chosen.csr {
        None => file(KEY),
        Some(_) => "KEY".to_owned(),
    };
    if session.json {
        table::print_json(&json!({
            "name": issued.name, "client_id": issued.client_id, "host": issued.mqtt_host,
            "port": issued.mqtt_port, "filters": issued.filters, "expires_ms": issued.expires_ms,
            "ca_file": file(CA), "certificate_file": file(CERTIFICATE),
            "key_file": chosen.csr.is_none().then_some(key_file),
        }));
        return;
    }
    let topics: Vec<String> = issued.filters.iter().map(|f| format!("-t '{f}'")).collect();
    table::print_line(&format!(
        "{} may read {} until {}\n\n\
         mosquitto_sub -h {} -p {} -i {} -q 1 \\\n  --cafile {} --cert {} --key {} \\\n  {}",
        issued.name,
        issued.filters.join(", "),
        time_text(Some(issued.expires_ms)),
        issued.mqtt_host,
        issued.mqtt_port,
        issued.client_id,
        file(CA),
        file(CERTIFICATE),
        key_file,
        topics.join(" ")
    ));
}

fn joined(value: &Value, none: &str) -> String {
    let texts: Vec<String> = value
        .as_array()
        .into_iter()
        .flatten()
        .map(text_of)
        .collect();
    match texts.is_empty() {
        true => none.to_owned(),
        false => texts.join(","),
    }
}

fn list(consumers: &[Value]) -> String {
    let mut rows = Table::new(&["consumer", "channels", "devices", "by", "until", "revoked"]);
    for consumer in consumers {
        let revoked = match consumer["revoked_ms"].as_i64() {
            None => "-".to_owned(),
            at => format!("{} by {}", time_text(at), text_of(&consumer["revoked_by"])),
        };
        rows.row([
            text_of(&consumer["name"]),
            joined(&consumer["channels"], "-"),
            joined(&consumer["devices"], "all"),
            text_of(&consumer["created_by"]),
            time_text(consumer["expires_ms"].as_i64()),
            revoked,
        ]);
    }
    match rows.is_empty() {
        true => "no consumer yet\n".to_owned(),
        false => rows.to_text(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_written_for_its_owner_alone_and_a_foreign_one_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let issued = IssuedConsumer {
            name: "x".to_owned(),
            client_id: "consumer+x".to_owned(),
            certificate_pem: "certificate".to_owned(),
            ca_pem: "ca".to_owned(),
            mqtt_host: "h".to_owned(),
            mqtt_port: 1,
            filters: Vec::new(),
            expires_ms: 0,
        };
        let folder = Folder {
            path: dir.path().to_owned(),
            is_new: false,
        };
        let take = |request| folder.take::<Failure>(request, Ok(issued.clone())).unwrap();
        let made = request(None).unwrap();
        take(&made);
        let key = dir.path().join(KEY);
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&key).unwrap();
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----"));

        let csr = dir.path().join("csr");
        std::fs::write(&csr, &made.csr_pem).unwrap();
        let foreign = request(Some(&csr)).unwrap();
        assert_eq!(foreign.csr_pem, made.csr_pem);
        take(&foreign);
        assert_eq!(std::fs::read_to_string(&key).unwrap(), text);
    }

    #[test]
    fn consumers_are_listed_whatever_is_missing() {
        let full = json!({
            "name": "grafana", "channels": ["metrics", "event"], "devices": [], "created_by": "admin",
            "expires_ms": 1000, "revoked_ms": 2000, "revoked_by": "eve",
        });
        let text = list(&[full, json!({})]);
        assert!(text.contains("metrics,event  all"), "{text}");
        assert!(text.contains("1970-01-01 00:00:02Z by eve"), "{text}");
        assert_eq!(list(&[]), "no consumer yet\n");
    }
}
