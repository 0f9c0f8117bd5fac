"""Stages ResNet-18 for a worker: `stage.py ZOO SLOT`."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "peers/zoo"))
import models  # noqa: E402


def blob(data):
    return {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}


def main(zoo, slot):
    zoo.mkdir(parents=True, exist_ok=True)
    model = models.provide(zoo, "resnet-18").read_bytes()
    output = onnx.load_from_string(model).graph.output[0].name
    shape = [1, 3, 224, 224]
    manifest = {
        "schema": "dunlin.manifest/1",
        "kind": "model",
        "family": "resnet-18",
        "version": 1,
        "inputs": [{"name": "image", "dtype": "FP32", "shape": shape}],
        "outputs": [{"name": output, "dtype": "FP32", "shape": [1, 1000]}],
        "limits": {"tolerance_abs": 0.0, "latency_budget_ms": 10000},
        "resources": {"ram_bytes": 0, "disk_bytes": 0, "arch": ["any"], "agent_min": "0.1.0"},
        "steps": {},
        "labels": [],
        "lineage": {},
        "files": {"model": blob(model), "golden": blob(b"{}")},
    }
    slot.mkdir(parents=True)
    (slot / "model.onnx").write_bytes(model)
    (slot / "golden.json").write_bytes(b"{}")
    (slot / "manifest.json").write_text(json.dumps(manifest))
    random = np.random.Generator(np.random.PCG64(1))
    (slot / "input.bin").write_bytes(random.standard_normal(shape).astype("<f4").tobytes())


main(Path(sys.argv[1]), Path(sys.argv[2]))
