"""Trained models: Dunlin's engine answers as ONNX Runtime does, row by row."""

import tempfile
import unittest
from pathlib import Path

import peer
import trained

TREES, PIPELINES = 1e-6, 1e-5


class Trained(unittest.TestCase):
    maxDiff = None

    def compare(self, cases, tolerance):
        with tempfile.TemporaryDirectory() as folder:
            answers = peer.ask_dunlin(Path(folder), cases)
        found = []
        for one, answer in zip(cases, answers):
            found += peer.differences(one, answer, tolerance)
        rows = sum(len(call) for one in cases for call in one.calls)
        print(f"{len(cases)} cases, {rows} rows, {len(found)} differences", flush=True)
        self.assertEqual(found, [])

    def cases(self, name, proto, table, odd=True):
        rows = trained.rows(table, proto, odd=odd)
        together = peer.case(name, proto, rows)
        yield together
        yield peer.case(f"{name}, one by one", proto, *[rows[at:at + 1] for at in range(50)])

    def test_scikit_learn(self):
        cases = []
        for name, model, table in trained.scikit_models():
            proto = trained.exported(model, table)
            cases += self.cases(name, proto, table, odd=name != "isolation")
            if name in {"forest iris", "forest cancer", "boosting cancer"}:
                without = trained.exported(model, table, **trained.plain(model))
                cases += self.cases(f"{name}, no ZipMap", without, table)
        self.compare(cases, TREES)

    def test_pipelines(self):
        cases = []
        for name, model, table in trained.pipelines():
            # Infinities through sums and scalings are NaN at different places; missing values of
            # "imputed" are in its table.
            cases += self.cases(name, trained.exported(model, table), table, odd=False)
        self.compare(cases, PIPELINES)

    def test_boosters(self):
        cases = []
        for name, model, table in trained.boosters():
            cases += self.cases(name, trained.booster_exported(model, table), table)
        self.compare(cases, TREES)


if __name__ == "__main__":
    unittest.main()
