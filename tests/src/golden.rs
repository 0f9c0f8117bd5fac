//! What a model must answer, whenever it answers at all: its golden cases as its training runtime
//! wrote them.

use crate::http::{self, Answer};
use crate::operator::FAMILY;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// As in the models' `bundle.toml`.
const TOLERANCE: f64 = 1e-4;

/// One sample, and the answer of each version to it.
#[derive(Debug, Clone)]
pub struct Golden {
    request: Vec<u8>,
    answers: BTreeMap<u64, Vec<f64>>,
}

/// What a [`Golden::watch`] saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Right answers by version.
    pub right: BTreeMap<u64, u64>,
    /// Every answer that no version gives.
    pub wrong: Vec<String>,
}

impl Golden {
    /// Reads the golden cases of models that were written to `dir` as `v1`, `v2`, ….
    ///
    /// # Errors
    /// They cannot be read, or do not have a sample in common.
    pub fn read(dir: &Path, versions: &[u64]) -> anyhow::Result<Self> {
        let mut sample = None;
        let mut answers = BTreeMap::new();
        for version in versions {
            let path = dir.join(format!("v{version}/golden.json"));
            let document: Value = serde_json::from_slice(&std::fs::read(path)?)?;
            let case = &document["cases"][0];
            let pixels = case["inputs"]["pixels"].clone();
            anyhow::ensure!(*sample.get_or_insert_with(|| pixels.clone()) == pixels);
            let numbers = case["outputs"]["probabilities"].as_array();
            let numbers = numbers.context("no probabilities")?;
            let numbers = numbers.iter().filter_map(Value::as_f64).collect();
            answers.insert(*version, numbers);
        }
        let body = infer_body(&sample.context("no versions")?);
        Ok(Self {
            request: infer_request(&body),
            answers,
        })
    }

    /// Asks once: the version that answered, `None` while nobody does.
    ///
    /// # Errors
    /// The answer is not what that version gives.
    pub async fn ask(&self, socket: &Path) -> Result<Option<u64>, String> {
        let Ok(answer) = http::over_unix(socket, &self.request).await else {
            return Ok(None); // The worker is being started, or was killed meanwhile.
        };
        match answer.status {
            200 => self.check(&answer).map(Some),
            404 | 503 => Ok(None),
            _ => Err(format!("{}: {}", answer.status, answer.text())),
        }
    }

    fn check(&self, answer: &Answer) -> Result<u64, String> {
        let wrong = || answer.text();
        let answer = answer.json();
        let version = answer["model_version"].as_str();
        let version: u64 = version.and_then(|v| v.parse().ok()).ok_or_else(wrong)?;
        let expected = self.answers.get(&version).ok_or_else(wrong)?;
        let got = answer["outputs"][0]["data"].as_array().ok_or_else(wrong)?;
        let got: Vec<f64> = got.iter().filter_map(Value::as_f64).collect();
        let fits = got.len() == expected.len()
            && got
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() <= TOLERANCE);
        if fits { Ok(version) } else { Err(wrong()) }
    }

    /// Asks again and again until told to stop.
    pub async fn watch(
        self,
        socket: std::path::PathBuf,
        every: Duration,
        stop: watch::Receiver<bool>,
    ) -> Seen {
        let mut seen = Seen::default();
        while !*stop.borrow() {
            match self.ask(&socket).await {
                Ok(Some(version)) => *seen.right.entry(version).or_default() += 1,
                Ok(None) => {}
                Err(wrong) => seen.wrong.push(wrong),
            }
            tokio::time::sleep(every).await;
        }
        seen
    }
}

/// The body of an inference request for one sample.
#[must_use]
pub fn infer_body(pixels: &Value) -> Value {
    json!({"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels}]})
}

/// The whole request around a body.
#[must_use]
pub fn infer_request(body: &Value) -> Vec<u8> {
    let path = format!("/v2/models/{FAMILY}/infer");
    let headers = [("content-type", "application/json")];
    http::request("POST", &path, &headers, body.to_string().as_bytes())
}
