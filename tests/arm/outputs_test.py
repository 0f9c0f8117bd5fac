"""ARM answers as this machine does, and as the runtimes that the models come from."""

import tempfile
import unittest
from pathlib import Path

import bundles
import machine
from worker import Worker, ask


class Outputs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.bundles = bundles.committed() + bundles.zoo()
        worker = Worker(machine.native())
        cls.native = [worker.answers(bundle) for bundle in cls.bundles]
        worker.stop()

    def answers(self, arm):
        """Holds every answer against this machine's; prints how far they are apart."""
        worker = Worker(arm)
        # The emulator has neither; the worker says so and goes on.
        self.assertEqual(worker.confinement, {"landlock": "no", "seccomp": "no"})
        groups = {}
        for bundle, (native, dtypes) in zip(self.bundles, self.native):
            with self.subTest(machine=arm.name, bundle=bundle.name):
                got, arm_dtypes = worker.answers(bundle)
                self.assertEqual(arm_dtypes, dtypes)
                self.assertEqual(len(got), len(bundle.requests))
                apart = max(bundles.difference(g, n, dtypes) for g, n in zip(got, native, strict=True))
                self.assertLessEqual(apart, bundle.tolerance, "from this machine's answers")
                known = [bundles.difference(g, e, dtypes) for g, e in zip(got, bundle.expected)]
                self.assertEqual(len(known), len(bundle.expected))
                self.assertLessEqual(max(known), bundle.expected_tolerance, "from the expected answers")
                groups.setdefault(bundle.manifest["family"], []).append((len(got), apart, max(known), bundle.tolerance))
        worker.stop()
        for family, rows in groups.items():
            asked, apart, known = sum(r[0] for r in rows), max(r[1] for r in rows), max(r[2] for r in rows)
            print(f"{arm.name:<11} {family:<20} bundles {len(rows):3}  requests {asked:5}  from this machine "
                  f"{apart:.1e} (tolerance {rows[0][3]:.0e})  from the expected answers {known:.1e}", flush=True)

    def test_every_processor(self):
        for arm in machine.arm_machines():
            with self.subTest(machine=arm.name):
                self.answers(arm)


class Refusals(unittest.TestCase):
    """Numbers that do not fit into 32 bits, on machines whose addresses have no more."""

    SIZE = 4 * 64

    def refused(self, worker, shape, size):
        tensor = {"name": "pixels", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
        response, answer = ask(worker.connection, "digits", {"inputs": [tensor]}, bytes(self.SIZE))
        self.assertEqual(response.status, 400, answer)

    def test_sizes_that_wrap_around_are_refused(self):
        for arm in machine.arm_machines():
            with self.subTest(machine=arm.name):
                worker = Worker(arm)
                bundle = bundles.packed(bundles.MODELS / "digits/v2", 0.0)
                bundle.requests = bundle.requests[:1]
                answers = worker.answers(bundle)
                for shape in ([1, 64 + 2**32], [2**16, 2**16, 64], [1, 64 + 2**64], [2**31, 2**31, 2**31]):
                    self.refused(worker, shape, self.SIZE)
                for size in (self.SIZE + 2**32, 2**32, 2**63, 2**64):
                    self.refused(worker, [1, 64], size)
                # It goes on as if nothing had been.
                self.assertEqual(worker.answers(bundle), answers)
                worker.stop()

    def test_a_model_that_declares_more_than_fits_is_refused(self):
        for arm in machine.arm_machines():
            for shape in ([2**16, 2**16], [2**32 + 64], [2**40]):
                with self.subTest(machine=arm.name, shape=shape), tempfile.TemporaryDirectory() as folder:
                    bundle = bundles.packed(bundles.MODELS / "digits/v2", 0.0)
                    bundle.manifest["inputs"][0]["shape"] = shape
                    bundle.stage(Path(folder))
                    report = machine.report(arm.run("infer", "--trial", folder))
                    self.assertEqual((report["outcome"], report["code"]), ("failed", "load"), report)


class Trials(unittest.TestCase):
    """Trials as the supervisor has them made: a process that loads a bundle and meets its golden cases."""

    def trial(self, arm, bundle) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            bundle.stage(Path(folder))
            ended = arm.run("infer", "--trial", folder)
            self.assertEqual(ended.returncode, 0, ended.stderr)
            return machine.report(ended)

    def test_golden_cases_are_met(self):
        staged = [b for b in bundles.committed() + bundles.zoo() if b.golden]
        for arm in machine.arm_machines():
            for bundle in staged:
                with self.subTest(machine=arm.name, bundle=bundle.name):
                    report = self.trial(arm, bundle)
                    self.assertEqual(report["outcome"], "passed", report)
                    self.assertEqual(report["cases"], bundle.golden)

    def test_a_wrong_golden_case_is_found(self):
        for arm in machine.arm_machines():
            with self.subTest(machine=arm.name):
                bundle = bundles.packed(bundles.MODELS / "digits/v2", 0.0)
                golden = bundle.files["golden.json"]
                bundle.files["golden.json"] = golden.replace(b"0.9995914357", b"0.9985914357")
                self.assertNotEqual(bundle.files["golden.json"], golden)
                report = self.trial(arm, bundle)
                self.assertEqual((report["outcome"], report["code"]), ("failed", "golden"), report)


if __name__ == "__main__":
    unittest.main()
