"""What the machines are asked: bundles staged as a device has them, requests, and how near the answers
must be to each other."""

import base64
import hashlib
import json
import math
import os
import struct
import tomllib
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
MODELS = REPOSITORY / "tests/models"
TABULAR = REPOSITORY / "agent/tests/tabular"

# Elements' letters in the struct module.
LETTERS = {
    "BOOL": "?", "UINT8": "B", "INT8": "b", "UINT16": "H", "INT16": "h", "UINT32": "I", "INT32": "i",
    "UINT64": "Q", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}
KEPT = ("family", "version", "kind", "inputs", "outputs", "steps", "application", "labels", "limits",
        "resources", "lineage")


@dataclass
class Bundle:
    """A bundle's files and manifest, what to ask it, and what is known to be right."""

    name: str
    manifest: dict
    files: dict
    # Each a dictionary of inputs by name, and the stream's name or None.
    requests: list
    # Floats of two machines may differ by this much, relatively where they are above one. Everything else
    # is equal.
    tolerance: float
    # Answers of the runtime that the model comes from, for as many requests as there are.
    expected: list
    expected_tolerance: float = 0.0
    # Golden cases that a trial of it runs.
    golden: int = 0

    def stage(self, folder: Path) -> str:
        """Writes the bundle into a folder; the manifest's digest."""
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        named = {"model": "model.onnx", "golden": "golden.json", "profile": "profile.json"}
        blob = lambda data: {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}
        files = {key: blob(self.files[name]) for key, name in named.items() if name in self.files}
        text = json.dumps(self.manifest | {"files": files}).encode()
        (folder / "manifest.json").write_bytes(text)
        return hashlib.sha256(text).hexdigest()

    def inputs(self) -> list:
        """What applications send: the graph's inputs unless the bundle says otherwise."""
        return self.manifest.get("application", {}).get("inputs") or self.manifest["inputs"]


def unpack(dtype: str, data: bytes) -> list:
    return [value for (value,) in struct.iter_unpack("<" + LETTERS[dtype], data)]


def pack(dtype: str, values: list) -> bytes:
    if dtype == "BYTES":
        return b"".join(struct.pack("<I", len(v)) + v for v in values)
    return struct.pack(f"<{len(values)}{LETTERS[dtype]}", *values)


def _manifest(recipe: dict) -> dict:
    return {"schema": "dunlin.manifest/1"} | {k: recipe[k] for k in KEPT if k in recipe}


def _stream(case: dict, keeps: bool):
    """A case that names no stream is one by itself, where the model keeps a state."""
    return case.get("stream") or (case["name"] if keeps else None)


def _golden(data: bytes, keeps: bool) -> tuple:
    """Requests and answers of golden cases; of a model that `keeps` a state or does not."""
    def values(tensor):
        if isinstance(tensor, dict):
            return [base64.b64decode(v) for v in tensor["base64"]]
        return [v.encode() if isinstance(v, str) else v for v in tensor]

    cases = json.loads(data)["cases"]
    requests = [({k: values(v) for k, v in c["inputs"].items()}, _stream(c, keeps)) for c in cases]
    return requests, [{k: values(v) for k, v in c["outputs"].items()} for c in cases]


def packed(folder: Path, tolerance: float, more=()) -> Bundle:
    """A folder as `dunlin bundle pack` takes it, asked its golden cases, then more."""
    recipe = tomllib.loads((folder / "bundle.toml").read_text())
    names = {"model.onnx": "model", "golden.json": "golden", "profile.json": "profile"}
    files = {name: (folder / recipe[key]).read_bytes() for name, key in names.items() if key in recipe}
    requests, expected = _golden(files["golden.json"], "streams" in recipe.get("steps", {}))
    limit = recipe["limits"]["tolerance_abs"]
    return Bundle(folder.name, _manifest(recipe), files, requests + list(more), tolerance, expected, limit, len(expected))


def _digits() -> list:
    field = (MODELS / "digits/field.bin").read_bytes()
    # 64 pixels, then the label.
    rows = [({"pixels": list(field[at : at + 64])}, None) for at in range(0, len(field), 65)]
    versions = []
    for version in (1, 2, 3):
        bundle = packed(MODELS / f"digits/v{version}", 1e-5, rows)
        bundle.name = f"digits v{version}"
        versions.append(bundle)
    return versions


def _take(data: bytes, specs: list) -> tuple:
    """The first tensors of these bytes, and what is left."""
    found = {}
    for spec in specs:
        size = math.prod(spec["shape"]) * struct.calcsize("<" + LETTERS[spec["dtype"]])
        found[spec["name"]], data = unpack(spec["dtype"], data[:size]), data[size:]
    return found, data


def _calls(data: bytes, specs: list) -> list:
    found = []
    while data:
        call, data = _take(data, specs)
        found.append(call)
    return found


def _case(folder: Path, family: str, tolerance: float) -> Bundle:
    """A folder with `model.onnx`, `case.json` (its inputs and outputs), and both for some calls: `input.bin` and
    `output.bin`, the answers of ONNX Runtime."""
    case = json.loads((folder / "case.json").read_text())
    manifest = {
        "schema": "dunlin.manifest/1", "kind": "model", "family": family, "version": 1, "steps": {}, "labels": [],
        "inputs": case["inputs"], "outputs": case["outputs"], "lineage": {},
        "limits": {"tolerance_abs": case.get("tolerance", tolerance), "latency_budget_ms": 600_000},
        "resources": {"ram_bytes": 0, "disk_bytes": 0, "arch": ["any"], "agent_min": "0.1.0"},
    }
    requests = _calls((folder / "input.bin").read_bytes(), case["inputs"])
    expected = _calls((folder / "output.bin").read_bytes(), case["outputs"])
    cases = [{"name": "first", "inputs": requests[0], "outputs": expected[0]}]
    golden = {"schema": "dunlin.golden/1", "producer": "onnxruntime", "cases": cases}
    numbers = [n for values in requests[0].values() for n in values]
    # JSON has no NaN, and takes its time under an emulator.
    has_golden = len(numbers) < 50_000 and all(math.isfinite(n) for n in numbers) and "tolerance" in case
    files = {"model.onnx": (folder / "model.onnx").read_bytes(),
             "golden.json": json.dumps(golden).encode() if has_golden else b"{}"}
    return Bundle(folder.name, manifest, files, [(r, None) for r in requests], tolerance, expected,
                  case.get("tolerance", tolerance), 1 if has_golden else 0)


def committed() -> list:
    """The bundles in the repository: dense layers, pictures, a state, and trees and other tabular models."""
    own = _digits() + [packed(MODELS / "digits-png", 1e-5), packed(MODELS / "running-level", 1e-6)]
    return own + [_case(folder, "tabular", 2e-6) for folder in sorted(TABULAR.iterdir())]


def zoo() -> list:
    """Models of other people's, as zoo_cases.py writes them."""
    folders = sorted((Path(os.environ["DUNLIN_ARM_ZOO"]) / "cases").iterdir())
    return [_case(folder, folder.name, 1e-5) for folder in folders]


def difference(got: dict, wanted: dict, dtypes: dict) -> float:
    """How far two answers are apart; infinity if in anything but floats."""
    worst = 0.0
    for name, values in wanted.items():
        mine = got.get(name, [])
        if len(mine) != len(values):
            return math.inf
        for a, b in zip(mine, values):
            if dtypes[name] in ("FP16", "FP32", "FP64"):
                if not (a == b or (math.isnan(a) and math.isnan(b))):
                    apart = abs(a - b) / max(abs(b), 1.0)
                    worst = math.inf if math.isnan(apart) else max(worst, apart)
            elif a != b:
                return math.inf
    return worst
