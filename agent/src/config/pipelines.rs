//! `[[pipelines]]`: four lines each, and some that may be added.

use super::{Check, ConfigError, Reader};
use crate::pipeline::place::{self, Sink, Source};
use crate::pipeline::queue::WhenFull;
use crate::pipeline::record::Format;
use crate::pipeline::settings::{
    After, PIPELINES_MAX, PipelineSettings, QUEUE_DEFAULT, QUEUE_MAX, TIMEOUT_DEFAULT_MS, is_name,
};
use dunlin_protocol::id::Family;
use std::path::PathBuf;
use toml::Value;

/// One table as written.
pub(super) struct Inputs {
    name: Option<String>,
    source: Option<String>,
    model: Option<String>,
    sink: Option<String>,
    when_full: String,
    format: Option<String>,
    queue: i64,
    timeout_ms: i64,
    after: String,
    parameters: Vec<(String, String)>,
    credentials: Option<String>,
}

pub(super) fn read(from: &mut Reader) -> Vec<Inputs> {
    let tables = match from.take("pipelines") {
        None => return Vec::new(),
        Some(Value::Array(items)) => items,
        Some(other) => {
            from.wrong("pipelines", "tables ([[pipelines]])", &other);
            return Vec::new();
        }
    };
    let mut all = Vec::new();
    for (at, table) in tables.into_iter().enumerate() {
        let key = |name: &str| format!("pipelines[{at}].{name}");
        let table = match table {
            Value::Table(table) => table,
            other => {
                from.wrong(&format!("pipelines[{at}]"), "a table", &other);
                continue;
            }
        };
        let mut one = Reader {
            table,
            errors: Vec::new(),
        };
        all.push(Inputs {
            name: one.text("name"),
            // They may hold a password that belongs elsewhere.
            source: one.secret_text("source"),
            model: one.text("model"),
            sink: one.secret_text("sink"),
            when_full: one.text("when_full").unwrap_or_else(|| "block".to_owned()),
            format: one.text("format"),
            queue: one.number("queue", i64::try_from(QUEUE_DEFAULT).unwrap_or(i64::MAX)),
            timeout_ms: one.number(
                "timeout_ms",
                i64::try_from(TIMEOUT_DEFAULT_MS).unwrap_or(i64::MAX),
            ),
            after: one.text("after").unwrap_or_else(|| "move".to_owned()),
            parameters: super::inference::texts_by_key(&mut one, "parameters"),
            credentials: one.text("credentials"),
        });
        for (name, value) in std::mem::take(&mut one.table) {
            one.unknown(name, &value);
        }
        from.errors
            .extend(one.errors.into_iter().map(|e| ConfigError {
                key: key(&e.key),
                ..e
            }));
    }
    all
}

pub(super) fn check(all: Vec<Inputs>, check: &mut Check<'_>) -> Vec<PipelineSettings> {
    if all.len() > PIPELINES_MAX {
        let expected = format!("at most {PIPELINES_MAX}");
        check.wrong("pipelines", expected, all.len().to_string());
    }
    let mut settings: Vec<PipelineSettings> = Vec::new();
    for (at, inputs) in all.into_iter().enumerate().take(PIPELINES_MAX) {
        let mut errors = Vec::new();
        let one = inputs.check(&mut Check(&mut errors), &settings);
        check.0.extend(errors.into_iter().map(|e| ConfigError {
            key: format!("pipelines[{at}].{}", e.key),
            ..e
        }));
        settings.extend(one);
    }
    settings
}

impl Inputs {
    fn check(self, check: &mut Check<'_>, others: &[PipelineSettings]) -> Option<PipelineSettings> {
        let source = read_place(check, "source", self.source, Source::parse);
        let sink = read_place(check, "sink", self.sink, Sink::parse);
        if source == Some(Source::Stdin) || sink == Some(Sink::Stdout) {
            let key = if source == Some(Source::Stdin) {
                "source"
            } else {
                "sink"
            };
            let expected = "mqtt://, folder: or file: (a service has no standard input: see `dunlin-agent pipe`)";
            check.wrong(key, expected, "stdin: or stdout:");
        }
        if let (Some(Source::Mqtt(from)), Some(Sink::Mqtt(to))) = (&source, &sink)
            && (&from.host, from.port) == (&to.host, to.port)
            && place::matches(&from.topic, &to.topic)
        {
            let expected = format!("a topic that the source {:?} does not hear", from.topic);
            check.wrong("sink", expected, format!("{:?}", to.topic));
        }
        let model = model(check, self.model);
        let queue = check.range("queue", self.queue, 1, QUEUE_MAX as u64);
        let timeout_ms = check.range("timeout_ms", self.timeout_ms, 100, 600_000);
        let when_full = one_of(
            check,
            "when_full",
            &self.when_full,
            "\"block\", \"drop_oldest\" or \"drop_newest\"",
            WhenFull::parse,
        );
        let after = one_of(
            check,
            "after",
            &self.after,
            "\"move\", \"delete\" or \"keep\"",
            After::parse,
        );
        let format = self.format.map(|text| {
            one_of(
                check,
                "format",
                &text,
                "\"json\", \"csv\", \"raw\" or \"bytes\"",
                Format::parse,
            )
        });
        let credentials = self.credentials.map(PathBuf::from);
        if let Some(path) = credentials.as_deref().filter(|path| !path.is_absolute()) {
            check.wrong("credentials", "an absolute path", format!("{path:?}"));
        }
        let name = name(check, self.name, model.as_deref(), others)?;
        Some(PipelineSettings {
            name,
            source: source?,
            model: model?,
            sink: sink?,
            when_full: when_full?,
            format: match format {
                None => None,
                Some(format) => Some(format?),
            },
            queue: usize::try_from(queue).unwrap_or(QUEUE_MAX),
            timeout_ms,
            after: after?,
            parameters: check.texts("parameters", self.parameters),
            credentials,
        })
    }
}

fn read_place<T>(
    check: &mut Check<'_>,
    key: &str,
    text: Option<String>,
    parse: impl Fn(&str) -> Result<T, place::PlaceError>,
) -> Option<T> {
    let Some(text) = text else {
        check.wrong(key, "a text", "nothing");
        return None;
    };
    match parse(&text) {
        Ok(place) => Some(place),
        Err(e) => {
            let told = e.to_string();
            let (expected, got) = told.split_once(", got ").unwrap_or((&told, "another text"));
            let expected = expected.strip_prefix("expected ").unwrap_or(expected);
            check.wrong(key, expected, got);
            None
        }
    }
}

fn model(check: &mut Check<'_>, text: Option<String>) -> Option<String> {
    let Some(text) = text else {
        check.wrong("model", "a model family", "nothing");
        return None;
    };
    match text.parse::<Family>() {
        Ok(family) => Some(family.to_string()),
        Err(e) => {
            check.wrong("model", "a model family", e.to_string());
            None
        }
    }
}

fn one_of<T>(
    check: &mut Check<'_>,
    key: &str,
    text: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let parsed = parse(text);
    if parsed.is_none() {
        check.wrong(key, expected, format!("{text:?}"));
    }
    parsed
}

/// The model's name, unless there is one: metrics are told apart by it.
fn name(
    check: &mut Check<'_>,
    given: Option<String>,
    model: Option<&str>,
    others: &[PipelineSettings],
) -> Option<String> {
    let name = match (given, model) {
        (Some(name), _) => name,
        (None, Some(model)) => model.to_owned(),
        (None, None) => return None,
    };
    if !is_name(&name) {
        let expected = "1 to 32 of a-z, 0-9, '-', '_' (default: the model's name)";
        check.wrong("name", expected, format!("{name:?}"));
        return None;
    }
    if others.iter().any(|other| other.name == name) {
        let expected = "a name of its own (default: the model's name)";
        check.wrong("name", expected, format!("{name:?} again"));
        return None;
    }
    Some(name)
}
