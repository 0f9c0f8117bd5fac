"""An inference worker of the real agent, with models staged as on a device."""

import hashlib
import json
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

MODELS = Path(__file__).parents[2] / "models/digits"
PROGRAM = os.environ["DUNLIN_UNDER_TEST"]

# The protocol's element types, NumPy's and ONNX's.
DTYPES = {
    "BOOL": (np.bool_, TensorProto.BOOL),
    "UINT8": (np.uint8, TensorProto.UINT8),
    "UINT16": (np.uint16, TensorProto.UINT16),
    "UINT32": (np.uint32, TensorProto.UINT32),
    "UINT64": (np.uint64, TensorProto.UINT64),
    "INT8": (np.int8, TensorProto.INT8),
    "INT16": (np.int16, TensorProto.INT16),
    "INT32": (np.int32, TensorProto.INT32),
    "INT64": (np.int64, TensorProto.INT64),
    "FP16": (np.float16, TensorProto.FLOAT16),
    "FP32": (np.float32, TensorProto.FLOAT),
    "FP64": (np.float64, TensorProto.DOUBLE),
}


def blob(path: Path) -> dict:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}


def stage(folder: Path, manifest: dict, files: dict) -> str:
    """Writes files and manifest; gives the manifest's digest."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    named = {"model": "model.onnx", "golden": "golden.json", "profile": "profile.json"}
    manifest["files"] = {k: blob(folder / v) for k, v in named.items() if (folder / v).exists()}
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def digits(folder: Path, version: int = 2) -> str:
    """The committed model."""
    source = MODELS / f"v{version}"
    recipe = tomllib.loads((source / "bundle.toml").read_text())
    keep = ("family", "version", "kind", "inputs", "outputs", "steps", "labels", "limits", "resources", "lineage")
    manifest = {"schema": "dunlin.manifest/1"} | {k: recipe[k] for k in keep if k in recipe}
    names = ("model.onnx", "golden.json", "profile.json")
    return stage(folder, manifest, {name: (source / name).read_bytes() for name in names})


def echo(folder: Path, shape: list) -> str:
    """A model that gives each of its inputs back, one of every element type."""
    tensors = lambda kind: [
        helper.make_tensor_value_info(f"{kind}_{name}", onnx_type, shape)
        for name, (_, onnx_type) in DTYPES.items()
    ]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in DTYPES]
    graph = helper.make_graph(nodes, "echo", tensors("in"), tensors("out"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    specs = lambda kind: [{"name": f"{kind}_{name}", "dtype": name, "shape": shape} for name in DTYPES]
    manifest = {
        "schema": "dunlin.manifest/1",
        "kind": "model",
        "family": "echo",
        "version": 7,
        "inputs": specs("in"),
        "outputs": specs("out"),
        "steps": {},
        "labels": [],
        "limits": {"tolerance_abs": 0.0, "latency_budget_ms": 1000},
        "resources": {"ram_bytes": 0, "disk_bytes": 0, "arch": ["any"], "agent_min": "0.1.0"},
        "lineage": {},
    }
    return stage(folder, manifest, {"model.onnx": model.SerializeToString(), "golden.json": b"{}"})


class Worker:
    """Serves one bundle over REST on a socket and a loopback port, and over gRPC on one of them."""

    def __init__(self, stage_into, grpc_over_socket=False):
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        self.socket, self.grpc_socket = path / "rest.sock", path / "grpc.sock"
        self.slot = path / "slot"
        self.slot.mkdir()
        bundle = stage_into(self.slot)
        self.process = subprocess.Popen(
            [PROGRAM, "agent", "infer", "--socket", self.socket, "--listen", "127.0.0.1:0"]
            + ["--models", self.slot]
            + ["--grpc-listen", self.grpc_socket if grpc_over_socket else "127.0.0.1:0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        listening = self.hear("listening")
        self.rest, self.grpc = listening["tcp"], listening["grpc"]
        self.say({"activate": {"slot": str(self.slot), "bundle": bundle}})
        self.hear("activated")

    def say(self, word):
        self.process.stdin.write(json.dumps(word) + "\n")
        self.process.stdin.flush()

    def hear(self, wanted):
        """Waits for a word of this kind; another than windows and progress is a fault."""
        for line in self.process.stdout:
            word = json.loads(line)
            if isinstance(word, dict) and wanted in word:
                return word[wanted]
            if not (isinstance(word, dict) and {"window", "progress"} & word.keys()):
                raise AssertionError(f"expected {wanted}, got {line}")
        raise AssertionError(f"the worker ended before it said {wanted}")

    def stop(self):
        self.process.stdin.close()
        for _ in self.process.stdout:
            pass
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        self.folder.cleanup()
        if status != 0:
            raise AssertionError(f"the worker ended with status {status}")


def golden(case: int) -> tuple:
    """Input and expected output of a golden case of the committed model."""
    cases = json.loads((MODELS / "v2/golden.json").read_text())["cases"]
    pixels = np.array(cases[case]["inputs"]["pixels"], dtype=np.float32).reshape(1, 64)
    return pixels, np.array(cases[case]["outputs"]["probabilities"]).reshape(1, 10)


def sample(dtype: str, shape: list) -> np.ndarray:
    """Values at the ends of an element type."""
    kind = DTYPES[dtype][0]
    count = int(np.prod(shape))
    if dtype == "BOOL":
        values = [at % 2 == 0 for at in range(count)]
    elif np.issubdtype(kind, np.integer):
        info = np.iinfo(kind)
        values = ([info.min, info.max, 0, 1] * count)[:count]
    else:
        info = np.finfo(kind)
        values = ([float(info.max), float(info.tiny), -1.5, 0.0] * count)[:count]
    return np.array(values, dtype=kind).reshape(shape)
