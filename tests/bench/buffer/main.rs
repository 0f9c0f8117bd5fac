//! What the telemetry buffer costs.
//!
//! `bench-buffer wear FOLDER SECONDS [TIMES]`: bytes written to the disk for each byte of records, at a
//! device's pace and at TIMES that; `flood FOLDER RECORDS`: the same and records a second, as fast as they are taken;
//! `memory FOLDER`: what an open buffer adds to a process; `fill FOLDER BYTES` and `open FOLDER`: time to
//! open a full one; `all PROGRAM FOLDER`: each of these in a process of its own, as Markdown.

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::telemetry::{Limits, OpenReport, TelemetryHandle};
use dunlin_protocol::command::Ack;
use dunlin_protocol::id::Digest;
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{Body, Event, LogLine, Record, Scalar, Window};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Records of a second, at a device's pace: what one chatty application makes.
const LOGS_A_SECOND: u64 = 12;
const EVENTS_A_SECOND: u64 = 2;
const SECONDS_A_WINDOW: u64 = 10;
/// Disk that may be used where the buffer is to hold 1 GB.
fn large() -> Limits {
    Limits {
        max_bytes: 6 << 30,
        ..Limits::default()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["wear", folder, seconds] => wear(Path::new(folder), seconds.parse()?).await,
        ["flood", folder, records] => flood(Path::new(folder), records.parse()?).await,
        ["memory", folder] => memory(Path::new(folder)).await,
        ["fill", folder, bytes] => fill(Path::new(folder), bytes.parse()?).await,
        ["open", folder] => open(Path::new(folder)).await,
        ["all", program, folder] => all(program, Path::new(folder)),
        _ => bail!("usage: bench-buffer wear|flood|memory|fill|open|all …"),
    }
}

/// Numbers that look like a sensor's, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn histogram(&mut self, bins: usize, level: u64) -> Histogram {
        let mut histogram = Histogram::new(bins);
        for count in &mut histogram.counts {
            *count = level / 2 + self.below(level);
        }
        histogram
    }

    /// Of a model of 64 features with 40 bins each.
    #[allow(clippy::expect_used)]
    fn window(&mut self, time_ms: i64) -> Body {
        Body::Window(Box::new(Window {
            bundle: Digest::of(b"bundle"),
            family: "pump".parse().expect("a family's name"),
            version: 3,
            start_ms: time_ms - 60_000,
            end_ms: time_ms,
            inferences: 600,
            errors: 0,
            confidence_sum_micro: 540_000_000 + self.below(1_000_000),
            entropy_sum_micro: 120_000_000 + self.below(1_000_000),
            outputs: (0..10).map(|_| self.below(100)).collect(),
            confidence: self.histogram(40, 15),
            entropy: self.histogram(40, 15),
            features: (0..64).map(|_| self.histogram(40, 15)).collect(),
            profile: Some(Digest::of(b"profile")),
            latency: Latency::default(),
            expected_confusion_nano: None,
            segment: None,
            refused: 0,
        }))
    }

    fn metrics(&mut self) -> Body {
        let names = [
            "uptime_s",
            "inferences",
            "buffer_bytes",
            "cpu_permille",
            "temperature_c",
        ];
        let values = names.map(|name| {
            let value = i64::try_from(self.below(1_000_000)).unwrap_or_default();
            (name.to_owned(), Scalar::Integer(value))
        });
        Body::Metrics {
            values: values.into(),
        }
    }

    fn event(&mut self) -> Body {
        Body::Event(Event {
            code: "input_out_of_range".to_owned(),
            detail: format!(
                "feature vibration_{}: {} is above 4.5",
                self.below(64),
                self.below(100_000) as f64 / 1e3
            ),
            bundle: Some(Digest::of(b"bundle")),
        })
    }

    fn log(&mut self) -> Body {
        Body::Log(LogLine {
            level: "info".to_owned(),
            text: format!(
                "request {} of client {} answered in {} us, confidence {}",
                self.next(),
                self.below(8),
                200 + self.below(900),
                self.below(1_000_000) as f64 / 1e6
            ),
        })
    }

    fn second(&mut self, number: u64) -> Vec<Record> {
        // Of now, so that none is too old to be kept.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let time_ms = i64::try_from(since.as_millis()).unwrap_or_default();
        let mut bodies = vec![self.metrics()];
        bodies.extend((0..EVENTS_A_SECOND).map(|_| self.event()));
        bodies.extend((0..LOGS_A_SECOND).map(|_| self.log()));
        if number.is_multiple_of(SECONDS_A_WINDOW) {
            bodies.push(self.window(time_ms));
        }
        let record = |body| Record { time_ms, body };
        bodies.into_iter().map(record).collect()
    }
}

fn json_bytes(record: &Record) -> anyhow::Result<u64> {
    Ok(serde_json::to_vec(record)?.len() as u64)
}

/// What was written to the disk that the folder is on, by whomever: the script gives it one of its own.
/// What the kernel says of a process counts whole folios for each byte changed in them.
fn written_bytes(folder: &Path) -> anyhow::Result<u64> {
    std::fs::create_dir_all(folder)?;
    let handle = std::fs::File::open(folder)?;
    rustix::fs::syncfs(&handle)?;
    let device = std::fs::metadata(folder)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let text = std::fs::read_to_string(&path)?;
    let sectors = text.split_whitespace().nth(6);
    let sectors: u64 = sectors.with_context(|| path.clone())?.parse()?;
    Ok(sectors * 512)
}

/// A buffer that has what every new one writes once behind it.
async fn begin(folder: &Path) -> anyhow::Result<(TelemetryHandle, OpenReport)> {
    let (buffer, report) = TelemetryHandle::open(folder, Limits::default()).await?;
    let records = Noise(0).second(0);
    for record in records {
        buffer.push(record).await?;
    }
    buffer.flush().await?;
    Ok((buffer, report))
}

fn field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|v| v.split_whitespace().next());
    Ok(value.with_context(|| format!("{path}: {name}"))?.parse()?)
}

/// Delivers what is buffered, as a server that is there would.
async fn deliver(buffer: &TelemetryHandle, boot: dunlin_protocol::id::BootId) {
    loop {
        let batch = buffer.next_batch().await;
        if batch.is_empty() {
            return;
        }
        let segments = batch.iter().map(|outgoing| outgoing.segment).collect();
        buffer
            .ack(Ack {
                boot,
                segments,
                server_time_ms: None,
            })
            .await;
    }
}

async fn wear(folder: &Path, seconds: u64) -> anyhow::Result<()> {
    for delivered in [false, true] {
        let folder = folder.join(if delivered { "delivered" } else { "kept" });
        let (buffer, report) = begin(&folder).await?;
        let (mut noise, mut raw, mut records) = (Noise(1), 0, 0_u64);
        let before = written_bytes(&folder)?;
        let mut pace = tokio::time::interval(Duration::from_secs(1));
        for second in 0..seconds {
            pace.tick().await;
            for record in noise.second(second) {
                raw += json_bytes(&record)?;
                records += 1;
                buffer.push(record).await?;
            }
            if delivered {
                deliver(&buffer, report.boot).await;
            }
        }
        buffer.flush().await?;
        let written = written_bytes(&folder)? - before;
        ensure!(
            buffer.stats().await.evicted_records == 0,
            "records were dropped"
        );
        buffer.close().await;
        println!(
            "| {} | {records} | {:.1} | {:.1} | **{:.2}** |",
            if delivered {
                "connected: acknowledged at once"
            } else {
                "offline: all is kept"
            },
            raw as f64 / 1e3,
            written as f64 / 1e3,
            written as f64 / raw as f64
        );
    }
    Ok(())
}

async fn flood(folder: &Path, most: u64) -> anyhow::Result<()> {
    let (buffer, _) = begin(folder).await?;
    let mut noise = Noise(2);
    let seconds = most / (LOGS_A_SECOND + EVENTS_A_SECOND + 1);
    let all: Vec<Record> = (0..seconds).flat_map(|n| noise.second(n)).collect();
    let mut raw = 0;
    for record in &all {
        raw += json_bytes(record)?;
    }
    let before = written_bytes(folder)?;
    let began = Instant::now();
    let count = all.len();
    for record in all {
        buffer.push(record).await?;
    }
    buffer.flush().await?;
    let took = began.elapsed();
    let written = written_bytes(folder)? - before;
    ensure!(
        buffer.stats().await.evicted_records == 0,
        "records were dropped"
    );
    println!(
        "| as fast as they are taken ({:.0} records/s, {:.1} MB/s) | {} | {:.1} | {:.1} | **{:.2}** |",
        count as f64 / took.as_secs_f64(),
        raw as f64 / 1e6 / took.as_secs_f64(),
        count,
        raw as f64 / 1e3,
        written as f64 / 1e3,
        written as f64 / raw as f64
    );
    buffer.close().await;
    Ok(())
}

async fn memory(folder: &Path) -> anyhow::Result<()> {
    let pss = || field("/proc/self/smaps_rollup", "Pss:");
    let mut noise = Noise(3);
    let records: Vec<Record> = (0..120).flat_map(|n| noise.second(n)).collect();
    let before = pss()?;
    let (buffer, _) = TelemetryHandle::open(folder, Limits::default()).await?;
    let opened = pss()?;
    for some in records.chunks(150) {
        for record in some {
            buffer.push(record.clone()).await?;
        }
        buffer.flush().await?;
    }
    let used = pss()?;
    println!(
        "Memory an open buffer adds to a process (PSS): {:.1} MiB when it is opened, **{:.1} MiB** after {} records.\n",
        (opened - before) as f64 / 1024.0,
        (used.saturating_sub(before)) as f64 / 1024.0,
        records.len()
    );
    buffer.close().await;
    Ok(())
}

/// Until the store has so many bytes on disk; then goes on, for the caller to kill it.
async fn fill(folder: &Path, bytes: u64) -> anyhow::Result<()> {
    let (buffer, _) = TelemetryHandle::open(folder, large()).await?;
    let mut noise = Noise(4);
    let mut told = false;
    for second in 0.. {
        let mut record = noise.window(second);
        if second % 4 == 0 {
            record = noise.event();
        }
        buffer
            .push(Record {
                time_ms: second,
                body: record,
            })
            .await?;
        if second % 256 == 0 {
            let held = buffer.stats().await;
            if held.bytes_on_disk >= bytes && !told {
                buffer.flush().await?;
                println!("{} {}", held.segments, held.bytes_on_disk);
                told = true;
            }
        }
    }
    Ok(())
}

async fn open(folder: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let (buffer, report) = TelemetryHandle::open(folder, large()).await?;
    println!("{} {}", began.elapsed().as_millis(), report.segments);
    buffer.close().await;
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn all(program: &str, folder: &Path) -> anyhow::Result<()> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    println!("## Bytes written\n");
    println!(
        "| | records | kB of records | kB written | written for each byte |\n|---|--:|--:|--:|--:|"
    );
    print!("{}", run(program, &["wear", &path("wear"), "120"])?);
    print!("{}", run(program, &["flood", &path("flood"), "200000"])?);
    println!("\n## Memory\n");
    print!("{}", run(program, &["memory", &path("memory")])?);
    println!("## Opening a full one\n");
    println!("| | segments | MB on disk | ms |\n|---|--:|--:|--:|");
    let large = path("large");
    let mut filler = Command::new(program)
        .args(["fill", &large, "1000000000"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = filler.stdout.take().context("its output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    filler.kill()?;
    filler.wait()?;
    let (segments, bytes) = line.trim().split_once(' ').context("it was filled")?;
    let megabytes = bytes.parse::<f64>()? / 1e6;
    for (what, cold) in [
        ("after kill -9", false),
        ("after an orderly end", false),
        ("the same, nothing of it in the page cache", true),
    ] {
        if cold && std::fs::write("/proc/sys/vm/drop_caches", "1").is_err() {
            println!("| {what} | | | not measured: needs root |");
            continue;
        }
        let opened = run(program, &["open", &large])?;
        let (ms, _) = opened.trim().split_once(' ').context("it was opened")?;
        println!("| {what} | {segments} | {megabytes:.0} | **{ms}** |");
    }
    println!();
    Ok(())
}
