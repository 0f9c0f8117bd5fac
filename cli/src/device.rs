//! `dunlin device`.

use crate::args::{DeviceAction, DeviceArgs};
use crate::bundle::text_of;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::table::{self, Table, ago_text, time_text};
use crate::token::labels_text;
use dunlin_protocol::id::{DeviceId, Family};
use jiff::Timestamp;
use serde_json::{Value, json};

/// `dunlin device`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &DeviceArgs) -> Result<Exit, Failure> {
    let session = Session::open(&args.shared)?;
    match &args.action {
        DeviceAction::List {
            labels,
            online,
            family,
            version,
        } => {
            let labels = labels.iter().map(|(k, v)| ("label", format!("{k}={v}")));
            let mut query: Vec<(&str, String)> = labels.collect();
            query.extend(online.then(|| ("online", "true".to_owned())));
            query.extend(family.iter().map(|f| ("family", f.clone())));
            query.extend(version.iter().map(|v| ("version", v.to_string())));
            let devices = session.client.devices(&query).await?;
            list(&devices, session.json);
        }
        DeviceAction::Show { device } => {
            let device = session.client.device(&id(device)?).await?;
            if session.json {
                table::print_json(&device);
            } else {
                table::print(&show(&device, Timestamp::now().as_millisecond()));
            }
        }
        DeviceAction::Revoke { device } => {
            session.client.revoke_device(&id(device)?).await?;
            if session.json {
                table::print_json(&json!({"revoked": device}));
            } else {
                table::print_line(&format!(
                    "{device} is shut out: its connection is dropped and its certificate refused"
                ));
            }
        }
        DeviceAction::Pin {
            device,
            family,
            version,
        } => {
            let family: Family = family.parse().map_err(Failure::usage)?;
            let device = id(device)?;
            session
                .client
                .pin_device(&device, &family, *version)
                .await?;
            if session.json {
                table::print_json(&json!({"device": device, "family": family, "version": version}));
            } else {
                table::print_line(&format!(
                    "{device} is asked to run {family} version {version}"
                ));
            }
        }
    }
    Ok(Exit::Done)
}

fn id(text: &str) -> Result<DeviceId, Failure> {
    text.parse().map_err(Failure::usage)
}

/// `digits 2` for each bundle that serves.
fn active_text(active: &Value) -> String {
    let one = |bundle: &Value| {
        format!(
            "{} {}",
            text_of(&bundle["family"]),
            text_of(&bundle["version"])
        )
    };
    match active {
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(one).collect::<Vec<_>>().join(", "),
        Value::Object(_) => one(active),
        _ => "-".to_owned(),
    }
}

/// How far an update is: `probation 20/50`, `failed (golden): …`.
pub(crate) fn progress_text(progress: &Value) -> String {
    let state = progress["state"].as_str().unwrap_or("-").replace('_', " ");
    let number = |name: &str| progress[name].as_u64();
    if let (Some(done), Some(needed)) = (number("inferences"), number("needed")) {
        return format!("{state} {done}/{needed}");
    }
    if let (Some(done), Some(total @ 1..)) = (number("done_bytes"), number("total_bytes")) {
        return format!("{state} {} %", done.saturating_mul(100) / total);
    }
    match progress["code"].as_str() {
        Some(code) => format!("{state} ({code}): {}", text_of(&progress["detail"])),
        None => state,
    }
}

/// How far each family is, and what to call the line; servers of before speak of one alone.
fn updates(device: &Value) -> Vec<(String, String)> {
    let models = device["models"].as_array().map(Vec::as_slice);
    match models.unwrap_or_default() {
        [] => vec![("update".to_owned(), progress_text(&device["progress"]))],
        [only] => vec![("update".to_owned(), progress_text(&only["progress"]))],
        models => models
            .iter()
            .map(|model| {
                let name = format!("update of {}", text_of(&model["family"]));
                (name, progress_text(&model["progress"]))
            })
            .collect(),
    }
}

fn state_text(device: &Value) -> &'static str {
    match (device["revoked"].as_bool(), device["online"].as_bool()) {
        (Some(true), _) => "revoked",
        (_, Some(true)) => "online",
        _ => "offline",
    }
}

fn list(devices: &[Value], is_json: bool) {
    if is_json {
        table::print_json(&devices);
        return;
    }
    let now_ms = Timestamp::now().as_millisecond();
    let mut rows = Table::new(&["device", "", "seen>", "runs", "update", "labels"]);
    for device in devices {
        let state = state_text(device);
        let progress = updates(device).into_iter().map(|(_, text)| text);
        let progress = progress.collect::<Vec<_>>().join("; ");
        let progress: String = progress.chars().take(60).collect();
        rows.row([
            text_of(&device["device"]),
            state.to_owned(),
            ago_text(device["last_seen_ms"].as_i64(), now_ms),
            active_text(&device["active"]),
            progress,
            labels_text(&device["labels"]),
        ]);
    }
    if rows.is_empty() {
        table::print_line("no device matches");
    } else {
        table::print(&rows.to_text());
    }
}

fn show(device: &Value, now_ms: i64) -> String {
    let mut rows = Table::new(&[&text_of(&device["device"]), ""]);
    let state = state_text(device);
    let seen = device["last_seen_ms"].as_i64();
    let line = |name: &str, value: String| [format!("  {name}"), value];
    rows.row(line(
        "state",
        format!("{state}, seen {} ago", ago_text(seen, now_ms)),
    ));
    rows.row(line("runs", active_text(&device["active"])));
    rows.row(line("desired", active_text(&device["desired"])));
    for (name, text) in updates(device) {
        rows.row(line(&name, text));
    }
    rows.row(line("revision", text_of(&device["revision"])));
    rows.row(line("labels", labels_text(&device["labels"])));
    rows.row(line(
        "hardware",
        format!(
            "{} ({})",
            text_of(&device["hardware"]),
            text_of(&device["arch"])
        ),
    ));
    rows.row(line("agent", text_of(&device["agent_version"])));
    rows.row(line("enrolled", time_text(device["enrolled_ms"].as_i64())));
    rows.to_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_its_numbers() {
        let text = |value: Value| progress_text(&value);
        assert_eq!(
            text(json!({"state": "probation", "inferences": 20, "needed": 50})),
            "probation 20/50"
        );
        assert_eq!(
            text(json!({"state": "receiving", "done_bytes": 1, "total_bytes": 4})),
            "receiving 25 %"
        );
        assert_eq!(
            text(json!({"state": "rolled_back", "code": "golden", "detail": "case 3"})),
            "rolled back (golden): case 3"
        );
        assert_eq!(text(Value::Null), "-");
    }

    #[test]
    fn a_device_is_shown_whatever_is_missing() {
        let full = show(
            &json!({
                "device": "edge-1", "online": true, "last_seen_ms": 1000, "active": [{"family": "digits", "version": 2}],
                "progress": {"state": "succeeded"}, "revision": "1.4", "labels": {"site": "a"},
            }),
            2000,
        );
        assert!(
            full.contains("digits 2") && full.contains("1.4") && full.contains("site=a"),
            "{full}"
        );
        assert!(show(&json!({}), 0).contains("offline"));
    }
}
