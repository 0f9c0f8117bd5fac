"""`recurrent.py DUNLIN_AGENT`: a real recurrent model, silero-vad, fed as an application feeds it: 512 samples
of 16 bits a call. Context, state and sample rate are the device's business. Two streams of many calls must
give what ONNX Runtime gives when its caller keeps context and state by hand.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnxruntime

PACKAGE, FILE = "silero-vad==6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx"
HOP, CONTEXT, CALLS = 512, 64, 40


def fetch(folder):
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                    "--no-deps", "--dest", folder, PACKAGE], check=True)
    wheel = next(pathlib.Path(folder).glob("*.whl"))
    return zipfile.ZipFile(wheel).read(FILE)


def sound(rng):
    """A voice of sorts: harmonics of a wandering pitch through three formants, in syllables, with pauses."""
    t = np.arange(HOP * CALLS) / 16000
    pitch = 110 + 25 * np.sin(2 * np.pi * 2.3 * t) + 8 * np.sin(2 * np.pi * 5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    vowel = 1 + 0.25 * np.sin(2 * np.pi * 3.1 * t)
    formants = ((650 * vowel, 90, 1.0), (1300 / vowel, 120, 0.6), (2600 * vowel, 180, 0.3))
    voice = np.zeros_like(t)
    for n in range(1, 40):
        gain = sum(a / (1 + ((n * pitch - middle) / width) ** 2) for middle, width, a in formants)
        voice += gain * np.sin(n * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3.7 * t) + 0.3, 0, 1)
    voice *= syllables * (np.sin(2 * np.pi * 0.7 * t) > -0.3)
    noise = rng.normal(0, 60, t.size)
    return (voice / np.abs(voice).max() * 12000 + noise).clip(-32768, 32767).astype(np.int16)


def golden(raw):
    session = onnxruntime.InferenceSession(raw)
    cases = []
    for stream, seed in (("a", 1), ("b", 2)):
        samples = sound(np.random.default_rng(seed))
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32)
        for call in range(CALLS):
            part = samples[call * HOP:(call + 1) * HOP]
            x = np.concatenate([context, part[None].astype(np.float32) / np.float32(32768)], 1)
            context = x[:, -CONTEXT:]
            score, state = session.run(["output", "stateN"],
                                       {"input": x, "state": state, "sr": np.array(16000, np.int64)})
            cases.append({"name": f"{stream} {call}", "stream": stream,
                          "inputs": {"samples": part.tolist()},
                          "outputs": {"output": score.ravel().astype(float).tolist()}})
    # The streams' calls in turn.
    order = [case for pair in zip(cases[:CALLS], cases[CALLS:]) for case in pair]
    return json.dumps({"schema": "dunlin.golden/1", "producer": f"onnxruntime {onnxruntime.__version__}",
                       "cases": order}).encode()


def manifest(raw, cases):
    def tensor(name, dtype, shape):
        return {"name": name, "dtype": dtype, "shape": shape}

    def blob(data):
        return {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}

    return json.dumps({
        "schema": "dunlin.manifest/1", "kind": "model", "family": "speech", "version": 1,
        "inputs": [tensor("input", "FP32", [1, HOP + CONTEXT]), tensor("state", "FP32", [2, 1, 128]),
                   tensor("sr", "INT64", [])],
        "outputs": [tensor("output", "FP32", [1, 1]), tensor("stateN", "FP32", [2, 1, 128])],
        "application": {"inputs": [tensor("samples", "INT16", [1, HOP])]},
        "steps": {"pre": [
            {"pcm_to_float": {"tensor": "samples"}},
            {"sliding_window": {"tensor": "samples", "length": HOP + CONTEXT, "into": "input"}},
            {"constant": {"tensor": "sr", "dtype": "INT64", "shape": [], "values": [16000]}},
            {"carry": {"tensor": "state", "from": "stateN"}}]},
        "limits": {"tolerance_abs": 1e-4, "latency_budget_ms": 1000},
        "resources": {"ram_bytes": 1, "disk_bytes": 1, "arch": ["any"], "agent_min": "0.1.0"},
        "files": {"model": blob(raw), "golden": blob(cases)}})


def main():
    with tempfile.TemporaryDirectory() as folder:
        slot = pathlib.Path(folder)
        raw = fetch(folder)
        cases = golden(raw)
        scores = [c["outputs"]["output"][0] for c in json.loads(cases)["cases"]]
        if max(scores) < 0.9 or min(scores) > 0.1:
            sys.exit(f"the sound says nothing: scores {min(scores):.3f} to {max(scores):.3f}")
        (slot / "model.onnx").write_bytes(raw)
        (slot / "golden.json").write_bytes(cases)
        (slot / "manifest.json").write_text(manifest(raw, cases), encoding="utf-8")
        trial = subprocess.run([sys.argv[1], "infer", "--trial", folder], stdout=subprocess.PIPE, check=True)
    report = json.loads(trial.stdout)
    print(f"{PACKAGE}, {len(scores)} calls in two streams, scores {min(scores):.2f} to {max(scores):.2f}: "
          f"{json.dumps(report)}")
    sys.exit(0 if report["outcome"] == "passed" else 1)


if __name__ == "__main__":
    main()
