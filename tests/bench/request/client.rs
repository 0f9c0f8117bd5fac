//! A client that repeats one request, in as little time as can be.

use anyhow::{Context as _, ensure};
use dunlin_protocol::bundle::{DType, Manifest};
use serde_json::json;
use std::io::{Read, Write};

/// A connection and the one request that it repeats.
pub(crate) struct Client<S> {
    stream: S,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn new(stream: S, request: &[u8]) -> Self {
        Self {
            stream,
            request: request.to_vec(),
            buffer: vec![0; 1 << 20],
        }
    }

    /// The body of the answer.
    pub(crate) fn ask(&mut self) -> anyhow::Result<&[u8]> {
        self.stream.write_all(&self.request)?;
        let mut read = 0;
        let mut wanted = None;
        loop {
            let n = self.stream.read(&mut self.buffer[read..])?;
            ensure!(n > 0, "the connection ended");
            read += n;
            if wanted.is_none()
                && let Some(end) = self.buffer[..read]
                    .windows(4)
                    .position(|w| w == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&self.buffer[..end])?;
                ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "))
                    .context("no length")?;
                wanted = Some((end + 4, end + 4 + length.parse::<usize>()?));
            }
            if let Some((start, end)) = wanted
                && read >= end
            {
                return Ok(&self.buffer[start..end]);
            }
        }
    }
}

fn request(model: &str, json_bytes: Option<usize>, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let json = json_bytes.map_or(String::new(), |n| {
        format!("inference-header-content-length: {n}\r\n")
    });
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: device\r\n{json}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The request in binary and in JSON.
pub(crate) fn requests(manifest: &Manifest, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (given, got) = (&manifest.inputs[0], &manifest.outputs[0]);
    let head = json!({
        "inputs": [{"name": given.name, "datatype": given.dtype, "shape": given.shape,
            "parameters": {"binary_data_size": input.len()}}],
        "outputs": [{"name": got.name, "parameters": {"binary_data": true}}],
    })
    .to_string();
    let body = [head.as_bytes(), input].concat();
    let family = manifest.family.as_str();
    let binary = request(family, Some(head.len()), &body);
    let data: serde_json::Value = match given.dtype {
        DType::FP32 => chunks(input).map(f32::from_le_bytes).collect(),
        _ => chunks(input).map(i32::from_le_bytes).collect(),
    };
    let body = json!({
        "inputs": [{"name": given.name, "datatype": given.dtype, "shape": given.shape, "data": data}],
    });
    (binary, request(family, None, body.to_string().as_bytes()))
}

fn chunks(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks::<4>().0.iter().copied()
}
