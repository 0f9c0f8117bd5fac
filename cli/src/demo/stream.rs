//! What each device sees: real handwritten digits, in a mix of its own.

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// 64 pixels of 0 to 16, then the label.
const FIELD: &[u8] = include_bytes!("../../../tests/models/digits/field.bin");
const ROW: usize = 65;
const CLASSES: usize = 10;
const ANSWER_MAX_BYTES: usize = 1 << 20;
const ANSWER_TIMEOUT_MS: u64 = 10_000;

/// `SplitMix64` (Steele, Lea, Flood 2014): the same seed gives the same demo.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, n)`; the bias of the remainder is below 2⁻⁵⁰ for the n used here.
    fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % n).unwrap_or(0)
    }
}

/// One device's own stream: digits drawn with weights that differ from device to device.
pub struct Stream {
    random: Random,
    by_class: Vec<Vec<&'static [u8]>>,
    /// Classes, each as often as its weight.
    wheel: Vec<usize>,
    /// Answers so far, for whoever waits for them.
    answered: Arc<AtomicU64>,
}

impl Stream {
    /// Device `device`'s stream; `answered` counts its answers.
    #[must_use]
    pub fn new(seed: u64, device: u64, answered: Arc<AtomicU64>) -> Self {
        let mut random = Random::new(seed ^ (device + 1).wrapping_mul(0xD1B5_4A32_D192_ED03));
        let mut by_class = vec![Vec::new(); CLASSES];
        for row in FIELD.chunks_exact(ROW) {
            if let Some(class) = by_class.get_mut(usize::from(row[ROW - 1])) {
                class.push(&row[..ROW - 1]);
            }
        }
        // Weights from 2 to 8: a site may see one digit four times as often as another.
        let wheel = (0..CLASSES)
            .flat_map(|class| vec![class; 2 + random.below(7)])
            .collect();
        Self {
            random,
            by_class,
            wheel,
            answered,
        }
    }

    /// The next sample: its pixels and its true label.
    fn next(&mut self) -> (&'static [u8], usize) {
        let class = self.wheel[self.random.below(self.wheel.len())];
        let rows = &self.by_class[class];
        (rows[self.random.below(rows.len())], class)
    }
}

/// What came of a stream.
#[derive(Debug, Clone, Default)]
pub struct Fed {
    /// Requests that failed though a model was serving.
    pub failed: u64,
    /// By model version: answers, and those that were right.
    pub by_version: BTreeMap<u64, (u64, u64)>,
    /// The last failure, for the log.
    pub last_failure: Option<String>,
}

/// Feeds a device through its inference socket, as an application would, until told to stop.
pub async fn feed(
    socket: PathBuf,
    mut stream: Stream,
    every: Duration,
    mut stop: watch::Receiver<bool>,
) -> Fed {
    let mut fed = Fed::default();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        tokio::select! {
            _ = stop.changed() => return fed,
            _ = tick.tick() => {}
        }
        if connection.is_none() {
            connection = connect(&socket).await;
        }
        let Some(sender) = connection.as_mut() else {
            continue; // The worker is not up yet, or is being started again.
        };
        let (pixels, label) = stream.next();
        let asked = tokio::time::timeout(
            Duration::from_millis(ANSWER_TIMEOUT_MS),
            ask(sender, pixels),
        );
        match asked
            .await
            .unwrap_or_else(|_| Err(Lost("no answer".to_owned())))
        {
            Ok(Some((version, class))) => {
                stream.answered.fetch_add(1, Ordering::Relaxed);
                let (n, right) = fed.by_version.entry(version).or_default();
                *n += 1;
                *right += u64::from(class == label);
            }
            Ok(None) => {}
            Err(Lost(why)) => {
                fed.failed += 1;
                fed.last_failure = Some(why);
                connection = None;
            }
        }
    }
}

struct Lost(String);

impl<E: std::error::Error> From<E> for Lost {
    fn from(e: E) -> Self {
        Self(e.to_string())
    }
}

async fn connect(socket: &Path) -> Option<SendRequest<Full<Bytes>>> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(async move {
        // Its end is seen by the sender.
        let _ = connection.await;
    });
    Some(sender)
}

/// Version that answered and class it chose; `None` while no model is installed.
async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    pixels: &[u8],
) -> Result<Option<(u64, usize)>, Lost> {
    let body = serde_json::json!({
        "inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels}],
    });
    let request = Request::post("/v2/models/digits/infer")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
        .collect()
        .await
        .map_err(|e| Lost(e.to_string()))?
        .to_bytes();
    if status == 404 || status == 503 {
        return Ok(None);
    }
    let answer: serde_json::Value = serde_json::from_slice(&bytes)?;
    let lost = || Lost(format!("{status}: {}", String::from_utf8_lossy(&bytes)));
    if !status.is_success() {
        return Err(lost());
    }
    let version = answer["model_version"]
        .as_str()
        .and_then(|v| v.parse().ok())
        .ok_or_else(lost)?;
    let data = answer["outputs"][0]["data"].as_array().ok_or_else(lost)?;
    let class = data
        .iter()
        .enumerate()
        .filter_map(|(class, p)| p.as_f64().map(|p| (class, p)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(class, _)| class)
        .ok_or_else(lost)?;
    Ok(Some((version, class)))
}
