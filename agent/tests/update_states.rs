//! The drawing in `docs/update-states.md` is what the state machine does: every state that can be
//! reached is visited, with every kind of event.
//!
//! `DUNLIN_WRITE_DOCS=1 cargo test -p dunlin-agent --test update_states` draws it anew.

#![allow(clippy::unwrap_used)]

use dunlin_agent::device::{
    Consent, Count, Deaths, Event, Model, Phase, ReceiveFailure, ReceiveFailureKind, Slot, State,
    step,
};
use dunlin_agent::pipe::TrialReport;
use dunlin_protocol::command::{Desired, DesiredBundle, Probation, Shadow};
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::report::{Failure, Hold, Progress, ShadowReport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

const BEGIN: &str = "<!-- drawn from the code: begin -->\n";
const END: &str = "<!-- drawn from the code: end -->";

fn want(version: u64, retry_rolled_back: bool) -> DesiredBundle {
    DesiredBundle {
        family: "digits".parse().unwrap(),
        version,
        target: format!("digits/{version}/manifest.json"),
        digest: Digest::of(&version.to_be_bytes()),
        rollout: None,
        probation: Probation {
            inferences: 2,
            time_ms: 0,
            errors_max: 0,
            deadline_ms: 5_000,
            shadow: (version == 2).then_some(Shadow {
                comparisons: 2,
                agreement_permille_min: Some(500),
                deadline_ms: 5_000,
                ..Shadow::default()
            }),
            retry_rolled_back,
            ..Probation::default()
        },
        asked: None,
    }
}

/// Every kind of event, for either of two versions, and what to call it.
fn events(state: &State) -> Vec<(&'static str, Event)> {
    let newer = |bundles| {
        Event::Desired(Desired {
            revision: Revision {
                generation: state.revision.generation + 1,
                ..state.revision
            },
            bundles,
        })
    };
    let mut all = vec![
        ("the agent starts", Event::Started),
        ("nothing is wanted", newer(vec![])),
        ("time passes", Event::Tick),
        ("consent", Event::Consent(Consent::default())),
        (
            "outside the window",
            Event::Consent(Consent {
                hold: None,
                window_opens_ms: Some(1),
            }),
        ),
        (
            "held back",
            Event::Consent(Consent {
                hold: Some(Hold {
                    reason: String::new(),
                    since_ms: 0,
                    until_ms: None,
                }),
                window_opens_ms: None,
            }),
        ),
        (
            "the worker dies",
            Event::WorkerDied {
                detail: String::new(),
                listened: true,
                killed: false,
                at_work: None,
            },
        ),
    ];
    let wanted = model_of(state).wanted;
    all.push((
        "the same is wanted again",
        Event::Desired(Desired {
            revision: state.revision,
            bundles: wanted.into_iter().collect(),
        }),
    ));
    for version in [1, 2] {
        let digest = want(version, false).digest;
        all.push(("a version is wanted", newer(vec![want(version, false)])));
        all.push(("a version is wanted", newer(vec![want(version, true)])));
        all.push((
            "staged",
            Event::Received {
                digest,
                result: Ok(()),
            },
        ));
        for (name, kind) in [
            ("refused", ReceiveFailureKind::Refused),
            ("cannot be fetched", ReceiveFailureKind::Failed),
            ("link or server fails", ReceiveFailureKind::Transient),
        ] {
            let failure = Failure::new("x", "");
            let result = Err(ReceiveFailure {
                kind,
                progressed: false,
                failure,
            });
            all.push((name, Event::Received { digest, result }));
        }
        let passed = TrialReport::Passed {
            cases: 1,
            difference_max: 0.0,
            latency_median_us: 1,
        };
        let failed = TrialReport::Failed {
            code: "golden".to_owned(),
            detail: String::new(),
        };
        for (name, report) in [("trial passes", passed), ("trial fails", failed)] {
            all.push((name, Event::TrialDone { digest, report }));
        }
        all.push(("it serves", Event::Activated { digest }));
        for slot in [Slot::A, Slot::B] {
            let detail = String::new();
            let failed = Event::ActivateFailed {
                slot,
                digest,
                detail,
            };
            all.push(("it cannot be served", failed));
            let detail = String::new();
            let damaged = Event::SlotDamaged {
                slot,
                digest,
                detail,
            };
            all.push(("its slot is damaged", damaged));
        }
        for (name, compared, agreed) in [
            ("compared", 1, 1),
            ("enough agree", 2, 2),
            ("too many differ", 2, 0),
        ] {
            let so_far = ShadowReport {
                compared,
                agreed,
                ..ShadowReport::default()
            };
            all.push((name, Event::Shadowed { digest, so_far }));
        }
        for (name, inferences, errors, slow) in [
            ("answers", 1, 0, 0),
            ("enough answers", 2, 0, 0),
            ("too many errors", 0, 1, 0),
            ("too many slow answers", 2, 0, 2),
        ] {
            let count = Count {
                inferences,
                errors,
                slow,
            };
            all.push((name, Event::Counted { digest, count }));
        }
    }
    all
}

fn model_of(state: &State) -> Model {
    state.models.values().next().cloned().unwrap_or_default()
}

/// What does not matter to the drawing, taken out, so that there is an end of states.
fn plain(mut state: State) -> State {
    (state.sequence, state.revision) = (0, Revision::default());
    // Going back from a kept version is no change of phase.
    state.deaths = Deaths::default();
    for model in state.models.values_mut() {
        plain_model(model);
    }
    state
}

/// By what revision something was asked for does not matter, only whether it was.
fn forget_revision(want: &mut DesiredBundle) {
    want.asked = None;
}

fn plain_model(state: &mut Model) {
    state.asked = state.asked.map(|_| Revision::default());
    state.wanted.iter_mut().for_each(forget_revision);
    if let Phase::Receiving { want, .. }
    | Phase::Trial { want, .. }
    | Phase::Shadow { want, .. }
    | Phase::Waiting { want, .. }
    | Phase::Probation { want, .. }
    | Phase::RollingBack { want, .. } = &mut state.phase
    {
        forget_revision(want);
    }
    for not_held in &mut state.not_held {
        not_held.code.clear();
    }
    state.not_held.sort_by_key(|n| n.version);
    if let Phase::Idle {
        last: Progress::Refused(f) | Progress::Failed(f) | Progress::RolledBack(f),
    } = &mut state.phase
    {
        // This one alone is gone on from.
        let code = if f.code == "unreachable" {
            &*f.code
        } else {
            ""
        };
        *f = Failure::new(code, "");
    }
    state.shadowed = None;
    if let Phase::Shadow {
        before,
        looked_at_ms,
        ..
    } = &mut state.phase
    {
        *looked_at_ms = 0;
        (before.compared, before.agreed) = (before.compared.min(1), before.agreed.min(1));
    }
    if let Phase::Receiving { retry_at_ms, .. } = &mut state.phase {
        *retry_at_ms = 0;
    }
    if let Phase::Probation {
        before,
        restarts,
        looked_at_ms,
        ..
    } = &mut state.phase
    {
        // Every look is a while after the one before.
        *looked_at_ms = 0;
        before.inferences = before.inferences.min(1);
        // The first and the last that are borne.
        *restarts = if *restarts > 0 { 5 } else { 0 };
    }
}

fn name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Idle { .. } => "Idle",
        Phase::Receiving { .. } => "Receiving",
        Phase::Trial { .. } => "Trial",
        Phase::Shadow { .. } => "Shadow",
        Phase::Waiting { .. } => "Waiting",
        Phase::Probation { .. } => "Probation",
        Phase::RollingBack { .. } => "RollingBack",
    }
}

/// How an update ended, for an arrow that ends it.
fn end(from: &Phase, to: &Phase) -> &'static str {
    match to {
        Phase::Idle { .. } if matches!(from, Phase::Idle { .. }) => "",
        Phase::Idle { last } => match last {
            Progress::Succeeded => " (kept)",
            Progress::Refused(_) => " (refused)",
            Progress::Failed(_) => " (failed)",
            Progress::RolledBack(_) => " (rolled back)",
            _ => " (given up)",
        },
        _ => "",
    }
}

/// Events of each arrow, by where it begins and ends.
type Arrows = BTreeMap<(&'static str, &'static str), BTreeSet<String>>;

fn explore() -> (Arrows, usize) {
    let mut arrows = Arrows::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut open = VecDeque::from([State::new(7)]);
    while let Some(state) = open.pop_front() {
        for (label, event) in events(&state) {
            // Far enough on for every retry.
            let (next, _) = step(state.clone(), event, 3_600_000);
            let (from, to) = (&model_of(&state).phase, &model_of(&next).phase);
            let is_news = name(from) != name(to);
            let label = format!("{label}{}", end(from, to));
            if is_news {
                arrows
                    .entry((name(from), name(to)))
                    .or_default()
                    .insert(label);
            }
            let mut found = plain(next);
            let mut none = Phase::Idle {
                last: Progress::Idle,
            };
            let phase = found.models.values_mut().next();
            let phase = phase.map_or(&mut none, |model| &mut model.phase);
            // What takes many steps to reach.
            if let Phase::Probation {
                loading_ms,
                activated: false,
                ..
            } = phase
                && *loading_ms > 0
            {
                *loading_ms = 599_999;
            }
            if let Phase::Receiving { attempts, .. } = phase
                && *attempts > 0
            {
                *attempts = 19;
            }
            if seen.insert(serde_json::to_string(&found).unwrap()) {
                open.push_back(found);
            }
        }
    }
    (arrows, seen.len())
}

fn draw(arrows: &Arrows) -> String {
    let mut lines = vec![
        "```mermaid".to_owned(),
        "stateDiagram-v2".to_owned(),
        "    [*] --> Idle".to_owned(),
    ];
    for ((from, to), labels) in arrows {
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        lines.push(format!("    {from} --> {to}: {}", labels.join(", ")));
    }
    lines.push("```\n".to_owned());
    lines.join("\n")
}

#[test]
fn the_drawing_is_what_the_code_does() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/update-states.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (drawn, after) = rest.split_once(END).unwrap();
    let (arrows, states) = explore();
    assert!(states > 1_000, "only {states} states were reached");
    let now = draw(&arrows);
    if std::env::var_os("DUNLIN_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{now}{END}{after}")).unwrap();
    } else {
        assert_eq!(
            drawn, now,
            "docs/update-states.md is not what the code does"
        );
    }
}

#[test]
fn nothing_serves_unless_it_passed_a_trial_and_nobody_waits_for_ever() {
    let (arrows, _) = explore();
    let into = |to: &str| -> BTreeSet<&str> {
        arrows
            .keys()
            .filter(|(_, t)| *t == to)
            .map(|(f, _)| *f)
            .collect()
    };
    assert_eq!(into("Probation"), BTreeSet::from(["Waiting"]));
    assert_eq!(into("Waiting"), BTreeSet::from(["Shadow", "Trial"]));
    assert_eq!(into("Shadow"), BTreeSet::from(["Trial"]));
    assert_eq!(into("Trial"), BTreeSet::from(["Receiving"]));
    for from in ["Receiving", "Trial", "Shadow", "Waiting", "Probation"] {
        assert!(arrows.contains_key(&(from, "Idle")), "{from} has no end");
    }
}
