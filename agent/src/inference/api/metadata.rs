//! What the server says of itself and of its models.

use super::ApiError;
use super::signature::Signature;
use crate::inference::statistics::{Duration, Snapshot};
use dunlin_protocol::bundle::DType;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

/// Name of this server in its metadata.
pub(crate) const SERVER: &str = "dunlin";
/// Platform of every model.
pub(crate) const PLATFORM: &str = "onnx";
/// Extensions of the protocol that this server has, by Triton's names.
pub(crate) const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "model_repository", "statistics"];

/// The body of the server's metadata.
pub(crate) fn server() -> Value {
    json!({ "name": SERVER, "version": crate::VERSION, "extensions": EXTENSIONS })
}

/// The body of a model's metadata.
pub(crate) fn model(signature: &Signature<'_>) -> Value {
    let tensor = |name: &str, dtype: DType, shape: Value| json!({ "name": name, "datatype": dtype.as_str(), "shape": shape });
    let inputs = signature.inputs.iter().map(|i| &i.spec);
    let inputs = inputs.map(|s| tensor(&s.name, s.dtype, json!(s.shape)));
    let outputs = signature.outputs.iter().map(|o| {
        let shape = o.of.shape.iter().map(|d| d.on_the_wire());
        tensor(&o.name, o.of.dtype, shape.collect())
    });
    json!({
        "name": signature.name,
        "versions": [signature.version.to_string()],
        "platform": PLATFORM,
        "inputs": inputs.collect::<Value>(),
        "outputs": outputs.collect::<Value>(),
    })
}

/// What a request for the repository's index may say. Every model listed is ready, so that it filters
/// nothing.
#[derive(Deserialize, Default)]
struct IndexRequest {
    #[serde(default)]
    #[allow(dead_code)]
    ready: bool,
}

/// Checks the body of a request for the index, which may be empty.
pub(crate) fn check_index_request(body: &[u8]) -> Result<(), ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    serde_json::from_slice::<IndexRequest>(body)
        .map(drop)
        .map_err(|e| ApiError::bad(format!("repository index: {e}")))
}

/// One line of the repository's index.
pub(crate) fn index_entry(signature: &Signature<'_>) -> Value {
    json!({
        "name": signature.name,
        "version": signature.version.to_string(),
        "state": "READY",
        "reason": "",
    })
}

/// Why models are not loaded or unloaded by a client's wish.
pub(crate) fn no_change(name: &str, what: &str) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        format!(
            "{what} of model {}: refused; what runs here is decided by the fleet, which activates signed bundles only",
            super::given::quoted(name)
        ),
    )
}

/// Statistics of one model, as Triton's extension has them. One inference is one execution: nothing is
/// batched.
pub(crate) fn statistics(signature: &Signature<'_>, seen: &Snapshot) -> Value {
    let duration = |d: &Duration| json!({ "count": d.count, "ns": d.ns });
    let never = Duration::default();
    json!({
        "name": signature.name,
        "version": signature.version.to_string(),
        "last_inference": seen.last_inference_ms,
        "inference_count": seen.success.count,
        "execution_count": seen.success.count,
        "inference_stats": {
            "success": duration(&seen.success),
            "fail": duration(&seen.fail),
            "queue": duration(&seen.queue),
            "compute_input": duration(&seen.compute_input),
            "compute_infer": duration(&seen.compute_infer),
            "compute_output": duration(&seen.compute_output),
            "cache_hit": duration(&never),
            "cache_miss": duration(&never),
        },
        "batch_stats": [{
            "batch_size": 1,
            "compute_input": duration(&seen.compute_input),
            "compute_infer": duration(&seen.compute_infer),
            "compute_output": duration(&seen.compute_output),
        }],
    })
}
