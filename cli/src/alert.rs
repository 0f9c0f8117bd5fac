//! `dunlin alert` and `dunlin webhook`.

use crate::args::{
    AlertAction, AlertArgs, QuantileArg, RuleArgs, WebhookAction, WebhookArgs, WhenArgs,
};
use crate::bundle::text_of;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::table::{self, Table};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `dunlin alert`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &AlertArgs) -> Result<Exit, Failure> {
    let session = Session::open(&args.shared)?;
    let client = &session.client;
    match &args.action {
        AlertAction::Rule(rule) => {
            client.put("/api/v1/alert-rules", rule_json(rule)).await?;
            say(&session, &json!({"rule": rule.name}), "rule is in place");
        }
        AlertAction::Rules => {
            let answer = client.get("/api/v1/alert-rules").await?;
            rules(&session, &answer);
        }
        AlertAction::Remove { name } => {
            client.delete("/api/v1/alert-rules", name).await?;
            say(&session, &json!({"removed": name}), "rule is removed");
        }
        AlertAction::List { all } => {
            let path = format!("/api/v1/alerts?all={all}");
            let answer = client.get(&path).await?;
            alerts(&session, &answer);
        }
        AlertAction::Silence {
            rule,
            subject,
            time,
            reason,
        } => {
            let body = json!({
                "rule": rule, "subject": subject, "for_s": time.as_secs(), "reason": reason,
            });
            let made = client.post("/api/v1/silences", body).await?;
            let until = table::time_text(made["until_ms"].as_i64());
            let said = format!("silence {} holds until {until}", text_of(&made["id"]));
            say(&session, &made, &said);
        }
        AlertAction::Silences => {
            let answer = client.get("/api/v1/silences").await?;
            silences(&session, &answer);
        }
        AlertAction::Unsilence { id } => {
            client.delete("/api/v1/silences", &id.to_string()).await?;
            say(&session, &json!({"ended": id}), "silence is ended");
        }
    }
    Ok(Exit::Done)
}

/// `dunlin webhook`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run_webhook(args: &WebhookArgs) -> Result<Exit, Failure> {
    let session = Session::open(&args.shared)?;
    let client = &session.client;
    match &args.action {
        WebhookAction::Add { name, url } => {
            let body = json!({"name": name, "url": url});
            let made = client.post("/api/v1/webhooks", body).await?;
            if session.json {
                table::print_json(&made);
            } else {
                // The secret alone on standard output, so that it can be kept as it is.
                table::print_line(&text_of(&made["secret"]));
                eprintln!(
                    "webhook {name} is told from now on; above is what its messages are signed with, shown once"
                );
            }
        }
        WebhookAction::List => {
            let answer = client.get("/api/v1/webhooks").await?;
            webhooks(&session, &answer);
        }
        WebhookAction::Remove { name } => {
            client.delete("/api/v1/webhooks", name).await?;
            say(&session, &json!({"removed": name}), "webhook is removed");
        }
        WebhookAction::Dead => {
            let answer = client.get("/api/v1/dead-letters").await?;
            dead(&session, &answer);
        }
        WebhookAction::Redeliver { id } => {
            let path = format!("/api/v1/dead-letters/{id}/redeliver");
            client.act(&path).await?;
            say(&session, &json!({"redelivered": id}), "it is tried again");
        }
    }
    Ok(Exit::Done)
}

fn say(session: &Session, json: &Value, words: &str) {
    if session.json {
        table::print_json(json);
    } else {
        table::print_line(words);
    }
}

fn rule_json(args: &RuleArgs) -> Value {
    let when = match &args.when {
        WhenArgs::Drift {
            family,
            margin,
            out_of_range_margin,
            signals,
            signals_min,
        } => {
            let mut when = json!({
                "kind": "drift", "family": family, "margin": margin, "signals": signals,
                "signals_min": signals_min,
            });
            if let Some(margin) = out_of_range_margin {
                when["out_of_range_margin"] = json!(margin);
            }
            when
        }
        WhenArgs::Confidence { family, below } => {
            json!({"kind": "confidence", "family": family, "below": below})
        }
        WhenArgs::Accuracy { family, below } => {
            json!({"kind": "accuracy", "family": family, "below": below})
        }
        WhenArgs::Errors {
            family,
            above_permille,
        } => json!({"kind": "errors", "family": family, "above_permille": above_permille}),
        WhenArgs::Latency {
            family,
            quantile,
            above_ms,
        } => {
            let quantile = match quantile {
                QuantileArg::P50 => "p50",
                QuantileArg::P90 => "p90",
                QuantileArg::P99 => "p99",
            };
            json!({
                "kind": "latency", "family": family, "quantile": quantile,
                "above_us": above_ms * 1000.0,
            })
        }
        WhenArgs::MissingData {
            family,
            inferences_min,
        } => json!({"kind": "missing_data", "family": family, "inferences_min": inferences_min}),
        WhenArgs::Silence { after, labels } => {
            let labels: BTreeMap<_, _> = labels.iter().cloned().collect();
            json!({"kind": "silence", "after_s": after.as_secs(), "labels": labels})
        }
    };
    json!({
        "name": args.name,
        "when": when,
        "segment": args.segment,
        "look_back_s": args.look_back.as_secs(),
        "for_s": args.time.as_secs(),
        "clear_s": args.clear.as_secs(),
        "severity": if args.critical { "critical" } else { "warning" },
        "webhooks": args.webhooks,
        "retrain": args.retrain,
    })
}

/// Prints a list of the answer as JSON or as a table; what to say if there is nothing.
fn list<const N: usize>(
    session: &Session,
    answer: &Value,
    key: &str,
    headings: [&str; N],
    none: &str,
    cells: impl Fn(&Value) -> [String; N],
) {
    let items = answer[key].as_array().cloned().unwrap_or_default();
    if session.json {
        table::print_json(&items);
        return;
    }
    let mut rows = Table::new(&headings);
    for item in &items {
        rows.row(cells(item));
    }
    if rows.is_empty() {
        table::print_line(none);
    } else {
        table::print(&rows.to_text());
    }
}

fn seconds(value: &Value) -> String {
    format!("{}s", value.as_u64().unwrap_or_default())
}

fn rules(session: &Session, answer: &Value) {
    let headings = ["rule", "what", "for", "clear", "severity", "webhooks"];
    let none = "no rule; see dunlin alert rule --help";
    list(session, answer, "rules", headings, none, |rule| {
        let when = rule["when"].as_object().cloned().unwrap_or_default();
        let kind = when.get("kind").map(text_of).unwrap_or_default();
        let rest = when.iter().filter(|(key, value)| {
            let is_empty = value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty);
            *key != "kind" && !is_empty
        });
        let rest: Vec<String> = rest
            .map(|(key, value)| format!("{key} {}", text_of(value)))
            .collect();
        let names = rule["webhooks"].as_array().cloned().unwrap_or_default();
        let names: Vec<String> = names.iter().map(text_of).collect();
        [
            text_of(&rule["name"]),
            format!("{kind}: {}", rest.join(", ")),
            seconds(&rule["for_s"]),
            seconds(&rule["clear_s"]),
            text_of(&rule["severity"]),
            if names.is_empty() {
                "all".to_owned()
            } else {
                names.join(", ")
            },
        ]
    });
}

fn alerts(session: &Session, answer: &Value) {
    let headings = [
        "alert", "rule", "subject", "severity", "since", "over", "told",
    ];
    list(session, answer, "alerts", headings, "no alert", |alert| {
        let over = alert["resolved_ms"].as_i64();
        [
            text_of(&alert["id"]),
            text_of(&alert["rule"]),
            text_of(&alert["subject"]),
            text_of(&alert["severity"]),
            table::time_text(alert["since_ms"].as_i64()),
            over.map_or_else(|| "goes on".to_owned(), |ms| table::time_text(Some(ms))),
            if alert["silenced"] == json!(true) {
                "silenced".to_owned()
            } else {
                "yes".to_owned()
            },
        ]
    });
}

fn silences(session: &Session, answer: &Value) {
    let headings = ["silence", "rule", "subject", "until", "by", "reason"];
    list(
        session,
        answer,
        "silences",
        headings,
        "no silence",
        |silence| {
            let or_all = |value: &Value| value.as_str().unwrap_or("all").to_owned();
            [
                text_of(&silence["id"]),
                or_all(&silence["rule"]),
                or_all(&silence["subject"]),
                table::time_text(silence["until_ms"].as_i64()),
                text_of(&silence["made_by"]),
                text_of(&silence["reason"]),
            ]
        },
    );
}

fn webhooks(session: &Session, answer: &Value) {
    let headings = ["webhook", "url", "waiting>", "dead>"];
    let none = "no webhook; see dunlin webhook add --help";
    list(session, answer, "webhooks", headings, none, |webhook| {
        [
            text_of(&webhook["name"]),
            text_of(&webhook["url"]),
            text_of(&webhook["waiting"]),
            text_of(&webhook["dead"]),
        ]
    });
}

fn dead(session: &Session, answer: &Value) {
    let headings = [
        "message",
        "webhook",
        "about",
        "written",
        "attempts>",
        "error",
    ];
    let none = "no message was given up";
    list(session, answer, "dead_letters", headings, none, |letter| {
        let body = &letter["body"];
        [
            text_of(&letter["id"]),
            text_of(&letter["webhook"]),
            format!("{} {}", text_of(&body["kind"]), text_of(&body["rule"])),
            table::time_text(letter["created_ms"].as_i64()),
            text_of(&letter["attempts"]),
            text_of(&letter["error"]),
        ]
    });
}
