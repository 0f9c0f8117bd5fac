//! How long the server takes to add up and score devices' windows of 64 features by 64 bins.
//!
//! `bench-merge [ROUNDS] [WINDOWS]`. Prints Markdown. So many windows that are all different would not fit
//! into memory: 1000 are gone through again and again, far more than any cache holds.

use dunlin_protocol::bundle::{ClassProfile, FeatureProfile, OutputProfile, Profile};
use dunlin_protocol::id::Digest;
use dunlin_protocol::sketch::{Edges, Histogram, Latency};
use dunlin_protocol::telemetry::Window;
use dunlin_server::drift::query::{DriftQuery, Reference, SENSITIVITY, of_windows};
use dunlin_server::drift::statistics::range;
use dunlin_server::store::ReceivedWindow;
use std::time::{Duration, Instant};

const FEATURES: usize = 64;
const BINS: usize = 64;
const CLASSES: usize = 10;
const DISTINCT: usize = 1000;
const INFERENCES: usize = 600;
const START_MS: i64 = 1_790_000_000_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |n| n.parse());
    let (rounds, count) = (number(0, 9)?, number(1, 100_000)?);
    let reference = reference()?;
    let mut random = 1_u64;
    let windows: Vec<ReceivedWindow> = (0..DISTINCT)
        .map(|at| window(at, &reference, &mut random))
        .collect::<Result<_, _>>()?;
    let query = DriftQuery {
        family: "digits".parse()?,
        version: None,
        cohort: "all".to_owned(),
        devices: None,
        segment: None,
        since_ms: None,
        until_ms: None,
        sensitivity: SENSITIVITY,
        out_of_range_margin: range::MARGIN,
    };
    let texts: Vec<String> = windows
        .iter()
        .map(|received| serde_json::to_string(&received.window))
        .collect::<Result<_, _>>()?;
    let (mut merging, mut reading) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let all = windows.iter().cycle().take(count);
        let drift = of_windows(&query, 1, all, None, Some(&reference));
        merging.push(begun.elapsed());
        anyhow::ensure!(drift.windows == count as u64 && drift.left_out.is_empty());
        anyhow::ensure!(drift.features.len() == FEATURES && drift.inferences > 0);
        let begun = Instant::now();
        for text in &texts {
            let _: Window = serde_json::from_str(text)?;
        }
        reading.push(begun.elapsed());
    }
    println!("{count} windows, {FEATURES} features, {BINS} bins, median of {rounds} rounds:\n");
    println!("| what | ms |\n|---|--:|");
    println!("| added up and scored | {:.0} |", median_ms(&mut merging));
    let each = median_ms(&mut reading) / f64::from(u32::try_from(DISTINCT)?);
    let bytes = texts.iter().map(String::len).sum::<usize>() / DISTINCT;
    println!("| one window read from its JSON of {bytes} bytes | {each:.3} |");
    Ok(())
}

fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn edges() -> anyhow::Result<Edges> {
    let edges = (0..=u16::try_from(BINS)?).map(f64::from);
    Ok(Edges::try_from(edges.collect::<Vec<f64>>())?)
}

fn reference() -> anyhow::Result<Reference> {
    let (edges, counts) = (edges()?, vec![100; BINS]);
    let output = OutputProfile {
        edges: edges.clone(),
        counts: counts.clone(),
    };
    let feature = |index: usize| FeatureProfile {
        name: format!("pixels[{index}]"),
        tensor: "pixels".to_owned(),
        after_steps: false,
        categories: None,
        statistic: None,
        axis: None,
        index,
        edges: edges.clone(),
        counts: counts.clone(),
    };
    let profile = Profile {
        schema: "dunlin.profile/1".to_owned(),
        rows: 6400,
        features: (0..FEATURES).map(feature).collect(),
        outputs: ClassProfile {
            classes: (0..CLASSES).map(|class| class.to_string()).collect(),
            counts: vec![640; CLASSES],
        },
        confidence: output.clone(),
        entropy: output,
        calibration: None,
        segments: None,
    };
    Ok(Reference {
        profile,
        digest: Digest::of(b"profile"),
    })
}

fn window(at: usize, reference: &Reference, random: &mut u64) -> anyhow::Result<ReceivedWindow> {
    let mut drawn = |bins: usize| {
        let mut counts = vec![0; bins];
        for _ in 0..INFERENCES {
            *random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            counts[usize::try_from(*random >> 33).unwrap_or(0) % bins] += 1;
        }
        counts
    };
    let outputs = drawn(CLASSES);
    let mut histogram = || Histogram {
        counts: drawn(BINS),
        ..Histogram::default()
    };
    let (confidence, entropy) = (histogram(), histogram());
    let middle = |histogram: &Histogram| -> u64 {
        let bins = histogram.counts.iter().zip(0_u64..);
        bins.map(|(n, bin)| n * (bin * 1_000_000 + 500_000)).sum()
    };
    let start_ms = START_MS + i64::try_from(at)? * 60_000;
    let inferences = INFERENCES as u64;
    let window = Window {
        bundle: Digest::of(b"bundle"),
        family: "digits".parse()?,
        version: 1,
        start_ms,
        end_ms: start_ms + 60_000,
        inferences,
        errors: 0,
        confidence_sum_micro: middle(&confidence),
        entropy_sum_micro: middle(&entropy),
        outputs,
        confidence,
        entropy,
        features: (0..FEATURES).map(|_| histogram()).collect(),
        profile: Some(reference.digest),
        latency: Latency {
            buckets: vec![0, inferences],
        },
        expected_confusion_nano: None,
        segment: None,
        refused: 0,
    };
    let device = format!("dev-{:04}", at % 500).parse()?;
    Ok(ReceivedWindow::single(device, start_ms + 120_000, window))
}
