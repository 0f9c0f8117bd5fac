"""Dunlin's own code, asked through the program `tests/examples/study.rs`; and the bins of a reference."""

import json
import math
import os
import subprocess

import numpy as np

_program = None


def program():
    """One program a process."""
    global _program
    if _program is None:
        _program = Program(os.environ["DUNLIN_STUDY_PROGRAM"])
    return _program


class Program:
    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, kind, values, **question):
        values = np.ascontiguousarray(values, "<f8")
        line = json.dumps({"kind": kind, "values": values.size} | question)
        self.process.stdin.write(line.encode() + b"\n" + values.tobytes())
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the program ended at a question of kind {kind}")
        return json.loads(answer)


def watch(signals):
    """What a device's detectors say to one signal, or to entropy and confidence: (index, detector, width)."""
    if len(signals) == 1:
        # A model with a single score has no entropy.
        signals = [np.full(len(signals[0]), np.nan), signals[0]]
    told = program().ask("watch", np.column_stack(signals))["detections"]
    return [(at, detector, width) for at, detector, _, width in told]


# --- rows: features, then confidence, entropy, class and latency --------------------------------


def feature_edges(column):
    """Quantiles i/40 and a point bin for every heavy atom, as tests/models/train_digits.py makes them."""
    edges = set(np.quantile(column, np.arange(40) / 40)) | {np.nextafter(column.max(), np.inf)}
    values, counts = np.unique(column, return_counts=True)
    for atom in values[counts > len(column) / 40]:
        edges |= {atom, np.nextafter(atom, np.inf)}
    return sorted(float(edge) for edge in edges)


def output_edges(last):
    edges = np.arange(21) / 20 * last
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return [float(edge) for edge in edges]


def set_reference(rows, classes):
    features = rows.shape[1] - 4
    program().ask(
        "reference",
        rows,
        classes=classes,
        features=[feature_edges(rows[:, at]) for at in range(features)],
        confidence=output_edges(1.0),
        entropy=output_edges(math.log(classes)),
    )


def fleet(rows, device_rows, window_rows=600):
    return program().ask("fleet", rows, device_rows=[int(n) for n in device_rows], window_rows=window_rows)


def features(answer):
    """Whether each feature drifted: by its PSI, or by its share of values out of range."""
    return ["alarm" in statuses for statuses in zip(answer["psi"], answer["out_of_range"])]


def wire(rows):
    return program().ask("wire", rows)


def with_outputs(rng, features, probabilities=None):
    """Features with what a model made of them; without a model, a two-class one that never changes."""
    count = len(features)
    if probabilities is None:
        first = rng.beta(5, 2, count)
        probabilities = np.column_stack([first, 1 - first])
    safe = np.where(probabilities > 0, probabilities, 1.0)
    entropy = np.maximum(-(safe * np.log(safe)).sum(axis=1), 0.0)
    latency_us = np.rint(rng.lognormal(math.log(4000), 0.2, count))
    return np.column_stack([features, probabilities.max(axis=1), entropy, probabilities.argmax(axis=1), latency_us])
