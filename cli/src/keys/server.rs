//! `dunlin keys server`: the public halves of the keys that only the server holds.

use crate::api::OnlineKeys;
use crate::args::{ServerAction, Shared};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table;
use dunlin_protocol::trust::Key;
use std::path::Path;

/// `dunlin keys server`.
///
/// # Errors
/// The server cannot be reached, or the file cannot be written.
pub async fn run(action: &ServerAction, shared: &Shared) -> Result<Exit, Failure> {
    let session = Session::open(shared)?;
    let (fleet, _) = session.fleet().await?;
    match action {
        ServerAction::Show { out } => {
            if let Some(out) = out {
                write(out, &fleet.online_keys)?;
            }
            say("signs now", &fleet.online_keys, shared.json)?;
            match &fleet.next_online_keys {
                Some(next) if !shared.json => say("waits for a root that lists it", next, false)?,
                _ => {}
            }
        }
        ServerAction::Rotate { out } => {
            let next = session.client.make_online_keys().await?;
            write(out, &next)?;
            say("waits for a root that lists it", &next, shared.json)?;
            if !shared.json {
                table::print_line(&format!(
                    "next: dunlin keys root edit --server-keys {} --out REQUEST",
                    out.display()
                ));
            }
        }
    }
    Ok(Exit::Done)
}

fn write(out: &Path, keys: &OnlineKeys) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(keys).map_err(Failure::new)?;
    Ok(files::write_whole(out, format!("{text}\n").as_bytes())?)
}

fn say(what: &str, keys: &OnlineKeys, is_json: bool) -> Result<(), Failure> {
    if is_json {
        table::print_json(keys);
        return Ok(());
    }
    for (role, json) in [("snapshot", &keys.snapshot), ("timestamp", &keys.timestamp)] {
        let keyid = Key::from_json(json)?.keyid()?;
        table::print_line(&format!("{role}: {keyid} {what}"));
    }
    Ok(())
}
