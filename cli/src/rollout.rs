//! `dunlin rollout`.

use crate::api::{ApiClient, CreateRollout, RolloutView};
use crate::args::{CreateArgs, RolloutAction, RolloutArgs, whole_ms};
use crate::bundle::text_of;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table::{self, Table, time_text};
use dunlin_protocol::command::{Probation, Shadow};
use dunlin_protocol::id::RolloutId;
use dunlin_server::drift::early::{EarlyDecision, EarlyVerdict};
use dunlin_server::drift::gate::{Decision, Verdict};
use dunlin_server::rollout::model::{PauseReason, RolloutState, StopReason};
use dunlin_server::rollout::policy::{Policy, REST, Stage, StageSize};
use dunlin_server::rollout::report::{ReasonCode, Report, StageReport};
use dunlin_server::rollout::shadowed::Shadowed;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const POLICY_MAX_BYTES: u64 = 1 << 20;
/// Looks in a row that may fail before watching gives up: a server may be restarted meanwhile.
const FAILED_LOOKS_MAX: u32 = 30;

/// `dunlin rollout`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &RolloutArgs) -> Result<Exit, Failure> {
    match &args.action {
        RolloutAction::Create(create) => {
            let wanted = request(create)?;
            let session = Session::open(&args.shared)?;
            let create = session
                .client
                .create_rollout_with(&wanted, create.no_way_back);
            let rollout = create.await?;
            if session.json {
                table::print_json(&rollout);
            } else {
                let seed = wanted.policy.as_ref().map_or(0, |p| p.seed);
                table::print_line(&format!(
                    "rollout {id} of {} version {} has begun, seed {seed}\nwatch it: dunlin rollout show {id} --watch",
                    rollout.family,
                    rollout.version,
                    id = rollout.id
                ));
            }
            Ok(Exit::Done)
        }
        RolloutAction::List => list(&Session::open(&args.shared)?).await,
        RolloutAction::Show { id, watch, every } => {
            let session = Session::open(&args.shared)?;
            let id = rollout_id(id)?;
            if *watch {
                return watch_to_end(&session, &id, *every).await;
            }
            let rollout = session.client.rollout(&id).await?;
            if session.json {
                table::print_json(&rollout);
            } else {
                table::print(&show(&rollout));
            }
            Ok(Exit::Done)
        }
        RolloutAction::Abort { id } => {
            let session = Session::open(&args.shared)?;
            session.client.abort_rollout(&rollout_id(id)?).await?;
            if session.json {
                table::print_json(&json!({"abort_requested": id}));
            } else {
                table::print_line(&format!(
                    "abort requested: devices of rollout {id} go back to the version before\nwatch them: dunlin rollout show {id}"
                ));
            }
            Ok(Exit::Done)
        }
        RolloutAction::Resume { id } => {
            let session = Session::open(&args.shared)?;
            session.client.resume_rollout(&rollout_id(id)?).await?;
            if session.json {
                table::print_json(&json!({"resume_requested": id}));
            } else {
                table::print_line(&format!(
                    "resumption requested: rollout {id} looks at the same stage again\nwatch it: dunlin rollout show {id} --watch"
                ));
            }
            Ok(Exit::Done)
        }
    }
}

/// No limit on a count: the largest number that every JSON reader keeps.
const ERRORS_ANY: u64 = (1 << 53) - 1;

fn rollout_id(text: &str) -> Result<RolloutId, Failure> {
    text.parse().map_err(Failure::usage)
}

/// Makes what is posted from the options.
fn request(args: &CreateArgs) -> Result<CreateRollout, Failure> {
    Ok(CreateRollout {
        family: args.family.parse().map_err(Failure::usage)?,
        version: args.version,
        policy: Some(policy(args)?),
        selector: (!args.labels.is_empty()).then(|| args.labels.iter().cloned().collect()),
        probation: probation(args),
    })
}

/// The server's rules, but for what the options say; `None` if they say nothing.
fn probation(args: &CreateArgs) -> Option<Probation> {
    let usual = Probation::default();
    let wanted = Probation {
        inferences: args.probation_inferences.unwrap_or(usual.inferences),
        time_ms: args.probation_time.map_or(usual.time_ms, whole_ms),
        // A share that is allowed takes the place of the count.
        errors_max: args
            .errors_permille_max
            .map_or(usual.errors_max, |_| ERRORS_ANY),
        errors_permille_max: args.errors_permille_max,
        slow_permille_max: args.slow_permille_max,
        retry_rolled_back: args.retry_rolled_back,
        shadow: shadow(args),
        ..usual
    };
    (wanted != usual).then_some(wanted)
}

fn shadow(args: &CreateArgs) -> Option<Shadow> {
    let usual = Shadow::default();
    Some(Shadow {
        comparisons: args.shadow?,
        sample_permille: args.shadow_sample.unwrap_or(usual.sample_permille),
        agreement_permille_min: args.shadow_agreement,
        net_losses_max: args.shadow_losses,
        ..usual
    })
}

fn policy(args: &CreateArgs) -> Result<Policy, Failure> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let mut policy = match &args.policy {
        None => Policy::with_seed(seed),
        Some(file) => {
            let bad = |e: serde_json::Error| Failure::usage(format!("{}: {e}", file.display()));
            let text = files::read_text(file, POLICY_MAX_BYTES)?;
            let mut json: Value = serde_json::from_str(&text).map_err(bad)?;
            // An option wins; a file without a seed gets the drawn one.
            if json.is_object() && (args.seed.is_some() || json["seed"].is_null()) {
                json["seed"] = seed.into();
            }
            Policy::of_new(json).map_err(bad)?
        }
    };
    if !args.stages.is_empty() {
        let soak_ms = policy.stages.first().map_or(0, |s| s.soak_ms);
        policy.stages = stages(&args.stages, soak_ms)?;
    }
    if let Some(soak) = args.soak {
        for stage in &mut policy.stages {
            stage.soak_ms = whole_ms(soak);
        }
    }
    if let Some(silence) = args.silence {
        policy.silence_ms = whole_ms(silence);
    }
    if args.no_gate {
        policy.gate = None;
    }
    if let Some(gate) = policy.gate.as_mut().filter(|_| args.no_early) {
        gate.early = None;
    }
    policy.validate().map_err(Failure::usage)?;
    Ok(policy)
}

fn random_seed() -> Result<u64, Failure> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(format!("the system's random generator failed: {e}")))?;
    // Within 2^53, so that every JSON reader keeps it.
    Ok(u64::from_be_bytes(bytes) >> 11)
}

/// Stages from `3`, `50%` and `rest`. The first is named `canary`.
fn stages(texts: &[String], soak_ms: u64) -> Result<Vec<Stage>, Failure> {
    let stage = |(at, text): (usize, &String)| {
        let bad = |problem: String| {
            Failure::usage(format!(
                "--stage {text:?}: expected a number of devices, a share such as 50%, or rest{problem}"
            ))
        };
        let size = if text == REST {
            StageSize::Rest
        } else if text.ends_with('%') || text.contains('/') {
            StageSize::Percent(text.parse().map_err(|e| bad(format!(": {e}")))?)
        } else {
            StageSize::Count(text.parse().map_err(|_| bad(String::new()))?)
        };
        let name = match (at, size) {
            (_, StageSize::Rest) => REST.to_owned(),
            (0, _) => "canary".to_owned(),
            (_, StageSize::Count(_)) => format!("{text} more ({})", at + 1),
            (_, StageSize::Percent(_)) => text.clone(),
        };
        Ok(Stage {
            name,
            size,
            soak_ms,
        })
    };
    texts.iter().enumerate().map(stage).collect()
}

async fn list(session: &Session) -> Result<Exit, Failure> {
    let rollouts = session.client.rollouts().await?;
    if session.json {
        table::print_json(&rollouts);
        return Ok(Exit::Done);
    }
    let mut rows = Table::new(&["rollout", "family", "version>", "state", "created", "why"]);
    for rollout in &rollouts {
        let state: Result<RolloutState, _> = serde_json::from_value(rollout["state"].clone());
        let state = state.map_or_else(|_| text_of(&rollout["state"]), |s| s.to_string());
        let why = rollout["why"].as_str();
        rows.row([
            text_of(&rollout["id"]),
            text_of(&rollout["family"]),
            text_of(&rollout["version"]),
            state,
            time_text(rollout["created_ms"].as_i64()),
            why.unwrap_or_default().chars().take(100).collect(),
        ]);
    }
    if rows.is_empty() {
        table::print_line("no rollout yet");
    } else {
        table::print(&rows.to_text());
    }
    Ok(Exit::Done)
}

/// How watching ends in this state; `None`: it goes on.
#[must_use]
pub fn outcome(state: &RolloutState) -> Option<Exit> {
    match state {
        RolloutState::Running { .. } => None,
        RolloutState::Finished => Some(Exit::Done),
        RolloutState::Stopped { .. } => Some(Exit::RolloutStopped),
        RolloutState::Paused { .. } => Some(Exit::RolloutPaused),
        RolloutState::Aborted { .. } => Some(Exit::RolloutAborted),
    }
}

/// Asks again and again until the rollout is no longer running; calls `look` with each answer.
///
/// # Errors
/// The server refuses, or cannot be reached for half a minute.
pub async fn watch(
    client: &ApiClient,
    id: &RolloutId,
    every: Duration,
    mut look: impl FnMut(&RolloutView),
) -> Result<RolloutView, Failure> {
    let mut failed = 0;
    let every = every.max(Duration::from_millis(50));
    loop {
        match client.rollout(id).await {
            Ok(rollout) => {
                failed = 0;
                look(&rollout);
                if outcome(&rollout.state).is_some() {
                    return Ok(rollout);
                }
            }
            Err(error) => {
                let failure = Failure::from(error);
                failed += 1;
                if failure.exit != Exit::Unreachable || failed >= FAILED_LOOKS_MAX {
                    return Err(failure);
                }
            }
        }
        tokio::time::sleep(every).await;
    }
}

async fn watch_to_end(session: &Session, id: &RolloutId, every: Duration) -> Result<Exit, Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut shown = String::new();
    let last = watch(&session.client, id, every, |rollout| {
        if session.json {
            // One document a line, when something changed.
            let line = serde_json::to_string(rollout).unwrap_or_default();
            if line != shown {
                table::print_line(&line);
                shown = line;
            }
            return;
        }
        let text = show(rollout);
        if is_terminal {
            if text != shown {
                redraw(&shown, &text);
                shown = text;
            }
            return;
        }
        // Seconds that pass are no news in a log.
        let news = news(rollout);
        if news != shown {
            table::print(&format!("{text}\n"));
            shown = news;
        }
    })
    .await?;
    Ok(outcome(&last.state).unwrap_or(Exit::Done))
}

/// What must change for a look to be worth a line: state, counts, kinds of reason.
fn news(rollout: &RolloutView) -> String {
    let report = rollout.report.as_ref();
    let stages = report.map(|r| &r.stages);
    let codes = report.map(|r| {
        r.reasons
            .iter()
            .map(|reason| reason.code)
            .collect::<Vec<_>>()
    });
    format!("{:?} {stages:?} {codes:?}", rollout.state)
}

/// Replaces what was drawn before.
fn redraw(before: &str, text: &str) {
    let mut out = std::io::stdout().lock();
    let up = before.lines().count();
    let back = if up > 0 {
        format!("\x1b[{up}A\x1b[J")
    } else {
        String::new()
    };
    let _ = write!(out, "{back}{text}").and_then(|()| out.flush());
}

/// A rollout as text: its stages, why it is not moving, and the gate's numbers.
#[must_use]
pub fn show(rollout: &RolloutView) -> String {
    let mut text = format!(
        "rollout {} · {} version {} · {}\n",
        rollout.id, rollout.family, rollout.version, rollout.state
    );
    if let Some(why) = ended_because(&rollout.state) {
        text.push_str(&format!("{why}\n"));
    }
    if let Some(report) = &rollout.report {
        text.push('\n');
        text.push_str(&stage_table(&report.stages));
        text.push('\n');
        for reason in &report.reasons {
            text.push_str(&format!("- {}\n", reason.sentence));
        }
        if let Some(line) = early_line(report) {
            text.push_str(&line);
        }
    }
    if let Some(shadow) = &rollout.shadow {
        text.push_str(&shadow_text(shadow));
    }
    for (stage, verdict) in early_stops(rollout) {
        text.push_str(&format!(
            "\nearly look at {stage}: STOP: {}\n",
            verdict.reason
        ));
    }
    for (stage, verdict) in verdicts(rollout) {
        text.push('\n');
        text.push_str(&verdict_text(&stage, &verdict));
    }
    text
}

/// Evidence of an e-value of 20 is that of a p-value of .05.
const EVIDENCE: f64 = 20.0;

fn shadow_text(shadow: &Shadowed) -> String {
    let mut text = format!(
        "\nin the shadow: {} of {} answers agree on {} devices; {} failed, {} passed over; {} µs against {} µs\n",
        shadow.agreed,
        shadow.compared,
        shadow.devices,
        shadow.failed,
        shadow.passed_over,
        shadow.latency_us,
        shadow.serving_latency_us,
    );
    if shadow.won + shadow.lost > 0 {
        let says = match shadow {
            s if s.inferior_e >= EVIDENCE => "it is worse",
            s if s.differ_e >= EVIDENCE && s.won > s.lost => "it is better",
            _ => "not enough to say which is better",
        };
        text.push_str(&format!(
            "labelled: {} won, {} lost: {says} (e-values: differ {:.1}, inferior {:.1})\n",
            shadow.won, shadow.lost, shadow.differ_e, shadow.inferior_e
        ));
    }
    text
}

fn ended_because(state: &RolloutState) -> Option<String> {
    match state {
        RolloutState::Running { .. } | RolloutState::Finished => None,
        RolloutState::Aborted { why } => Some(format!("aborted: {why}")),
        RolloutState::Paused { why, .. } => Some(match why {
            PauseReason::BelowSuccess {
                succeeded,
                total,
                threshold,
            } => format!(
                "paused: {succeeded} of {total} devices succeeded, {} are needed",
                threshold.in_words()
            ),
            PauseReason::Operator { why } => format!("paused: {why}"),
        }),
        RolloutState::Stopped { why, .. } => Some(match why {
            StopReason::Errors {
                stage_name,
                errors,
                total,
                threshold,
            } => format!(
                "stopped: {errors} of {total} devices of {stage_name} failed, {} are tolerated",
                threshold.in_words()
            ),
            StopReason::Gate { verdict } => format!("stopped by the gate: {}", verdict.reason),
            StopReason::Early { verdict } => format!("stopped early: {}", verdict.reason),
        }),
    }
}

fn stage_table(stages: &[StageReport]) -> String {
    let mut rows = Table::new(&[
        "stage",
        "devices>",
        "waiting>",
        "working>",
        "probation>",
        "succeeded>",
        "errors>",
        "other>",
    ]);
    for stage in stages {
        let n = &stage.counts;
        let numbers = [
            stage.total,
            n.waiting,
            n.assigned + n.working,
            n.probation,
            n.succeeded,
            n.errors(),
            n.not_started + n.cancelled,
        ];
        let cells = std::iter::once(stage.name.clone());
        rows.row(cells.chain(numbers.iter().map(ToString::to_string)));
    }
    rows.to_text()
}

/// What the early look lacks, where the reasons do not say it.
fn early_line(report: &Report) -> Option<String> {
    let early = report.early.as_ref()?;
    let is_said = early.decision == EarlyDecision::Stop
        || report
            .reasons
            .iter()
            .any(|reason| reason.code == ReasonCode::EarlyLook);
    (!is_said).then(|| format!("- {}\n", early.reason))
}

/// The early looks that stopped the rollout, each with the name of its stage.
fn early_stops(rollout: &RolloutView) -> Vec<(String, EarlyVerdict)> {
    kept(rollout)
}

/// The verdicts that the server keeps of a rollout's gates, each with the name of its stage.
#[must_use]
pub fn verdicts(rollout: &RolloutView) -> Vec<(String, Verdict)> {
    let all = kept(rollout);
    if !all.is_empty() {
        return all;
    }
    let latest = rollout.report.as_ref().and_then(|r| r.verdict.clone());
    latest.map(|v| (String::new(), v)).into_iter().collect()
}

/// What the server keeps of this kind, each with the name of its stage.
fn kept<T: DeserializeOwned>(rollout: &RolloutView) -> Vec<(String, T)> {
    let kept = rollout.other.get("verdicts").and_then(Value::as_array);
    let read = |row: &Value| {
        // A row holds what was judged: stage, policy, input, verdict, and a gate's request.
        let judged = row.get("judged")?;
        let verdict: T = serde_json::from_value(judged["verdict"].clone()).ok()?;
        let at = judged["stage"]
            .as_u64()
            .and_then(|at| usize::try_from(at).ok());
        let stages = rollout.report.as_ref().map_or(&[][..], |r| &r.stages);
        let name = at.map(|at| {
            stages
                .get(at)
                .map_or_else(|| at.to_string(), |s| s.name.clone())
        });
        Some((name.unwrap_or_default(), verdict))
    };
    kept.into_iter().flatten().filter_map(read).collect()
}

fn verdict_text(stage: &str, verdict: &Verdict) -> String {
    let decision = match verdict.decision {
        Decision::Pass => "pass",
        Decision::Stop => "STOP",
        Decision::Hold => "hold",
    };
    let place = if stage.is_empty() {
        String::new()
    } else {
        format!(" after {stage}")
    };
    let mut text = format!("gate{place}: {decision}: {}\n", verdict.reason);
    if verdict.metrics.is_empty() {
        return text;
    }
    let mut rows = Table::new(&[
        "  metric",
        "canaries>",
        "controls>",
        "effect>",
        "margin>",
        "p>",
        "alpha>",
        "",
    ]);
    for m in &verdict.metrics {
        let judged = match (m.is_significant, m.is_beyond_margin) {
            (true, true) => "fell behind",
            (true, false) => "within the margin",
            _ => "not significant",
        };
        rows.row([
            format!("  {}", m.name),
            format!("{:+.4}", m.canary_mean),
            format!("{:+.4}", m.control_mean),
            format!("{:+.4}", m.effect),
            format!("{:.4}", m.margin),
            format!("{:.4}", m.p_value),
            format!("{:.4}", m.alpha.to_f64()),
            judged.to_owned(),
        ]);
    }
    text.push_str(&rows.to_text());
    text
}

#[cfg(test)]
mod tests;
