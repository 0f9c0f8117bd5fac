"""Made-up ensembles and single operators: Dunlin's engine answers as ONNX Runtime does."""

import tempfile
import unittest
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

import generated
import peer

TREES = 1e-6


class Generated(unittest.TestCase):
    maxDiff = None

    def compare(self, cases, tolerance=TREES, without=()):
        with tempfile.TemporaryDirectory() as folder:
            answers = peer.ask_dunlin(Path(folder), cases)
        found = []
        for one, answer in zip(cases, answers):
            if one.name in without and not isinstance(answer, str):
                for expected in one.expected:
                    expected.pop("scores")
            found += peer.differences(one, answer, tolerance)
        self.assertEqual(found, [], f"{len(found)} differences in {len(cases)} cases")

    def test_every_combination_of_attributes(self):
        cases, without = [], set()
        for seed, (name, (kind, dtype), arguments) in enumerate(generated.variants()):
            random = np.random.default_rng(seed)
            proto = generated.ensemble(
                random, kind, dtype, uniform=seed % 3 > 0, missing=seed % 2 == 0,
                probability=arguments["transform"] == "PROBIT" and seed % 4 < 2,
                as_tensor=dtype == "float64" and seed % 5 < 2, **arguments)
            rows = generated.rows(random, dtype, 60)
            cases.append(peer.case(name, proto, rows))
            if generated.undefined(arguments):
                without.add(name)
        self.compare(cases, without=without)

    def test_many_rows_of_large_forests_one_by_one_and_together(self):
        cases = []
        for seed in range(24):
            random = np.random.default_rng(1000 + seed)
            targets = [1, 2, 3, 10, 100, 600][seed % 6]
            regression = seed % 2 == 0
            of = {"targets": targets} if regression else {"classes": list(range(max(3, targets)))}
            proto = generated.ensemble(
                random, "TreeEnsembleRegressor" if regression else "TreeEnsembleClassifier",
                "float64" if seed % 8 == 7 else "float32", trees=[1, 7, 8, 9, 100][seed % 5],
                missing=seed % 3 == 0, uniform=seed % 4 > 0, **of)
            dtype = "float64" if seed % 8 == 7 else "float32"
            rows = generated.rows(random, dtype, 500)
            cases.append(peer.case(f"{seed} together", proto, rows))
            singles = [rows[at:at + 1] for at in range(100)]
            cases.append(peer.case(f"{seed} one by one", proto, *singles))
            few = [rows[at:at + 1 + at % 20] for at in range(60)]
            for size in {len(f) for f in few}:
                same = [f for f in few if len(f) == size]
                cases.append(peer.case(f"{seed} by {size}", proto, *same))
        self.compare(cases)

    def test_the_operators_around_models(self):
        random = np.random.default_rng(5)
        floats, whole = generated.rows(random, "float32", 300), generated.rows(random, "int64", 300)
        wide = generated.rows(random, "float64", 300)
        cases = []

        def add(kind, rows, element=TensorProto.FLOAT, version=3, **attributes):
            output = helper.make_tensor_value_info("y", element, None)
            outputs = [output]
            if kind == "LinearClassifier":
                text = "classlabels_strings" in attributes
                kind_of_label = TensorProto.STRING if text else TensorProto.INT64
                outputs = [helper.make_tensor_value_info("label", kind_of_label, [None]), output]
            proto = generated.model(kind, attributes, rows.dtype.name, outputs, version)
            cases.append(peer.case(f"{kind} {rows.dtype} {attributes}", proto, rows))

        per_column = [0.5, -1.0, 2.0, 0.25]
        for rows in [floats, wide, whole, whole.astype("int32")]:
            add("Scaler", rows, offset=per_column, scale=[2.0, 0.5, -1.0, 3.0])
            add("Scaler", rows, offset=[0.5], scale=[0.1])
            for norm in ["MAX", "L1", "L2"]:
                add("Normalizer", rows, norm=norm)
        add("Normalizer", np.zeros((3, 4), np.float32), norm="L2")
        for replaced in [float("nan"), 0.0, 1.0]:
            add("Imputer", floats, imputed_value_floats=per_column, replaced_value_float=replaced)
            add("Imputer", floats, imputed_value_floats=[9.0], replaced_value_float=replaced)
        add("Imputer", whole, TensorProto.INT64, imputed_value_int64s=[5, 6, 7, 8],
            replaced_value_int64=-1)
        for threshold in [0.0, 0.3, -1.5]:
            # ONNX Runtime refuses NaN.
            add("Binarizer", np.nan_to_num(floats), threshold=threshold)
        add("OneHotEncoder", whole, cats_int64s=[-1, 0, 2, 3], zeros=1)
        add("OneHotEncoder", np.clip(np.nan_to_num(floats), -9, 9), cats_int64s=[0, 1, 2], zeros=1)
        nan = float("nan")
        add("LabelEncoder", whole, TensorProto.FLOAT, keys_int64s=[0, 1, 2, 2],
            values_floats=[0.5, 1.5, 2.5, 3.5], default_float=-7.0)
        add("LabelEncoder", whole, TensorProto.INT64, keys_int64s=[0, 1], values_int64s=[10, 20],
            default_int64=3)
        add("LabelEncoder", floats, TensorProto.INT64, version=4, keys_floats=[0.0, 1.0, nan],
            values_int64s=[1, 2, 3])
        # PROBIT is steep: it makes much of how a dot product is rounded.
        for transform in [t for t in generated.TRANSFORMS if t != "PROBIT"]:
            for classes, models, kind in [([4, 8, 6], 3, "ints"), ([3, 7], 1, "ints"),
                                          ([3, 7], 2, "ints"), (["a", "b"], 1, "strings")]:
                add("LinearClassifier", floats,
                    coefficients=[float(x) for x in random.normal(size=4 * models)],
                    intercepts=[float(x) for x in random.normal(size=models)],
                    post_transform=transform, **{f"classlabels_{kind}": classes})
        self.compare(cases, 2e-6)


if __name__ == "__main__":
    unittest.main()
