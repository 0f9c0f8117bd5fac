//! Configuration: a TOML file in which every bad key is reported at once.
//!
//! Three types: [`Fragment`] (a file as written) → `Inputs` (every key with its default) →
//! [`Settings`] (checked). Only settings travel.

mod capture;
mod inference;
mod pipelines;

use crate::device::window::{WindowError, Windows};
use crate::files;
use crate::http::proxy::ProxyUrl;
use crate::pipeline::PipelineSettings;
pub use capture::CaptureSettings;
use dunlin_protocol::id::DeviceId;
pub use inference::InferenceSettings;
use jiff::tz::TimeZone;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const FILE_MAX_BYTES: u64 = 64 * 1024;
/// Most maintenance windows.
const WINDOWS_MAX: usize = 32;
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Path of the key, such as `inference.window_ms`; empty for the file as a whole.
    pub key: String,
    /// What belongs there.
    pub expected: String,
    /// What is there.
    pub got: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "expected {}, got {}", self.expected, self.got)
    }
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file.
    pub file: PathBuf,
    /// At least one, wrong types first, then bad values, unknown keys last.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.errors.len();
        let plural = if n == 1 { "" } else { "s" };
        write!(f, "{}: {n} error{plural}", self.file.display())?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// How telemetry is kept until the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Most space the buffer takes on disk, 1 to 65,536 MiB.
    pub max_mib: u64,
    /// Longest time that events wait for the server, 1 to 3,650 days.
    pub event_days: u64,
    /// As long, drift windows.
    pub sketch_days: u64,
    /// As long, metrics.
    pub metrics_days: u64,
    /// As long, log lines.
    pub log_days: u64,
    /// Most KiB a second of what was buffered before a connection began; 0: no limit.
    pub drain_kib_s: u64,
    /// Time between two reports of metrics, 100 to 86,400,000 ms.
    pub metrics_every_ms: u64,
}

/// What updates are fetched over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTPS alone.
    Https,
    /// MQTT alone, block by block.
    Mqtt,
    /// HTTPS, and MQTT once HTTPS could not be reached.
    Auto,
}

/// How updates are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateSettings {
    /// What they are fetched over.
    pub transport: Transport,
    /// The HTTP proxy; without it the environment's (`HTTPS_PROXY`, `NO_PROXY`) is asked.
    pub proxy: Option<ProxyUrl>,
    /// Most bandwidth taken, in KiB a second; 0: no limit.
    pub bandwidth_kib_s: u64,
    /// Longest time to connect, 100 to 600,000 ms.
    pub connect_timeout_ms: u64,
    /// Longest wait for an answer to begin, and for its next bytes, 100 to 600,000 ms.
    pub request_timeout_ms: u64,
    /// When versions that are ready may be activated.
    pub windows: Windows,
}

/// What the agent runs by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Folder of everything the agent keeps.
    pub state_dir: PathBuf,
    /// What this device is, as targets' hardware lists name it.
    pub hardware: String,
    /// The id to ask for at enrolment; the server chooses one otherwise.
    pub device: Option<DeviceId>,
    /// Inference.
    pub inference: InferenceSettings,
    /// Telemetry.
    pub telemetry: TelemetrySettings,
    /// Updates.
    pub update: UpdateSettings,
    /// Inputs that are kept.
    pub capture: CaptureSettings,
    /// Records that go through models without an application.
    pub pipelines: Vec<PipelineSettings>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
}

/// A configuration file as written: TOML, its keys not looked at.
#[derive(Debug, Clone)]
pub struct Fragment {
    file: PathBuf,
    table: Table,
}

/// Every key with its default, of the right type, its value not checked.
struct Inputs {
    state_dir: String,
    hardware: String,
    device: Option<String>,
    socket: Option<String>,
    listen: Option<String>,
    grpc_listen: Option<String>,
    socket_group: Option<String>,
    clients: Vec<(String, Vec<String>)>,
    models: Vec<inference::ModelInputs>,
    segments: Vec<(String, String)>,
    window_ms: i64,
    memory_limit_mib: i64,
    max_mib: i64,
    /// Of events, sketches, metrics and logs.
    days: [i64; 4],
    drain_kib_s: i64,
    metrics_every_ms: i64,
    transport: String,
    proxy: Option<String>,
    bandwidth_kib_s: i64,
    connect_timeout_ms: i64,
    request_timeout_ms: i64,
    window: Vec<String>,
    time_zone: String,
    capture: capture::Inputs,
    pipelines: Vec<pipelines::Inputs>,
    level: String,
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let whole = |expected: &str, got: String| ConfigErrors {
            file: path.to_owned(),
            errors: vec![ConfigError {
                key: String::new(),
                expected: expected.to_owned(),
                got,
            }],
        };
        let bytes = files::read_bounded(path, FILE_MAX_BYTES)
            .map_err(|e| whole("a readable file", e.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|e| whole("UTF-8 text", e.to_string()))?;
        Self::parse(&text, path)
    }

    /// Reads and checks a text; `file` is for messages.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        Self::from_fragment(Fragment::parse(text, file)?)
    }

    /// Takes every default, but for the folder.
    ///
    /// # Errors
    /// A folder whose path is too long for a socket in it.
    pub fn in_folder(state_dir: &Path) -> Result<Self, ConfigErrors> {
        let mut table = Table::new();
        let folder = state_dir.display().to_string();
        table.insert("state_dir".to_owned(), Value::String(folder));
        Self::from_fragment(Fragment {
            file: PathBuf::from("(defaults)"),
            table,
        })
    }

    fn from_fragment(fragment: Fragment) -> Result<Self, ConfigErrors> {
        let mut reader = Reader {
            table: fragment.table,
            errors: Vec::new(),
        };
        let inputs = Inputs::read(&mut reader);
        let settings = inputs.check(&mut reader.errors);
        reader.finish();
        if reader.errors.is_empty() {
            return Ok(settings);
        }
        Err(ConfigErrors {
            file: fragment.file,
            errors: reader.errors,
        })
    }
}

impl Fragment {
    fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        match text.parse::<Table>() {
            Ok(table) => Ok(Self {
                file: file.to_owned(),
                table,
            }),
            Err(e) => Err(ConfigErrors {
                file: file.to_owned(),
                errors: vec![ConfigError {
                    key: String::new(),
                    expected: "TOML".to_owned(),
                    got: e.to_string().trim_end().to_owned(),
                }],
            }),
        }
    }
}

impl Inputs {
    fn read(from: &mut Reader) -> Self {
        let text = |from: &mut Reader, key, default: &str| {
            from.text(key).unwrap_or_else(|| default.to_owned())
        };
        Self {
            state_dir: text(from, "state_dir", "/var/lib/dunlin-agent"),
            hardware: text(from, "hardware", "generic"),
            device: from.text("device"),
            socket: from.text("inference.socket"),
            listen: from.text("inference.listen"),
            grpc_listen: from.text("inference.grpc_listen"),
            socket_group: from.text("inference.socket_group"),
            clients: from.lists("inference.clients"),
            models: inference::read_models(from),
            segments: inference::texts_by_key(from, "inference.segments"),
            window_ms: from.number("inference.window_ms", 60_000),
            memory_limit_mib: from.number("inference.memory_limit_mib", 512),
            max_mib: from.number("telemetry.max_mib", 64),
            days: [
                from.number("telemetry.event_days", 90),
                from.number("telemetry.sketch_days", 90),
                from.number("telemetry.metrics_days", 30),
                from.number("telemetry.log_days", 7),
            ],
            drain_kib_s: from.number("telemetry.drain_kib_s", 256),
            metrics_every_ms: from.number("telemetry.metrics_every_ms", 60_000),
            transport: text(from, "update.transport", "auto"),
            proxy: from.secret_text("update.proxy"),
            bandwidth_kib_s: from.number("update.bandwidth_kib_s", 0),
            connect_timeout_ms: from.number("update.connect_timeout_ms", 10_000),
            request_timeout_ms: from.number("update.request_timeout_ms", 30_000),
            window: from.texts("update.window"),
            time_zone: text(from, "update.time_zone", "UTC"),
            capture: capture::read(from),
            pipelines: pipelines::read(from),
            level: text(from, "log.level", "info"),
        }
    }

    fn check(self, errors: &mut Vec<ConfigError>) -> Settings {
        let mut check = Check(errors);
        let state_dir = check.folder("state_dir", self.state_dir);
        let socket = match self.socket {
            Some(path) => PathBuf::from(path),
            None => state_dir.join("run/inference.sock"),
        };
        Settings {
            hardware: check.hardware(self.hardware),
            device: check.device(self.device),
            inference: InferenceSettings {
                socket: check.socket("inference.socket", socket),
                listen: check.listen(self.listen),
                grpc_listen: check.grpc_listen(self.grpc_listen),
                socket_group: self.socket_group,
                clients: check.clients(self.clients),
                models: check.models(self.models),
                segments: check.texts("inference.segments", self.segments),
                window_ms: check.range("inference.window_ms", self.window_ms, 100, 86_400_000),
                memory_limit_mib: check.range(
                    "inference.memory_limit_mib",
                    self.memory_limit_mib,
                    16,
                    1 << 20,
                ),
            },
            telemetry: check.telemetry(
                self.max_mib,
                self.days,
                self.drain_kib_s,
                self.metrics_every_ms,
            ),
            update: UpdateSettings {
                transport: check.transport(&self.transport),
                proxy: check.proxy(self.proxy),
                bandwidth_kib_s: check.range(
                    "update.bandwidth_kib_s",
                    self.bandwidth_kib_s,
                    0,
                    1 << 32,
                ),
                connect_timeout_ms: check.range(
                    "update.connect_timeout_ms",
                    self.connect_timeout_ms,
                    100,
                    600_000,
                ),
                request_timeout_ms: check.range(
                    "update.request_timeout_ms",
                    self.request_timeout_ms,
                    100,
                    600_000,
                ),
                windows: check.windows(&self.window, &self.time_zone),
            },
            capture: check.capture(self.capture),
            pipelines: pipelines::check(self.pipelines, &mut check),
            log_level: check.level(self.level),
            state_dir,
        }
    }
}

/// Takes known keys out of a table; what is left over is unknown.
struct Reader {
    table: Table,
    errors: Vec<ConfigError>,
}

impl Reader {
    fn take(&mut self, key: &str) -> Option<Value> {
        match key.split_once('.') {
            None => self.table.remove(key),
            Some((section, key)) => match self.table.get_mut(section)? {
                Value::Table(table) => table.remove(key),
                _ => None,
            },
        }
    }

    fn wrong(&mut self, key: &str, expected: &str, got: &Value) {
        self.errors.push(ConfigError {
            key: key.to_owned(),
            expected: expected.to_owned(),
            got: format!("{got} ({})", got.type_str()),
        });
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong(key, "a string", &other);
                None
            }
        }
    }

    /// As [`Self::text`], for what must not be shown.
    fn secret_text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.errors.push(ConfigError {
                    key: key.to_owned(),
                    expected: "a string".to_owned(),
                    got: format!("a {}", other.type_str()),
                });
                None
            }
        }
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) if items.iter().all(Value::is_str) => {
                let texts = items.iter().filter_map(Value::as_str);
                texts.map(str::to_owned).collect()
            }
            Some(other) => {
                self.wrong(key, "a list of strings", &other);
                Vec::new()
            }
        }
    }

    /// A section whose every key has a list of texts.
    fn lists(&mut self, key: &str) -> Vec<(String, Vec<String>)> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let Value::Table(table) = value else {
            self.wrong(key, "a section", &value);
            return Vec::new();
        };
        let mut lists = Vec::new();
        for (name, value) in table {
            match value {
                Value::Array(items) if items.iter().all(Value::is_str) => {
                    let texts = items.iter().filter_map(Value::as_str);
                    lists.push((name, texts.map(str::to_owned).collect()));
                }
                other => self.wrong(&format!("{key}.{name}"), "a list of strings", &other),
            }
        }
        lists
    }

    fn number(&mut self, key: &str, default: i64) -> i64 {
        match self.take(key) {
            None => default,
            Some(Value::Integer(n)) => n,
            Some(other) => {
                self.wrong(key, "a whole number", &other);
                default
            }
        }
    }

    fn finish(&mut self) {
        const SECTIONS: [&str; 5] = ["inference", "telemetry", "update", "capture", "log"];
        for (key, value) in std::mem::take(&mut self.table) {
            match value {
                Value::Table(inner) if SECTIONS.contains(&key.as_str()) => {
                    for (name, value) in inner {
                        self.unknown(format!("{key}.{name}"), &value);
                    }
                }
                other if SECTIONS.contains(&key.as_str()) => {
                    self.wrong(&key, "a section", &other);
                }
                other => self.unknown(key, &other),
            }
        }
    }

    fn unknown(&mut self, key: String, value: &Value) {
        self.errors.push(ConfigError {
            key,
            expected: "no such key (see the default file)".to_owned(),
            got: format!("a {}", value.type_str()),
        });
    }
}

struct Check<'a>(&'a mut Vec<ConfigError>);

impl Check<'_> {
    fn wrong(&mut self, key: &str, expected: impl Into<String>, got: impl Into<String>) {
        self.0.push(ConfigError {
            key: key.to_owned(),
            expected: expected.into(),
            got: got.into(),
        });
    }

    fn telemetry(
        &mut self,
        max_mib: i64,
        [event, sketch, metrics, log]: [i64; 4],
        drain_kib_s: i64,
        metrics_every_ms: i64,
    ) -> TelemetrySettings {
        let mut days = |key, value| self.range(key, value, 1, 3650);
        let event_days = days("telemetry.event_days", event);
        let sketch_days = days("telemetry.sketch_days", sketch);
        let metrics_days = days("telemetry.metrics_days", metrics);
        let log_days = days("telemetry.log_days", log);
        let every = "telemetry.metrics_every_ms";
        TelemetrySettings {
            max_mib: self.range("telemetry.max_mib", max_mib, 1, 65_536),
            event_days,
            sketch_days,
            metrics_days,
            log_days,
            drain_kib_s: self.range("telemetry.drain_kib_s", drain_kib_s, 0, 1 << 20),
            metrics_every_ms: self.range(every, metrics_every_ms, 100, 86_400_000),
        }
    }

    fn range(&mut self, key: &str, value: i64, min: u64, max: u64) -> u64 {
        self.between(key, value, min, max)
    }

    fn between<N>(&mut self, key: &str, value: i64, min: N, max: N) -> N
    where
        N: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        match N::try_from(value) {
            Ok(n) if min <= n && n <= max => n,
            _ => {
                self.wrong(key, format!("{min} to {max}"), value.to_string());
                min
            }
        }
    }

    fn folder(&mut self, key: &str, text: String) -> PathBuf {
        let path = PathBuf::from(&text);
        if !path.is_absolute() {
            self.wrong(key, "an absolute path", format!("{text:?}"));
        }
        path
    }

    fn hardware(&mut self, text: String) -> String {
        let allowed =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
        if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
            self.wrong(
                "hardware",
                "1 to 64 letters, digits, '-', '_', '.', ':', '/'",
                format!("{text:?}"),
            );
        }
        text
    }

    fn device(&mut self, text: Option<String>) -> Option<DeviceId> {
        match text?.parse() {
            Ok(id) => Some(id),
            Err(e) => {
                let e: dunlin_protocol::id::IdError = e;
                self.wrong("device", "a device id", e.to_string());
                None
            }
        }
    }

    fn transport(&mut self, text: &str) -> Transport {
        match text {
            "https" => Transport::Https,
            "mqtt" => Transport::Mqtt,
            "auto" => Transport::Auto,
            other => {
                let expected = "\"https\", \"mqtt\" or \"auto\"";
                self.wrong("update.transport", expected, format!("{other:?}"));
                Transport::Auto
            }
        }
    }

    /// The text may hold a password: it is not repeated.
    fn proxy(&mut self, text: Option<String>) -> Option<ProxyUrl> {
        match text?.parse() {
            Ok(url) => Some(url),
            Err(expected) => {
                self.wrong("update.proxy", expected, "another text (not shown)");
                None
            }
        }
    }

    fn windows(&mut self, texts: &[String], zone: &str) -> Windows {
        if texts.len() > WINDOWS_MAX {
            let got = texts.len().to_string();
            self.wrong("update.window", format!("at most {WINDOWS_MAX}"), got);
        }
        let mut windows = Vec::new();
        for text in texts.iter().take(WINDOWS_MAX) {
            match text.parse() {
                Ok(window) => windows.push(window),
                Err(e) => {
                    let e: WindowError = e;
                    self.wrong(
                        "update.window",
                        "days and times, such as \"Mon-Fri 02:00-04:30\"",
                        e.to_string(),
                    );
                }
            }
        }
        // A rule as in TZ needs no files on the device.
        match TimeZone::get(zone).or_else(|e| TimeZone::posix(zone).map_err(|_| e)) {
            Ok(zone) => Windows::new(windows, zone),
            Err(e) => {
                self.wrong(
                    "update.time_zone",
                    "UTC, a name such as Europe/Berlin (from the system's zoneinfo), or a rule such as CET-1CEST,M3.5.0,M10.5.0/3",
                    format!("{zone:?}: {e}"),
                );
                Windows::default()
            }
        }
    }

    fn level(&mut self, text: String) -> String {
        if !LEVELS.contains(&text.as_str()) {
            self.wrong("log.level", LEVELS.join(", "), format!("{text:?}"));
        }
        text
    }
}

/// A configuration file with every key at its default, explained.
#[must_use]
pub fn agent_default_toml() -> String {
    include_str!("config/default.toml").to_owned()
}

#[cfg(test)]
mod tests;
