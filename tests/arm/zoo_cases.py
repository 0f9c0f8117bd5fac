"""Writes small models of the zoo as cases: the model, inputs, ONNX Runtime's answers.

    zoo_cases.py FOLDER

Needs tests/peers/zoo, its requirements and PyPI. What is written already stays.
"""

import json
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests/peers/zoo"))

import models  # noqa: E402  pylint: disable=wrong-import-position
from catalogue import MODELS  # noqa: E402  pylint: disable=wrong-import-position

# Each loads, and runs under an emulator in seconds.
NAMES = ("magika", "ocr-classifier", "ocr-recogniser", "silero-ifless", "dnsmos-p808")
CALLS = 3
ELEMENT = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
DTYPE = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


def file_bytes(call: int, count: int) -> np.ndarray:
    """What magika makes of a file: the first 1024 bytes and the last, 256 where there is none."""
    source = [Path(__file__), REPOSITORY / "Cargo.lock", REPOSITORY / "tests/models/digits/v2/model.onnx"][call]
    half, data = count // 2, source.read_bytes()
    pad = [256] * half
    return np.array((list(data[:half]) + pad)[:half] + (pad + list(data[-half:]))[-half:])


def voice(random, call: int, count: int) -> np.ndarray:
    """A tone that grows, with overtones and noise, at 16 kHz."""
    time = (np.arange(count) + call * count) / 16000
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in (1, 2, 3, 4))
    return 0.2 * (call + 1) * tone + 0.01 * random.standard_normal(count)


def value(name: str, model: str, dtype: str, shape: tuple, call: int, random) -> np.ndarray:
    count = int(np.prod(shape))
    if model == "magika":
        values = file_bytes(call, count)
    elif name == "sr":
        values = np.array(16000)
    elif model == "silero-ifless":
        values = voice(random, call, count) if name == "input" else 0.1 * random.standard_normal(count)
    elif model == "dnsmos-p808":
        # A mel spectrogram in decibels, scaled as the package does.
        values = (np.clip(random.normal(-45, 20, count), -80, 0) + 40) / 40
    else:
        values = random.uniform(-1, 1, count)
    return values.astype(ELEMENT[dtype]).reshape(shape)


def write(folder: Path, name: str, path: Path):
    """One model's case; the answers are the runtime's, with one thread."""
    import onnxruntime  # pylint: disable=import-outside-toplevel

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(20)
    wanted = MODELS[name].outputs or None
    given, answered, outputs = [], [], None
    for call in range(CALLS):
        inputs = {n: value(n, name, dtype, shape, call, random) for n, (dtype, shape) in MODELS[name].inputs.items()}
        answers = session.run(wanted, inputs)
        names = wanted or [o.name for o in session.get_outputs()]
        kept = [(n, a) for n, a in zip(names, answers) if isinstance(a, np.ndarray) and a.dtype.name in DTYPE]
        outputs = [{"name": n, "dtype": DTYPE[a.dtype.name], "shape": list(a.shape)} for n, a in kept]
        given += [a.tobytes() for a in inputs.values()]
        answered += [a.tobytes() for _, a in kept]
    specs = [{"name": n, "dtype": d, "shape": list(s)} for n, (d, s) in MODELS[name].inputs.items()]
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(path.read_bytes())
    (folder / "input.bin").write_bytes(b"".join(given))
    (folder / "output.bin").write_bytes(b"".join(answered))
    case = {"inputs": specs, "outputs": outputs, "tolerance": MODELS[name].tolerance}
    # Last: the folder is whole when it is there.
    (folder / "case.json").write_text(json.dumps(case))


def main():
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        folder = root / "cases" / name
        if not (folder / "case.json").exists():
            if folder.exists():
                raise SystemExit(f"{folder}: not whole; remove it")
            write(folder, name, models.provide(root, name))
            print(f"{name}: written", flush=True)


main()
