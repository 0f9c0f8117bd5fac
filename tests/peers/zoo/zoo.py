"""Packs, signs, installs and asks every model of the zoo, and compares with ONNX Runtime.

    zoo.py CACHE RESULTS [NAME…]

Models are fetched into CACHE; what was found is written to RESULTS as JSON. Each model is a version
of one family, so one device runs them one after the other. Exit status 0 only if every model packs,
installs and gives ONNX Runtime's outputs on inputs that its golden cases have not, and if what must be
refused is refused.
"""

import json
import sys
import tempfile
from pathlib import Path

import onnx

import inputs
import models
import refusals
from bundle import FAMILY, Reference, choices, difference, write_spec
from catalogue import MODELS
from client import Client, Refused
from fleet import Failed, Fleet


class Zoo:
    def __init__(self, cache, fleet):
        self.cache, self.fleet = cache, fleet
        self.speech = inputs.recording(lambda package: models.wheel(cache, package))
        self.results = {}

    def pack(self, version, name):
        model, path = MODELS[name], models.provide(self.cache, name)
        reference = Reference(path)
        calls = inputs.calls(name, inputs.GOLDEN, self.speech, reference.answer)
        answers = [reference.answer(call) for call in calls]
        folder = self.fleet.folder / f"spec-{version}"
        write_spec(folder, version, path, calls, answers, model.tolerance)
        result = {"version": version, "bytes": path.stat().st_size, "nodes": count_nodes(path)}
        self.results[name] = result
        out = f"packed-{version}"
        status, text, errors = self.fleet.run("bundle", "pack", folder, "--out", out, "--json")
        if status == 0:
            packed = json.loads(text)
            result["mends"] = packed["mends"]
            result["golden"] = packed["trial"]
        else:
            result["refused"] = errors.strip()
        return status == 0

    def ask(self, client, name):
        """The device against ONNX Runtime on inputs that are not in the bundle."""
        model, version = MODELS[name], self.results[name]["version"]
        self.fleet.install(FAMILY, version)
        path = models.provide(self.cache, name)
        reference, plain = Reference(path), Reference(path, optimised=False)
        calls = inputs.calls(name, inputs.OTHER, self.speech, reference.answer)
        largest = of_itself = 0.0
        same, rows = 0, 0
        for call in calls:
            expected, got = reference.answer(call), client.infer(FAMILY, version, call)
            largest = max(largest, difference(expected, got))
            of_itself = max(of_itself, difference(expected, plain.answer(call)))
            alike = choices(expected, got)
            same, rows = same + alike[0], rows + alike[1]
        found = {"calls": len(calls), "largest": largest, "of_itself": of_itself, "same": same, "rows": rows}
        self.results[name] |= found
        return largest <= model.tolerance


def count_nodes(path):
    def inside(graph):
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from inside(attribute.g)

    operators = [name for name in inside(onnx.load(path).graph) if name != "Constant"]
    return {"all": len(operators), "kinds": len(set(operators))}


def tell(name, result):
    if "refused" in result:
        words = f"refused: {result['refused']}"
    elif "failed" in result:
        words = f"failed: {result['failed']}"
    else:
        limit = MODELS[name].tolerance
        words = f"{result['calls']} calls, largest difference {result['largest']:.1e} (at most {limit:.0e})"
    mends = "".join(f"; {mend}" for mend in result.get("mends", []))
    print(f"{name}: {words}{mends}", flush=True)


def run(cache, names):
    """What was found, and whether all of it is as it must be."""
    with tempfile.TemporaryDirectory() as folder, Fleet(folder) as fleet:
        zoo, good = Zoo(cache, fleet), True
        fleet.begin()
        packed = [name for version, name in enumerate(names, 1) if zoo.pack(version, name)]
        good &= packed == names
        if packed:
            fleet.publish([f"packed-{zoo.results[name]['version']}" for name in packed])
            client = Client(fleet.enrol())
        for name in names:
            if name in packed:
                try:
                    good &= zoo.ask(client, name)
                except (Failed, Refused) as failure:
                    zoo.results[name]["failed"], good = str(failure), False
            tell(name, zoo.results[name])
        for name, problem in refusals.check(zoo).items():
            print(f"refused as it must be: {name}" if not problem else f"{name}: {problem}")
            good &= not problem
        return zoo.results, good


def main(arguments):
    if len(arguments) < 2 or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 64
    cache, results = map(Path, arguments[:2])
    cache.mkdir(parents=True, exist_ok=True)
    found, good = run(cache.resolve(), arguments[2:] or list(MODELS))
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} models, {'all' if good else 'NOT all'} as expected")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
