"""Cases: a model and rows, answered by ONNX Runtime here and by Dunlin's engine in `run_graph`."""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

DTYPES = {
    np.dtype("float32"): "FP32",
    np.dtype("float64"): "FP64",
    np.dtype("int64"): "INT64",
    np.dtype("int32"): "INT32",
    np.dtype("bool"): "BOOL",
}
NUMPY = {name: dtype for dtype, name in DTYPES.items()}


@dataclass
class Case:
    """One model, asked `calls` times. Outputs that hold text are left out."""

    name: str
    model: bytes
    calls: list[np.ndarray]
    expected: list[dict] = field(default_factory=list)

    def specs(self):
        input_name, rows = session(self.model).get_inputs()[0].name, self.calls[0]
        inputs = [spec(input_name, rows)]
        return {"inputs": inputs, "outputs": [spec(n, v) for n, v in self.expected[0].items()]}


def spec(name, array):
    return {"name": name, "dtype": DTYPES[array.dtype], "shape": list(array.shape)}


def session(model):
    options = onnxruntime.SessionOptions()
    # One thread: the sums of several are rounded otherwise.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def as_array(value):
    """What ZipMap makes, a dictionary a row, is its table; text is none."""
    if isinstance(value, list):
        value = np.array([list(row.values()) for row in value], dtype=np.float32)
    return None if value.dtype.kind in "OUS" else value


def answer(model, calls):
    """ONNX Runtime's outputs, call by call."""
    runtime = session(model)
    names = [output.name for output in runtime.get_outputs()]
    input_name = runtime.get_inputs()[0].name
    answers = []
    for rows in calls:
        values = [as_array(value) for value in runtime.run(None, {input_name: rows})]
        answers.append({n: v for n, v in zip(names, values) if v is not None})
    return answers


def case(name, model, *calls):
    model = model if isinstance(model, bytes) else model.SerializeToString()
    return Case(name, model, list(calls), answer(model, calls))


def write(folder, one):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(one.model)
    (folder / "case.json").write_text(json.dumps(one.specs(), indent=1) + "\n")
    (folder / "input.bin").write_bytes(b"".join(np.ascontiguousarray(c).tobytes() for c in one.calls))


def expected_bytes(one):
    arrays = [value for answer in one.expected for value in answer.values()]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def run_graph(*arguments):
    program = Path(os.environ["DUNLIN_EXAMPLES"]) / "run_graph"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"run_graph: {done.stderr}")
    return done.stdout


def ask_dunlin(folder, cases):
    """Dunlin's outputs of every case, call by call; or the error's text."""
    for at, one in enumerate(cases):
        write(folder / f"{at}", one)
    run_graph(*[folder / f"{at}" for at in range(len(cases))])
    return [read(folder / f"{at}", one) for at, one in enumerate(cases)]


def read(folder, one):
    if (folder / "error.txt").exists():
        return (folder / "error.txt").read_text()
    data = (folder / "output.bin").read_bytes()
    answers, at = [], 0
    for expected in one.expected:
        answer = {}
        for name, array in expected.items():
            flat = np.frombuffer(data, array.dtype, array.size, at)
            answer[name], at = flat.reshape(array.shape), at + array.nbytes
        answers.append(answer)
    if at != len(data):
        raise RuntimeError(f"{one.name}: {len(data)} bytes of output, expected {at}")
    return answers


def differences(one, answers, tolerance):
    """What differs: classes at all, scores by more than the tolerance (relative above one)."""
    if isinstance(answers, str):
        return [f"{one.name}: {answers}"]
    found = []
    for call, (expected, got) in enumerate(zip(one.expected, answers)):
        for name, want in expected.items():
            have = got[name]
            if want.dtype.kind == "f":
                scale = np.maximum(1.0, np.abs(want, dtype=np.float64))
                with np.errstate(invalid="ignore"):
                    near = np.abs(want.astype(np.float64) - have) <= tolerance * scale
                same = near | (want == have) | (np.isnan(want) & np.isnan(have))
            else:
                same = want == have
            if not same.all():
                where = np.argwhere(~same)
                first = tuple(where[0])
                found.append(
                    f"{one.name}: call {call}, {name}{list(first)}: expected {want[first]!r}, "
                    f"got {have[first]!r}; {len(where)} of {want.size} differ"
                )
    return found
