//! `dunlin drift`.

use crate::api::items;
use crate::args::DriftArgs;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table::{self, Table};
use dunlin_protocol::id::{Family, RolloutId};
use dunlin_server::drift::query::{BinScores, Drift};
use dunlin_server::drift::statistics::{Score, Status};

/// `dunlin drift`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &DriftArgs) -> Result<Exit, Failure> {
    let family: Family = args.family.parse().map_err(Failure::usage)?;
    let mut query = vec![("family", family.to_string())];
    query.extend(args.version.map(|v| ("version", v.to_string())));
    query.extend(args.segment.clone().map(|s| ("segment", s)));
    if let Some(rollout) = &args.rollout {
        let rollout: RolloutId = rollout.parse().map_err(Failure::usage)?;
        query.push(("rollout", rollout.to_string()));
    }
    let cohorts = cohorts(args)?;
    let session = Session::open(&args.shared)?;
    if let Some((signal, out)) = args.plot.as_ref().zip(args.out.as_ref()) {
        query.push(("signal", signal.clone()));
        query.extend(
            cohorts
                .into_iter()
                .map(|cohort| ("cohort", cohort.to_owned())),
        );
        return draw(&session, &query, out).await;
    }
    let mut answers = Vec::new();
    for cohort in cohorts {
        let mut query = query.clone();
        query.push(("cohort", cohort.to_owned()));
        answers.extend(items(session.client.drift(&query).await?, "drift"));
    }
    if session.json {
        table::print_json(&answers);
        return Ok(Exit::Done);
    }
    let list = answers.into_iter().map(serde_json::from_value);
    let list: Vec<Drift> = list
        .collect::<Result<_, _>>()
        .map_err(|e| Failure::new(format!("the server's answer is not understood: {e}")))?;
    if list.is_empty() {
        table::print_line("no inferences were reported yet");
    }
    for drift in &list {
        let shown = Shown {
            all: args.all,
            scores: args.scores,
        };
        table::print(&show(drift, shown));
    }
    Ok(Exit::Done)
}

/// Whose windows are asked for, one question each.
fn cohorts(args: &DriftArgs) -> Result<Vec<&str>, Failure> {
    match (&args.cohort, &args.rollout, &args.plot) {
        (Some(cohort), _, _) => Ok(vec![cohort]),
        (None, None, _) => Ok(vec!["all"]),
        (None, Some(_), None) => Ok(vec!["canary", "control"]),
        (None, Some(_), Some(_)) => Err(Failure::usage(
            "--plot draws one cohort: expected --cohort canary or --cohort control with --rollout",
        )),
    }
}

async fn draw(
    session: &Session,
    query: &[(&str, String)],
    out: &std::path::Path,
) -> Result<Exit, Failure> {
    let picture = session.client.drift_plot(query).await?;
    files::write_whole(out, &picture)?;
    if session.json {
        table::print_json(&serde_json::json!({"out": out, "bytes": picture.len()}));
    } else {
        table::print_line(&format!("{}", out.display()));
    }
    Ok(Exit::Done)
}

/// How much of the scores is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// Quiet features too.
    pub all: bool,
    /// Every score of what is shown, not only those that decide.
    pub scores: bool,
}

/// One version in one cohort as text.
#[must_use]
pub fn show(drift: &Drift, shown: Shown) -> String {
    let mean = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.4}"));
    let ms = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{:.2} ms", us / 1000.0));
    let segment = drift.segment.as_ref();
    let segment = segment.map_or_else(String::new, |s| format!(" · {s}"));
    let mut text = format!(
        "{} version {} · {}{} · {}\n{} inferences, {} errors, {} devices; confidence {}, entropy {}; latency p50 {}, p99 {}\n",
        drift.family,
        drift.version,
        drift.cohort,
        segment,
        status_text(drift.status),
        drift.inferences,
        drift.errors,
        drift.devices,
        mean(drift.confidence_mean),
        mean(drift.entropy_mean),
        ms(drift.latency.p50_us),
        ms(drift.latency.p99_us),
    );
    if drift.refused > 0 {
        text.push_str(&format!(
            "{} requests did not fit the manifest and were refused\n",
            drift.refused
        ));
    }
    if !drift.segments.is_empty() {
        let named = drift.segments.iter().map(|(name, n)| format!("{name} {n}"));
        text.push_str(&format!(
            "inferences by segment: {}\n",
            named.collect::<Vec<_>>().join(", ")
        ));
    }
    if let Some(note) = &drift.note {
        text.push_str(&format!("{note}\n"));
    }
    for (reason, windows) in &drift.left_out {
        text.push_str(&format!("{windows} windows left out: {reason}\n"));
    }
    text.push_str(&isolated_lines(drift));
    text.push_str(&new_value_lines(drift));
    if let Some(accuracy) = &drift.estimated_accuracy {
        text.push_str(&format!(
            "accuracy {:.4} expected by the calibration, {:.4} on the reference; a change of what is true for the same input is not seen\n",
            accuracy.accuracy, accuracy.reference
        ));
    }
    let (rows, hidden) = score_rows(drift, shown);
    if !rows.is_empty() {
        text.push_str(&rows.to_text());
    }
    if hidden > 0 {
        text.push_str(&format!(
            "{hidden} features without alarm (--all shows them)\n"
        ));
    }
    text.push('\n');
    text
}

/// One row a score, and how many were left out because they are quiet.
fn score_rows(drift: &Drift, shown: Shown) -> (Table, usize) {
    let mut rows = Table::new(&[
        "metric",
        "score",
        "n>",
        "value>",
        "bound>",
        "threshold>",
        "status",
    ]);
    let mut hidden = 0_usize;
    let mut add = |name: &str, score_name: &str, score: Option<Score>, is_shown: bool| {
        let Some(score) = score else {
            return;
        };
        if !is_shown && score.status != Status::Alarm {
            hidden += 1;
            return;
        }
        rows.row([
            name.to_owned(),
            score_name.to_owned(),
            score.n_cur.to_string(),
            format!("{:.4}", score.value),
            format!("{:.4}", score.bound),
            format!("{:.4}", score.threshold),
            status_text(score.status).to_owned(),
        ]);
    };
    if let Some(accuracy) = &drift.estimated_accuracy {
        add("estimated accuracy", "fall", Some(accuracy.fall), true);
    }
    if let Some(mix) = &drift.output_mix {
        add("output mix", "PSI", mix.scores.psi, true);
        add(
            "output mix",
            "total variation",
            mix.scores.total_variation,
            true,
        );
        let new = mix.out_of_range.map(|range| range.score);
        add("output mix", "never seen", new, true);
        for (name, score) in others(&mix.scores).into_iter().filter(|_| shown.scores) {
            add("output mix", name, score, true);
        }
    }
    let outputs = drift.confidence.iter().chain(&drift.entropy);
    let metrics = outputs.map(|metric| (metric, true));
    let features = drift.features.iter().map(|feature| (feature, shown.all));
    for (column, is_shown) in metrics.chain(features) {
        let psi = column.scores.psi;
        let range = column.out_of_range.map(|range| range.score);
        let mut deciding = psi.iter().chain(&range);
        let is_shown = is_shown || deciding.any(|score| score.status == Status::Alarm);
        add(&column.name, "PSI", psi, is_shown);
        if is_shown {
            add(&column.name, "out of range", range, true);
        }
        if shown.scores && is_shown {
            let ks = column.kolmogorov_smirnov.map(|ks| ks.score);
            let wasserstein = column.wasserstein.map(|wasserstein| wasserstein.score);
            let total_variation = column.scores.total_variation;
            let ordered = [
                ("total variation", total_variation),
                ("Kolmogorov-Smirnov, at least", ks),
                ("Wasserstein-1, at least", wasserstein),
            ];
            for (name, score) in others(&column.scores).into_iter().chain(ordered) {
                add(&column.name, name, score, true);
            }
        }
    }
    (rows, hidden)
}

/// What the PSI and the total variation are published beside.
fn others(scores: &BinScores) -> [(&'static str, Option<Score>); 4] {
    [
        ("Jensen-Shannon, bits", scores.jensen_shannon),
        ("Hellinger", scores.hellinger),
        ("L-infinity", scores.l_infinity),
        ("chi-squared", scores.chi_squared.map(|chi| chi.score)),
    ]
}

/// What was kept out of the scores, a line each.
fn isolated_lines(drift: &Drift) -> String {
    let mut text = String::new();
    let outputs = drift.confidence.iter().chain(&drift.entropy);
    for column in outputs.chain(&drift.features) {
        let isolated = column.isolated;
        for (windows, what) in [
            (isolated.unusable_windows, "NaN, infinite or missing"),
            (isolated.constant_windows, "all one value"),
        ] {
            if windows > 0 {
                text.push_str(&format!(
                    "{}: {windows} windows kept out of its scores, {what} ({} devices, {})\n",
                    column.name,
                    isolated.devices,
                    status_text(isolated.status),
                ));
            }
        }
    }
    if let Some(unseen) = drift.output_mix.as_ref().map(|mix| mix.unseen)
        && unseen > 0
    {
        text.push_str(&format!(
            "{unseen} answers of classes that the reference has none of\n"
        ));
    }
    text
}

/// How many different values the categories of a feature do not know, a line each.
fn new_value_lines(drift: &Drift) -> String {
    let some = drift.features.iter().filter_map(|feature| {
        let new = feature.new_values.filter(|new| new.values > 0)?;
        let part = match new.values < feature.outside {
            true => format!("{} of the {}", new.values, feature.outside),
            false => format!("the {}", new.values),
        };
        Some(format!(
            "{}: about {:.0} different new values (standard error {:.1}) among {part} that the reference does not name\n",
            feature.name, new.distinct, new.standard_error
        ))
    });
    some.collect()
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::Quiet => "quiet",
        Status::Alarm => "ALARM",
        Status::Insufficient => "insufficient",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rollouts_cohorts_are_asked_for_one_or_both() {
        use clap::Parser as _;
        let asked = |line: &str| {
            let parsed = crate::args::Cli::try_parse_from(line.split(' ')).unwrap();
            let crate::args::Command::Drift(args) = parsed.command else {
                panic!("{line}");
            };
            let of = cohorts(&args).map(|list| list.join(" "));
            of.map_err(|failure| failure.exit)
        };
        let both = Ok("canary control".to_owned());
        assert_eq!(asked("dunlin drift digits --rollout ro-1"), both);
        let one = Ok("canary".to_owned());
        let line = "dunlin drift digits --cohort canary";
        assert_eq!(asked(line), one);
        assert_eq!(asked(&format!("{line} --rollout ro-1")), one);
        assert_eq!(asked(&format!("{line} --plot a --out a.svg")), one);
        assert_eq!(asked("dunlin drift digits"), Ok("all".to_owned()));
        let which = asked("dunlin drift digits --rollout ro-1 --plot a --out a.svg");
        assert_eq!(which, Err(Exit::Usage));
    }

    #[test]
    fn every_score_comes_with_n_bound_and_threshold() {
        let score = |value: f64, status: &str| json!({"value": value, "n_ref": 1000, "n_cur": 500, "bound": 0.05, "threshold": 0.1, "status": status});
        let histogram =
            |name: &str, psi| json!({"name": name, "psi": psi, "outside": 0, "unusable": 0});
        let mut broken = histogram("pixels[2]", score(0.3, "alarm"));
        broken["hellinger"] = score(0.2, "alarm");
        let mut species = histogram("species", score(0.02, "quiet"));
        species["outside"] = json!(500);
        species["new_values"] = json!({"distinct": 122.7, "standard_error": 3.99, "values": 400});
        let mut leaving = histogram("pixels[3]", score(0.02, "quiet"));
        leaving["out_of_range"] = json!({"score": score(0.07, "alarm"), "lower": 0.06, "allowed": 0.002, "p_value": 1e-9});
        broken["isolated"] = json!({"unusable_windows": 0, "constant_windows": 3, "devices": 2, "values": 90, "status": "alarm"});
        let drift: Drift = serde_json::from_value(json!({
            "family": "digits", "version": 2, "cohort": "all", "devices": 3, "windows": 5, "left_out": {"other bins": 1},
            "from_ms": 0, "until_ms": 1, "inferences": 500, "errors": 0, "confidence_mean": 0.9, "entropy_mean": null,
            "latency": {"p50_us": 100.0, "p90_us": 200.0, "p99_us": 300.0}, "status": "alarm", "note": null,
            "output_mix": {"classes": ["0", "1"], "reference": [1, 2], "current": [2, 3], "psi": score(0.02, "quiet"),
                "total_variation": null},
            "confidence": histogram("confidence", score(0.4, "alarm")), "entropy": null,
            "features": [histogram("pixels[1]", score(0.01, "quiet")), broken, leaving, species],
        }))
        .unwrap();
        let text = show(&drift, Shown::default());
        assert!(
            text.contains("pixels[2]") && !text.contains("pixels[1]"),
            "{text}"
        );
        assert!(text.contains("0.3000  0.0500     0.1000  ALARM"), "{text}");
        let line = text.lines().find(|line| line.contains("out of range"));
        let line = line.unwrap();
        assert!(
            line.starts_with("pixels[3]") && line.ends_with("ALARM"),
            "{text}"
        );
        assert!(text.contains("2 features without alarm"), "{text}");
        let new = "species: about 123 different new values (standard error 4.0) among 400 of the 500 that the reference does not name";
        assert!(text.contains(new), "{text}");
        assert!(text.contains("1 windows left out: other bins"), "{text}");
        let all = Shown {
            all: true,
            scores: true,
        };
        let text = show(&drift, all);
        assert!(
            text.contains("pixels[1]") && text.contains("Hellinger"),
            "{text}"
        );
        assert!(
            text.contains(
                "pixels[2]: 3 windows kept out of its scores, all one value (2 devices, ALARM)"
            ),
            "{text}"
        );
    }
}
