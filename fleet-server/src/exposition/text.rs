//! The text format, version 0.0.4: written for the fleet's totals, read as the recorder writes it.

use super::{Family, Kind, Labels, Sample, Value, classic, estimated_sum};
use std::fmt::Write as _;

/// Appends families.
pub(super) fn write(out: &mut String, families: &[Family]) {
    for family in families {
        let name = &family.name;
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Summary => "summary",
            Kind::Untyped => "untyped",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(out, "# HELP {name} {}", family.help);
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for sample in &family.samples {
            match &sample.value {
                Value::Number(value) => line(out, name, &sample.labels, None, &value.to_string()),
                Value::Latency(latency) => {
                    let bucket = format!("{name}_bucket");
                    for (end, count) in classic(latency) {
                        let count = count.to_string();
                        line(out, &bucket, &sample.labels, Some(&end.to_string()), &count);
                    }
                    let total = latency.total().to_string();
                    line(out, &bucket, &sample.labels, Some("+Inf"), &total);
                    let sum = estimated_sum(latency).to_string();
                    line(out, &format!("{name}_sum"), &sample.labels, None, &sum);
                    line(out, &format!("{name}_count"), &sample.labels, None, &total);
                }
                // Only the recorder has summaries, and renders them itself.
                Value::Summary { .. } => {}
            }
        }
    }
}

fn line(out: &mut String, name: &str, labels: &Labels, end: Option<&str>, value: &str) {
    let own = labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let all = own.chain(end.map(|end| ("le", end)));
    let all: Vec<String> = all
        .map(|(key, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{key}=\"{}\"", value.replace('\n', "\\n"))
        })
        .collect();
    let _ = writeln!(out, "{name}{{{}}} {value}", all.join(","));
}

/// Reads what the recorder rendered: counters, gauges and summaries. A line that is none of them is left
/// out.
pub(super) fn parse(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# HELP ") {
            let (name, help) = head.split_once(' ').unwrap_or((head, ""));
            family(&mut families, name).help = unescaped(help);
        } else if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap_or((head, ""));
            family(&mut families, name).kind = match kind {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "summary" => Kind::Summary,
                _ => Kind::Untyped,
            };
        } else if let Some((name, labels, value)) = read(line)
            && let Some(family) = families.last_mut()
        {
            take(family, name, labels, value);
        }
    }
    families
}

/// The family of a name, which a comment before its samples tells.
fn family<'a>(families: &'a mut Vec<Family>, name: &str) -> &'a mut Family {
    if families.last().is_none_or(|family| family.name != name) {
        families.push(Family {
            name: name.to_owned(),
            help: String::new(),
            kind: Kind::Untyped,
            samples: Vec::new(),
        });
    }
    let last = families.len() - 1;
    &mut families[last]
}

fn take(family: &mut Family, name: &str, mut labels: Labels, value: f64) {
    if family.kind != Kind::Summary {
        if name == family.name {
            let value = Value::Number(value);
            family.samples.push(Sample { labels, value });
        }
        return;
    }
    let at = labels.iter().position(|(key, _)| key == "quantile");
    let quantile = at.and_then(|at| labels.remove(at).1.parse().ok());
    let found = family.samples.iter().position(|s| s.labels == labels);
    let at = found.unwrap_or_else(|| {
        family.samples.push(Sample {
            labels,
            value: Value::Summary {
                quantiles: Vec::new(),
                sum: 0.0,
                count: 0,
            },
        });
        family.samples.len() - 1
    });
    if let Some(Sample {
        value: Value::Summary {
            quantiles,
            sum,
            count,
        },
        ..
    }) = family.samples.get_mut(at)
    {
        match (quantile, name.strip_prefix(family.name.as_str())) {
            (Some(quantile), Some("")) => quantiles.push((quantile, value)),
            (None, Some("_sum")) => *sum = value,
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count"
            )]
            (None, Some("_count")) => *count = value as u64,
            _ => {}
        }
    }
}

/// A sample's name, labels and value.
fn read(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let Some(mut rest) = rest.strip_prefix('{') else {
        return Some((name, Vec::new(), rest.trim().parse().ok()?));
    };
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some((name, labels, value.trim().parse().ok()?));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = after.find(|c: char| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        })?;
        let (value, after) = after.split_at(end);
        labels.push((key.to_owned(), unescaped(value)));
        rest = after.strip_prefix('"')?;
    }
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            (c, false) => out.push(c),
        }
    }
    out
}
