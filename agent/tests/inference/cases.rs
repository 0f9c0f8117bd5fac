//! Cases of processing steps with what their references in Python gave, and how they are run: the steps
//! alone, without a graph. Shared by the tests over the committed cases and by `examples/steps.rs`, which
//! `tests/peers/steps` feeds with random ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dunlin_agent::inference::steps::{Plan, Shaped, State};
use dunlin_agent::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, Manifest, TensorSpec};
use serde::Deserialize;
use serde_json::{Value, json};

/// A tensor as Python wrote it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// Little-endian, row-major, in base64; of `BYTES` one for each element.
    data: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    /// What the application sends.
    sent: Vec<Written>,
    /// What the graph must get.
    graph_inputs: Vec<Written>,
    /// What the graph gives.
    #[serde(default)]
    given: Vec<Written>,
    /// What the application must get.
    #[serde(default)]
    outputs: Vec<Written>,
}

/// Largest difference, and largest mean difference of a tensor.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tolerance {
    max: f64,
    #[serde(default)]
    mean: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default)]
    pre: Vec<Value>,
    #[serde(default)]
    post: Vec<Value>,
    /// Calls of one stream, in order.
    calls: Vec<Call>,
    tolerance: Tolerance,
    /// What the error says, if one is expected.
    #[serde(default)]
    error: Option<String>,
}

fn values(written: &Written) -> Values {
    let bytes: Vec<Vec<u8>> = written
        .data
        .iter()
        .map(|d| STANDARD.decode(d).unwrap())
        .collect();
    if written.dtype == DType::BYTES {
        return Values::BYTES(bytes);
    }
    let bytes = bytes.concat();
    macro_rules! read {
        ($variant:ident, $t:ty, $n:literal) => {
            Values::$variant(
                bytes
                    .as_chunks::<$n>()
                    .0
                    .iter()
                    .map(|c| <$t>::from_le_bytes(*c))
                    .collect(),
            )
        };
    }
    match written.dtype {
        DType::BOOL => Values::BOOL(bytes.iter().map(|b| *b != 0).collect()),
        DType::UINT8 => Values::UINT8(bytes),
        DType::UINT16 => read!(UINT16, u16, 2),
        DType::UINT32 => read!(UINT32, u32, 4),
        DType::UINT64 => read!(UINT64, u64, 8),
        DType::INT8 => read!(INT8, i8, 1),
        DType::INT16 => read!(INT16, i16, 2),
        DType::INT32 => read!(INT32, i32, 4),
        DType::INT64 => read!(INT64, i64, 8),
        DType::FP32 => read!(FP32, f32, 4),
        DType::FP64 => read!(FP64, f64, 8),
        DType::FP16 | DType::BYTES => panic!("not written by the references"),
    }
}

fn specs(all: &[Written]) -> Vec<TensorSpec> {
    let spec = |w: &Written| TensorSpec {
        name: w.name.clone(),
        dtype: w.dtype,
        shape: w.shape.clone(),
        layout: None,
    };
    all.iter().map(spec).collect()
}

impl Case {
    fn manifest(&self) -> Manifest {
        let call = &self.calls[0];
        let longest = |w: &Written| w.data.iter().map(String::len).max().unwrap_or(1).max(1);
        let sent = call.sent.iter().map(|w| match w.dtype {
            DType::BYTES => {
                json!({"name": w.name, "dtype": "BYTES", "shape": w.shape, "bytes_max": longest(w)})
            }
            _ => json!({"name": w.name, "dtype": w.dtype, "shape": w.shape}),
        });
        let outputs: Vec<&str> = call.outputs.iter().map(|w| w.name.as_str()).collect();
        let mut given = specs(&call.given);
        if given.is_empty() {
            given.push(TensorSpec {
                name: "unused".to_owned(),
                dtype: DType::FP32,
                shape: vec![1],
                layout: None,
            });
        }
        let blob = json!({"sha256": "0".repeat(64), "length": 1});
        let document = json!({
            "schema": "dunlin.manifest/1", "kind": "model", "family": "case", "version": 1,
            "inputs": specs(&call.graph_inputs), "outputs": given, "labels": self.labels,
            "steps": {"pre": self.pre, "post": self.post},
            "application": {"inputs": sent.collect::<Value>(), "outputs": outputs},
            "limits": {"tolerance_abs": 0.0, "latency_budget_ms": 1},
            "resources": {"ram_bytes": 0, "disk_bytes": 0, "arch": ["any"], "agent_min": "0.1.0"},
            "files": {"model": blob, "golden": blob}
        });
        let name = &self.name;
        Manifest::parse(document.to_string().as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Runs the calls; gives the largest difference found.
    ///
    /// # Errors
    /// The first thing that is not as the reference has it.
    pub(crate) fn run(&self) -> Result<f64, String> {
        let plan = Plan::compile(&self.manifest()).map_err(|e| e.to_string())?;
        let mut state = plan.initial().clone();
        let mut largest = 0.0_f64;
        for (at, call) in self.calls.iter().enumerate() {
            let done = self.call(&plan, call, &state);
            match (done, &self.error) {
                (Ok((difference, next)), None) => {
                    largest = largest.max(difference);
                    state = next;
                }
                (Err(e), Some(hint)) if e.contains(hint) => {}
                (Ok(_), Some(hint)) => return Err(format!("call {at}: expected an error: {hint}")),
                (Err(e), _) => return Err(format!("call {at}: {e}")),
            }
        }
        Ok(largest)
    }

    fn call(&self, plan: &Plan, call: &Call, state: &State) -> Result<(f64, State), String> {
        let sent: Vec<Values> = call.sent.iter().map(values).collect();
        let mut prepared = plan.before(&sent, state).map_err(|e| e.to_string())?;
        let mut largest = 0.0_f64;
        for (expected, got) in call.graph_inputs.iter().zip(prepared.inputs.iter()) {
            let got = Shaped {
                shape: expected.shape.clone(),
                values: got.clone(),
            };
            largest = largest.max(self.compare(expected, &got)?);
        }
        let mut given: Vec<Values> = call.given.iter().map(values).collect();
        if given.is_empty() {
            given.push(Values::FP32(vec![0.0]));
        }
        let (geometry, next) = prepared.rest();
        let finished = plan
            .after(given, geometry, next)
            .map_err(|e| e.to_string())?;
        for (expected, got) in call.outputs.iter().zip(&finished.outputs) {
            largest = largest.max(self.compare(expected, got)?);
        }
        Ok((largest, finished.next))
    }

    fn compare(&self, expected: &Written, got: &Shaped) -> Result<f64, String> {
        let name = &expected.name;
        let wanted = values(expected);
        if wanted.dtype() != got.values.dtype()
            || expected.shape != got.shape
            || wanted.len() != got.values.len()
        {
            return Err(format!(
                "{name:?}: expected {:?} {:?}, got {:?} {:?}",
                wanted.dtype(),
                expected.shape,
                got.values.dtype(),
                got.shape
            ));
        }
        if let (Values::BYTES(wanted), Values::BYTES(got)) = (&wanted, &got.values) {
            return if wanted == got {
                Ok(0.0)
            } else {
                Err(format!("{name:?}: expected {wanted:?}, got {got:?}"))
            };
        }
        let (mut largest, mut sum) = (0.0_f64, 0.0);
        for (at, (wanted, got)) in wanted.iter_f64().zip(got.values.iter_f64()).enumerate() {
            let both_nan = wanted.is_nan() && got.is_nan();
            let difference = if wanted == got || both_nan {
                0.0
            } else {
                (wanted - got).abs()
            };
            if difference.is_nan() || difference > self.tolerance.max {
                return Err(format!(
                    "{name:?}[{at}]: expected {wanted}, got {got}, tolerance {}",
                    self.tolerance.max
                ));
            }
            largest = largest.max(difference);
            sum += difference;
        }
        let mean = sum / wanted.len().max(1) as f64;
        match self.tolerance.mean {
            Some(most) if mean > most => {
                Err(format!("{name:?}: mean difference {mean}, at most {most}"))
            }
            _ => Ok(largest),
        }
    }
}
