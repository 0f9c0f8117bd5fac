#!/usr/bin/env python3
"""Writes the files of `digits-png`: version 2 of `digits` behind processing steps, so that an application
sends a picture of a digit as PNG or JPEG, of any size, and gets the likeliest digits by name.

Golden outputs come from Pillow and ONNX Runtime.
"""

import base64
import io
import json
import pathlib

import numpy as np
import onnxruntime
import PIL
from PIL import Image
from sklearn.datasets import load_digits

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "digits-png"
MODEL = HERE / "digits/v2/model.onnx"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TOP = 3


def picture(pixels, height, width, kind, colour):
    """A photograph of sorts: 8 by 8 grey values 0..16, enlarged."""
    grey = Image.fromarray(np.rint(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
    large = grey.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    (large.convert("RGB") if colour else large).save(out, kind)
    return out.getvalue()


def answer(session, raw):
    """What the device must answer: the signed steps in Pillow and NumPy, the graph in ONNX Runtime."""
    small = Image.open(io.BytesIO(raw)).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    pixels = (np.asarray(small).astype(np.float32) / np.float32(255)).reshape(1, 64)
    probabilities = session.run(["probabilities"], {"pixels": pixels})[0]
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :TOP]
    return {"digit": [NAMES[i] for i in order[0]],
            "score": np.take_along_axis(probabilities, order, -1).ravel().astype(float).tolist()}


def main():
    images = load_digits().data
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    cases = []
    for at, (height, width, kind, colour) in enumerate([
            (8, 8, "PNG", False), (64, 64, "PNG", False), (120, 90, "PNG", True), (33, 47, "PNG", False),
            (64, 64, "JPEG", False), (96, 96, "JPEG", True)]):
        raw = picture(images[at * 7], height, width, kind, colour)
        cases.append({"name": f"{kind} of {width} by {height}",
                      "inputs": {"image": {"base64": [base64.b64encode(raw).decode()]}},
                      "outputs": answer(session, raw)})
    document = {"schema": "dunlin.golden/1", "cases": cases,
                "producer": f"Pillow {PIL.__version__}, onnxruntime {onnxruntime.__version__}"}
    path = OUT / "golden.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
