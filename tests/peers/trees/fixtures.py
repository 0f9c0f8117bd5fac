"""Writes small cases, each a model, rows and ONNX Runtime's answers, for tests without Python."""

import shutil
import sys
from pathlib import Path

import numpy as np

import generated
import peer
import trained

BYTES_MAX = 6000


def cases():
    random = np.random.default_rng(3)
    for name, (kind, dtype), arguments in generated.variants():
        wanted = {
            "regressor float32 SUM 1 base 0 NONE", "regressor float32 AVERAGE 2 base 2 NONE",
            "regressor float64 MIN 3 base 3 SOFTMAX", "regressor float32 MAX 2 base 0 LOGISTIC",
            "regressor float32 SUM 3 base 0 SOFTMAX_ZERO", "regressor float32 SUM 1 base 1 PROBIT",
            "classifier float32 two [0] base 0 NONE False", "classifier float32 two [0] base 0 NONE True",
            "classifier float32 two [0] base 0 LOGISTIC True", "classifier float64 two [0] base 1 LOGISTIC True",
            "classifier float32 two [1] base 2 LOGISTIC True", "classifier float32 two None base 0 NONE True",
            "classifier float32 two None base 2 SOFTMAX True", "classifier float32 three None base 3 SOFTMAX True",
            "classifier int64 three None base 0 NONE True", "classifier float32 one None base 1 NONE True",
            "classifier float32 texts None base 0 SOFTMAX True",
        }
        if name in wanted:
            proto = generated.ensemble(
                random, kind, dtype, trees=3, uniform=len(name) % 2 == 0, missing=len(name) % 3 == 0,
                probability="PROBIT" in name, as_tensor=dtype == "float64", **arguments)
            yield peer.case(name, proto, generated.rows(random, dtype, 24))
    small = {"stump", "logistic two", "standard, logistic", "imputed, logistic", "unit, logistic",
             "columns, logistic", "one-hot, forest", "tree wine"}
    for source in [trained.scikit_models(), trained.pipelines()]:
        for name, model, table in source:
            if name in small:
                proto = trained.exported(model, table)
                yield peer.case(name, proto, trained.rows(table, proto, 24, odd=False))


def main():
    folder = Path(sys.argv[1])
    for old in folder.glob("*/model.onnx"):
        shutil.rmtree(old.parent)
    for one in cases():
        if len(one.model) > BYTES_MAX:
            raise SystemExit(f"{one.name}: {len(one.model)} bytes, at most {BYTES_MAX}")
        name = "-".join("".join(c if c.isalnum() else " " for c in one.name).lower().split())
        peer.write(folder / name, one)
        (folder / name / "output.bin").write_bytes(peer.expected_bytes(one))
        print(f"{name}: {len(one.model)} bytes")


main()
