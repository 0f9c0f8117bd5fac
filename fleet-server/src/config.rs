//! Configuration: a TOML file, checked as a whole so that every bad key is reported at once.
//! Only [`Settings`] travels further.

mod captures;
mod telemetry;

pub use captures::CaptureSettings;
use dunlin_protocol::id::FleetId;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
pub use telemetry::TelemetrySettings;
use toml::{Table, Value};

/// Largest configuration file, in bytes.
pub const CONFIG_MAX_BYTES: usize = 1 << 20;
const DAY_S: u32 = 24 * 3600;

/// Everything the server is told before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The fleet it serves.
    pub fleet: FleetId,
    /// Folder of everything it keeps.
    pub state_dir: PathBuf,
    /// The admin API.
    pub admin: AdminSettings,
    /// The devices' listener: enrolment and downloads.
    pub devices: DeviceSettings,
    /// The broker.
    pub mqtt: MqttSettings,
    /// Certificates of devices.
    pub enrolment: EnrolmentSettings,
    /// Names and addresses that the server's certificate carries.
    pub names: Vec<String>,
    /// Time between two looks of the rollout planner, in milliseconds.
    pub rollout_tick_ms: u64,
    /// Time between two looks at the alert rules, in milliseconds.
    pub alerts_tick_ms: u64,
    /// How long telemetry is kept, and how finely.
    pub telemetry: TelemetrySettings,
    /// Sealed samples of devices.
    pub captures: CaptureSettings,
    /// Most segments in one database transaction.
    pub ingest_batch_max: usize,
    /// Longest wait for a transaction to fill, in milliseconds.
    pub ingest_batch_wait_ms: u64,
}

/// The admin API's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether TLS is spoken; only loopback may do without.
    pub tls: bool,
}

/// The devices' HTTPS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Base URL that devices are told; `None`: the first of the names and the port listened on.
    pub public_url: Option<String>,
}

/// Certificates of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnrolmentSettings {
    /// Life of a device's certificate, in seconds.
    pub certificate_life_s: u32,
    /// How long after its end a device may recover its certificate by itself, in days; 0: never.
    pub recover_expired_days: u32,
}

impl EnrolmentSettings {
    /// How many certificates one device may be given in an hour: room for attempts whose answers are
    /// lost, and for lives of seconds in trials.
    #[must_use]
    pub fn certificates_an_hour_max(&self) -> u32 {
        20 + 4 * (3600 / self.certificate_life_s.max(1))
    }
}

impl Default for EnrolmentSettings {
    fn default() -> Self {
        Self {
            certificate_life_s: 365 * DAY_S,
            recover_expired_days: 365,
        }
    }
}

/// The broker, and what devices are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttSettings {
    /// In this process, or elsewhere.
    pub mode: MqttMode,
    /// Host that devices are told; `None`: the first of the names (embedded) or the broker's host.
    pub public_host: Option<String>,
    /// Port that devices are told; `None`: the one listened on, or the broker's.
    pub public_port: Option<u16>,
    /// Where the generated mosquitto ACL is written.
    pub acl_file: Option<PathBuf>,
    /// Most that one device is given of the repository's files over MQTT, in KiB a second.
    pub device_blocks_kib_s: u64,
}

/// Where the broker runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MqttMode {
    /// In this process.
    Embedded {
        /// Where to listen; port 0 takes a free one.
        listen: SocketAddr,
    },
    /// Elsewhere.
    External {
        /// The broker's host.
        host: String,
        /// The broker's port.
        port: u16,
        /// CA of the broker's certificate, PEM; `None`: the fleet's.
        ca_file: Option<PathBuf>,
        /// Client certificate, PEM; `None`: the server's own.
        cert_file: Option<PathBuf>,
        /// Key of the client certificate, PEM; `None`: the server's own.
        key_file: Option<PathBuf>,
    },
}

/// Default of `mqtt.device_blocks_kib_s`.
const DEVICE_BLOCKS_KIB_S: u64 = 4096;

impl Settings {
    /// Everything on loopback at free ports with an embedded broker: for tests and demonstrations.
    #[must_use]
    pub fn loopback(fleet: FleetId, state_dir: PathBuf) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            fleet,
            state_dir,
            admin: AdminSettings {
                listen: free,
                tls: false,
            },
            devices: DeviceSettings {
                listen: free,
                public_url: None,
            },
            mqtt: MqttSettings {
                mode: MqttMode::Embedded { listen: free },
                public_host: None,
                public_port: None,
                acl_file: None,
                device_blocks_kib_s: DEVICE_BLOCKS_KIB_S,
            },
            enrolment: EnrolmentSettings::default(),
            names: default_names(),
            rollout_tick_ms: 1000,
            alerts_tick_ms: 30_000,
            telemetry: TelemetrySettings::default(),
            captures: CaptureSettings::default(),
            ingest_batch_max: 256,
            ingest_batch_wait_ms: 20,
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// Not readable, or every problem found in it.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let one = |key: &str, problem: String| ConfigError {
            file: name.clone(),
            problems: vec![Problem {
                key: key.to_owned(),
                problem,
            }],
        };
        let bytes = crate::files::read_bounded(path, CONFIG_MAX_BYTES)
            .map_err(|e| one("file", e.source.to_string()))?
            .ok_or_else(|| one("file", "there is no such file".to_owned()))?;
        let text = String::from_utf8(bytes).map_err(|e| one("file", e.to_string()))?;
        Self::parse(&text, overrides).map_err(|problems| ConfigError {
            file: name,
            problems,
        })
    }

    /// Reads a configuration's text.
    ///
    /// # Errors
    /// Every problem found.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, Vec<Problem>> {
        let mut table: Table = match text.parse() {
            Ok(table) => table,
            Err(e) => {
                return Err(vec![Problem {
                    key: "file".to_owned(),
                    problem: e.to_string(),
                }]);
            }
        };
        for (key, value) in &overrides.0 {
            set(&mut table, key, value.clone());
        }
        let mut problems = Vec::new();
        let read = read(&mut table, &mut problems);
        report_unknown("", &table, &mut problems);
        match read {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(problems),
        }
    }
}

/// Values from the command line that replace those of the file, by dotted key.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub Vec<(String, Value)>);

/// A key whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, dotted.
    pub key: String,
    /// What is wrong, what is expected.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// Everything wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// Every problem.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration {}:", self.file)?;
        self.problems.iter().try_for_each(|p| write!(f, "\n  {p}"))
    }
}

fn default_names() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn report_unknown(section: &str, table: &Table, problems: &mut Vec<Problem>) {
    for key in table.keys() {
        problems.push(Problem {
            key: format!("{section}{key}"),
            problem: "this key is unknown; is it misspelt, or in the wrong section?".to_owned(),
        });
    }
}

/// Takes keys out of one section; what is left at the end is unknown.
struct Section<'a> {
    name: &'static str,
    table: Table,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Section<'a> {
    fn take(root: &mut Table, name: &'static str, problems: &'a mut Vec<Problem>) -> Self {
        let table = match root.remove(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                problems.push(Problem {
                    key: name.to_owned(),
                    problem: format!("expected a section [{name}], got {}", other.type_str()),
                });
                Table::new()
            }
        };
        Self {
            name,
            table,
            problems,
        }
    }

    fn bad(&mut self, key: &str, problem: String) {
        let key = match self.name {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        };
        self.problems.push(Problem { key, problem });
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            other => {
                let got = other.type_str();
                self.bad(key, format!("expected a text that is not empty, got {got}"));
                None
            }
        }
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, key: &str, expected: &str) -> Option<T> {
        let text = self.text(key)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.bad(key, format!("expected {expected}, got {text:?}: {e}"));
                None
            }
        }
    }

    fn address(&mut self, key: &str, default: ([u8; 4], u16)) -> SocketAddr {
        self.parsed(key, "address:port such as 127.0.0.1:8080")
            .unwrap_or_else(|| SocketAddr::from(default))
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.table.remove(key) {
            None => default,
            Some(Value::Boolean(flag)) => flag,
            Some(other) => {
                self.bad(key, format!("expected true or false, got {other}"));
                default
            }
        }
    }

    fn number(&mut self, key: &str, least: i64, most: i64) -> Option<i64> {
        match self.table.remove(key)? {
            Value::Integer(n) if (least..=most).contains(&n) => Some(n),
            other => {
                self.bad(
                    key,
                    format!("expected a whole number from {least} to {most}, got {other}"),
                );
                None
            }
        }
    }

    fn unsigned<T: TryFrom<i64>>(&mut self, key: &str, least: i64, most: i64, default: T) -> T {
        let given = self.number(key, least, most);
        given.and_then(|n| T::try_from(n).ok()).unwrap_or(default)
    }

    fn finish(self) {
        let prefix = match self.name {
            "" => String::new(),
            name => format!("{name}."),
        };
        report_unknown(&prefix, &self.table, self.problems);
    }
}

fn read(root: &mut Table, problems: &mut Vec<Problem>) -> Option<Settings> {
    let admin = read_admin(Section::take(root, "admin", problems));
    let devices = read_devices(Section::take(root, "devices", problems));
    let mqtt = read_mqtt(Section::take(root, "mqtt", problems));
    let enrolment = read_enrolment(Section::take(root, "enrolment", problems));
    let mut rollout = Section::take(root, "rollout", problems);
    let rollout_tick_ms = rollout.unsigned("tick_ms", 50, 60_000, 1000);
    rollout.finish();
    let mut alerts = Section::take(root, "alerts", problems);
    let alerts_tick_ms = alerts.unsigned("tick_ms", 100, 3_600_000, 30_000);
    alerts.finish();
    let telemetry = telemetry::read(Section::take(root, "telemetry", problems));
    let captures = captures::read(Section::take(root, "capture", problems));
    let mut ingest = Section::take(root, "ingest", problems);
    let ingest_batch_max = ingest.unsigned("batch_max", 1, 10_000, 256);
    let ingest_batch_wait_ms = ingest.unsigned("batch_wait_ms", 0, 10_000, 20);
    ingest.finish();
    let mut top = Section {
        name: "",
        table: std::mem::take(root),
        problems,
    };
    let fleet = top.parsed("fleet", "a fleet id");
    if fleet.is_none() && !top.problems.iter().any(|p| p.key == "fleet") {
        top.bad(
            "fleet",
            "missing: the fleet's name, such as \"demo\"".to_owned(),
        );
    }
    let state_dir = top.text("state_dir").map(PathBuf::from);
    if state_dir.is_none() && !top.problems.iter().any(|p| p.key == "state_dir") {
        let problem = "missing: the folder of everything the server keeps, such as \"/var/lib/dunlin-server\"";
        top.bad("state_dir", problem.to_owned());
    }
    let names = read_names(&mut top);
    top.finish();
    Some(Settings {
        fleet: fleet?,
        state_dir: state_dir?,
        admin,
        devices,
        mqtt: mqtt?,
        enrolment,
        names,
        rollout_tick_ms,
        alerts_tick_ms,
        telemetry,
        captures,
        ingest_batch_max,
        ingest_batch_wait_ms,
    })
}

fn read_names(top: &mut Section<'_>) -> Vec<String> {
    let Some(given) = top.table.remove("names") else {
        return default_names();
    };
    let texts = given.as_array().map(|list| {
        let texts = list.iter().map(|v| v.as_str().map(str::to_owned));
        texts.collect::<Option<Vec<String>>>()
    });
    match texts.flatten() {
        Some(names) if !names.is_empty() && names.iter().all(|n| is_host(n)) => names,
        _ => {
            let problem =
                format!("expected a list of host names or addresses, not empty, got {given}");
            top.bad("names", problem);
            default_names()
        }
    }
}

fn is_host(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '*');
    !name.is_empty() && name.len() <= 253 && name.chars().all(allowed)
}

fn read_admin(mut section: Section<'_>) -> AdminSettings {
    let listen = section.address("listen", ([127, 0, 0, 1], 8080));
    let tls = section.flag("tls", false);
    if !tls && !listen.ip().is_loopback() {
        let problem = format!(
            "{listen} is not a loopback address: tokens would travel in the clear; set admin.tls = true"
        );
        section.bad("tls", problem);
    }
    section.finish();
    AdminSettings { listen, tls }
}

fn read_devices(mut section: Section<'_>) -> DeviceSettings {
    let listen = section.address("listen", ([0, 0, 0, 0], 8443));
    let public_url = section.text("public_url");
    let host = public_url
        .as_deref()
        .map(|url| url.strip_prefix("https://"));
    if host.is_some_and(|host| host.is_none_or(|h| h.is_empty() || h.contains(['/', ' ']))) {
        let problem = format!(
            "expected https://host:port without a path, got {:?}",
            public_url.as_deref().unwrap_or_default()
        );
        section.bad("public_url", problem);
    }
    section.finish();
    DeviceSettings { listen, public_url }
}

fn read_enrolment(mut section: Section<'_>) -> EnrolmentSettings {
    let default = EnrolmentSettings::default();
    let days = section.number("certificate_days", 1, 3650);
    // For trials: a year in a minute.
    let seconds = section.number("certificate_s", 5, i64::from(u32::MAX));
    if days.is_some() && seconds.is_some() {
        let problem = "certificate_days and certificate_s exclude each other: give one";
        section.bad("certificate_s", problem.to_owned());
    }
    let life_s = seconds.or(days.map(|days| days * i64::from(DAY_S)));
    let recover_expired_days = section.unsigned(
        "recover_expired_days",
        0,
        36_500,
        default.recover_expired_days,
    );
    section.finish();
    EnrolmentSettings {
        certificate_life_s: life_s
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(default.certificate_life_s),
        recover_expired_days,
    }
}

fn read_mqtt(mut section: Section<'_>) -> Option<MqttSettings> {
    let public_host = section.text("public_host");
    let public_port = section.number("public_port", 1, 65_535);
    let acl_file = section.text("acl_file").map(PathBuf::from);
    let device_blocks_kib_s =
        section.unsigned("device_blocks_kib_s", 16, 1 << 20, DEVICE_BLOCKS_KIB_S);
    let mode = section
        .text("mode")
        .unwrap_or_else(|| "embedded".to_owned());
    let mode = match mode.as_str() {
        "embedded" => Some(MqttMode::Embedded {
            listen: section.address("listen", ([0, 0, 0, 0], 8883)),
        }),
        "external" => {
            let host = section.text("host");
            if host.is_none() {
                section.bad("host", "missing: the external broker's host".to_owned());
            }
            let port = section.unsigned("port", 1, 65_535, 8883);
            let ca_file = section.text("ca_file").map(PathBuf::from);
            let cert_file = section.text("cert_file").map(PathBuf::from);
            let key_file = section.text("key_file").map(PathBuf::from);
            if cert_file.is_some() != key_file.is_some() {
                let problem = "cert_file and key_file go together: give both or neither";
                section.bad("cert_file", problem.to_owned());
            }
            host.map(|host| MqttMode::External {
                host,
                port,
                ca_file,
                cert_file,
                key_file,
            })
        }
        other => {
            let problem = format!("expected \"embedded\" or \"external\", got {other:?}");
            section.bad("mode", problem);
            None
        }
    };
    section.finish();
    Some(MqttSettings {
        mode: mode?,
        public_host,
        public_port: public_port.and_then(|p| u16::try_from(p).ok()),
        acl_file,
        device_blocks_kib_s,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn defaults_need_two_keys() {
        let settings = Settings::parse(
            "fleet = \"demo\"\nstate_dir = \"/s\"",
            &Overrides::default(),
        );
        let settings = settings.unwrap();
        assert_eq!(settings.admin.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.devices.listen.port(), 8443);
        assert!(
            matches!(settings.mqtt.mode, MqttMode::Embedded { listen } if listen.port() == 8883)
        );
        assert_eq!(settings.enrolment, EnrolmentSettings::default());
    }

    #[test]
    fn the_life_of_certificates_is_given_in_days_or_for_trials_in_seconds() {
        let read = |section: &str| {
            let text = format!("fleet = \"demo\"\nstate_dir = \"/s\"\n[enrolment]\n{section}");
            Settings::parse(&text, &Overrides::default()).map(|s| s.enrolment)
        };
        let days = read("certificate_days = 30\nrecover_expired_days = 0").unwrap();
        assert_eq!(
            (days.certificate_life_s, days.recover_expired_days),
            (30 * DAY_S, 0)
        );
        let seconds = read("certificate_s = 20").unwrap();
        assert_eq!(seconds.certificate_life_s, 20);
        for bad in [
            "certificate_days = 0",
            "certificate_s = 4",
            "certificate_days = 1\ncertificate_s = 9",
        ] {
            assert_eq!(read(bad).unwrap_err().len(), 1, "{bad}");
        }
    }

    #[test]
    fn every_bad_key_is_reported_at_once() {
        let text = r#"
            fleet = "a/b"
            names = [1]
            colour = "red"
            [admin]
            listen = "0.0.0.0:80"
            [devices]
            listen = "nonsense"
            public_url = "http://x"
            [mqtt]
            mode = "external"
            cert_file = "/c"
            [rollout]
            tick_ms = 1
            [ingest]
            batch_max = "many"
            [telemetry]
            days = 3
            hourly_after_days = 9
            daily_after_days = 8
        "#;
        let problems = Settings::parse(text, &Overrides::default()).unwrap_err();
        let mut keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "admin.tls",
                "colour",
                "devices.listen",
                "devices.public_url",
                "fleet",
                "ingest.batch_max",
                "mqtt.cert_file",
                "mqtt.host",
                "names",
                "rollout.tick_ms",
                "state_dir",
                "telemetry.daily_after_days",
                "telemetry.days"
            ]
        );
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = Overrides(vec![
            ("state_dir".to_owned(), Value::String("/other".to_owned())),
            (
                "admin.listen".to_owned(),
                Value::String("127.0.0.1:1".to_owned()),
            ),
        ]);
        let settings = Settings::parse("fleet = \"demo\"", &overrides).unwrap();
        assert_eq!(settings.state_dir, Path::new("/other"));
        assert_eq!(settings.admin.listen.port(), 1);
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        let problems = Settings::parse("fleet = ", &Overrides::default()).unwrap_err();
        assert!(problems[0].problem.contains("line 1"), "{problems:?}");
    }
}
