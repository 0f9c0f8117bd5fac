#![allow(clippy::unwrap_used)]

use super::*;

fn parse(text: &str) -> Result<Settings, ConfigErrors> {
    Settings::parse(text, Path::new("agent.toml"))
}

#[test]
fn the_default_file_says_what_no_file_says() {
    assert_eq!(parse(&agent_default_toml()).unwrap(), parse("").unwrap());
    // The commented keys are right as well.
    let all: String = agent_default_toml()
        .lines()
        .filter(|l| cfg!(feature = "grpc") || !l.contains("grpc_listen"))
        .map(|l| match l.strip_prefix("# ") {
            Some(key) if key.contains(" = ") || key.starts_with('[') => format!("{key}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    let settings = parse(&all).unwrap();
    assert_eq!(settings.device.unwrap().as_str(), "edge-07");
    assert_eq!(settings.inference.listen.unwrap().port(), 8601);
    assert_eq!(settings.inference.clients.len(), 3);
    let digits = settings.inference.models["digits"];
    assert_eq!((digits.concurrency, digits.cpu_share), (Some(1), 100));
    assert_eq!(settings.pipelines[0].name, "anomaly");
    assert_eq!(
        settings.inference.socket,
        parse("").unwrap().inference.socket
    );
}

#[test]
fn what_is_wrong_with_clients_and_grpc_is_told() {
    let errors = parse(
        r#"
        [inference]
        grpc_listen = "0.0.0.0:1"
        clients = { "camera" = ["digits"], "user:a" = ["no such"], "group:b" = "digits" }
        "#,
    )
    .unwrap_err();
    let keys: Vec<_> = errors.errors.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "inference.clients.group:b",
            "inference.grpc_listen",
            "inference.clients",
            "inference.clients",
        ]
    );
    let settings = parse("[inference]\nsocket_group = \"no-such-group-here\"").unwrap();
    let error = settings.inference.access().unwrap_err();
    assert!(error.to_string().contains("group \"no-such-group-here\""));
}

#[test]
fn what_is_wrong_with_how_models_are_served_is_told() {
    let errors = parse(
        r#"
        [inference.models."no such"]
        [inference.models.digits]
        queue = -1
        concurrency = "two"
        priority = 101
        cpu_share = 0
        colour = "green"
        [inference.models]
        faces = 3
        "#,
    )
    .unwrap_err();
    let mut keys: Vec<_> = errors.errors.iter().map(|e| e.key.as_str()).collect();
    keys.sort_unstable();
    let of_digits = |key| format!("inference.models.digits.{key}");
    let digits = ["colour", "concurrency", "cpu_share", "priority", "queue"].map(of_digits);
    let mut expected: Vec<&str> = digits.iter().map(String::as_str).collect();
    expected.extend(["inference.models.faces", "inference.models"]);
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

#[test]
fn every_bad_key_is_reported_at_once() {
    let errors = parse(
        r#"
        state_dir = "relative"
        hardware = ""
        device = "a/b"
        colour = "green"
        log = 3
        [inference]
        socket = "/s"
        listen = "0.0.0.0:80"
        window_ms = 99
        memory_limit_mib = "much"
        threads = 4
        [telemetry]
        max_mib = 0
        metrics_every_ms = -1
        [update]
        transport = "carrier pigeon"
        proxy = "socks5://u:s3cret@p:1"
        bandwidth_kib_s = -5
        connect_timeout_ms = 1.5
        request_timeout_ms = 9999999
        "#,
    )
    .unwrap_err();
    let keys: Vec<_> = errors.errors.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "inference.memory_limit_mib",
            "update.connect_timeout_ms",
            "state_dir",
            "hardware",
            "device",
            "inference.listen",
            "inference.window_ms",
            "telemetry.max_mib",
            "telemetry.metrics_every_ms",
            "update.transport",
            "update.proxy",
            "update.bandwidth_kib_s",
            "update.request_timeout_ms",
            "colour",
            "inference.threads",
            "log",
        ]
    );
    let text = errors.to_string();
    assert!(text.starts_with("agent.toml: 16 errors\n"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    assert!(
        text.contains("inference.window_ms: expected 100 to 86400000, got 99"),
        "{text}"
    );
}

#[test]
fn syntax_errors_missing_files_and_long_paths_are_named() {
    assert!(
        parse("a = = 1")
            .unwrap_err()
            .to_string()
            .contains("expected TOML")
    );
    let missing = Settings::load(Path::new("/nonexistent/agent.toml")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/agent.toml"));
    let long = Settings::in_folder(&Path::new("/").join("x".repeat(120))).unwrap_err();
    assert_eq!(long.errors[0].key, "inference.socket");
}

#[test]
fn a_pipeline_is_four_lines_and_each_wrong_one_is_named() {
    use crate::pipeline::place::Source;
    use crate::pipeline::queue::WhenFull;
    let settings = parse(
        r#"
        [[pipelines]]
        source = "folder:/var/spool/parts"
        model = "anomaly"
        sink = "file:/var/lib/x/results.jsonl"
        when_full = "drop_oldest"
        "#,
    )
    .unwrap();
    let one = &settings.pipelines[0];
    assert_eq!(one.source, Source::Folder("/var/spool/parts".into()));
    assert_eq!(one.when_full, WhenFull::DropOldest);
    assert_eq!(
        (one.name.as_str(), one.queue, one.format),
        ("anomaly", 64, None)
    );

    let errors = parse(
        r#"
        [[pipelines]]
        source = "mqtt://user:s3cret@h/t"
        model = "anomaly"
        sink = "file:x"
        when_full = "drop"
        colour = "green"
        [[pipelines]]
        source = "mqtt://h/t/#"
        model = "anomaly"
        sink = "mqtt://h:1883/t/out"
        queue = 0
        after = 3
        format = "xml"
        credentials = "relative"
        [[pipelines]]
        source = "stdin:"
        name = "A"
        model = "../x"
        "#,
    )
    .unwrap_err();
    let text = errors.to_string();
    assert!(!text.contains("s3cret"), "{text}");
    let mut keys: Vec<_> = errors.errors.iter().map(|e| e.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "pipelines[0].colour",
            "pipelines[0].sink",
            "pipelines[0].source",
            "pipelines[0].when_full",
            "pipelines[1].after",
            "pipelines[1].credentials",
            "pipelines[1].format",
            "pipelines[1].queue",
            "pipelines[1].sink",
            "pipelines[2].model",
            "pipelines[2].name",
            "pipelines[2].sink",
            "pipelines[2].source",
        ],
        "{text}"
    );
    let again = parse(
        "[[pipelines]]\nsource = \"folder:/a\"\nmodel = \"m\"\nsink = \"file:/b\"\n\
         [[pipelines]]\nsource = \"folder:/c\"\nmodel = \"m\"\nsink = \"file:/d\"\n",
    );
    let text = again.unwrap_err().to_string();
    assert!(
        text.contains("pipelines[1].name: expected a name of its own"),
        "{text}"
    );
}

#[test]
fn segments_and_parameters_are_texts_by_key() {
    let settings = parse(
        r#"
        [inference.segments]
        site = "quay-4"
        [[pipelines]]
        source = "folder:/in"
        model = "digits"
        sink = "file:/out"
        parameters = { camera = "north" }
        "#,
    )
    .unwrap();
    assert_eq!(settings.inference.segments["site"], "quay-4");
    assert_eq!(settings.pipelines[0].parameters["camera"], "north");
    let errors = parse(
        r#"
        [inference.segments]
        site = 4
        shift = ""
        [[pipelines]]
        source = "folder:/in"
        model = "digits"
        sink = "file:/out"
        parameters = "north"
        "#,
    )
    .unwrap_err();
    let mut keys: Vec<_> = errors.errors.iter().map(|e| e.key.as_str()).collect();
    keys.sort_unstable();
    let expected = [
        "inference.segments",
        "inference.segments.site",
        "pipelines[0].parameters",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn inputs_are_kept_only_if_the_owner_says_so_and_for_usable_keys() {
    let capture = parse("").unwrap().capture;
    assert!(!capture.owner.allow);
    let key = "a68653e6b5390d08b1111954fa1895f945659a9e356fd6dcc61ecaa277440b6a";
    let text = format!("[capture]\nallow = true\nrecipients = [\"{key}\"]");
    let capture = parse(&text).unwrap().capture;
    assert!(capture.owner.allow);
    assert_eq!(capture.owner.recipients[0].to_string(), key);
    let none = "00".repeat(32);
    let text = format!(
        "[capture]\nallow = \"yes\"\nrecipients = [\"{none}\", \"x\"]\nmax_mib = 0\nkeys = 1"
    );
    let errors = parse(&text).unwrap_err().errors;
    let keys: Vec<_> = errors.iter().map(|e| e.key.as_str()).collect();
    let (recipients, rest) = ("capture.recipients", ["capture.max_mib", "capture.keys"]);
    assert_eq!(
        keys,
        ["capture.allow", recipients, recipients, rest[0], rest[1]]
    );
}
