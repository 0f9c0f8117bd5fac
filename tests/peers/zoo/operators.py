"""ONNX's own test cases for its operators, run by the device's engine.

    operators.py [--all] [RESULTS]

The onnx package holds a case or more for each operator: a graph of one node, inputs and the outputs that
the specification asks for. Those of tensors that a manifest can name are run by `run_graph` in three
ways, one of which must do: with all inputs but the first as constants of the graph, as models have them,
with all inputs given at the call, and with none. What fails is compared with `operators.expected`, a list of cases each: exit
status 0 only if they are the same, so that nothing is lost, and what is won is written down. `--all`
prints why each fails; RESULTS takes the counts by operator, as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

EXPECTED = Path(__file__).with_name("operators.expected")
NAMES = {
    np.dtype(kind): name
    for kind, name in (
        ("bool", "BOOL"),
        ("uint8", "UINT8"),
        ("int8", "INT8"),
        ("uint16", "UINT16"),
        ("int16", "INT16"),
        ("uint32", "UINT32"),
        ("int32", "INT32"),
        ("uint64", "UINT64"),
        ("int64", "INT64"),
        ("float32", "FP32"),
        ("float64", "FP64"),
    )
}
TOGETHER = 200


def cases():
    """Cases by name whose inputs and outputs are all tensors of the manifest's kinds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    for case in collected:
        inputs, outputs = case.data_sets[0]
        named = dict(zip((i.name for i in case.model.graph.input), inputs))
        expected = dict(zip((o.name for o in case.model.graph.output), outputs))
        arrays = [*named.values(), *expected.values()]
        if named and all(isinstance(a, np.ndarray | np.generic) for a in arrays):
            arrays = [np.asarray(a) for a in arrays]
            if all(a.dtype in NAMES and a.size and a.ndim <= 8 for a in arrays):
                yield case, named, expected


def spec(name, array):
    return {"name": name, "dtype": NAMES[array.dtype], "shape": list(array.shape)}


def write(folder, model, given, expected, kept):
    """The case as `run_graph` reads it, the first so many inputs given at the call."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = list(given)
    for name in names[kept:]:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(given[name]), name))
    inputs = {name: given[name] for name in names[:kept]}
    if not inputs:
        # A manifest names an input at least; nothing takes this one.
        inputs = {"unused": np.zeros(1, np.float32)}
        unused = onnx.helper.make_tensor_value_info("unused", onnx.TensorProto.FLOAT, [1])
        model.graph.input.append(unused)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    specs = lambda arrays: [spec(n, np.asarray(a)) for n, a in arrays.items()]
    text = json.dumps({"inputs": specs(inputs), "outputs": specs(expected)})
    (folder / "case.json").write_text(text)
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in inputs.values())
    (folder / "input.bin").write_bytes(data)


def run(folders):
    """Runs cases together; one that ends the program is run alone, and so are those behind it."""
    program = Path(os.environ["DUNLIN_EXAMPLES"]) / "run_graph"
    for start in range(0, len(folders), TOGETHER):
        some = folders[start : start + TOGETHER]
        if subprocess.run([program, *some], capture_output=True, check=False).returncode == 0:
            continue
        for folder in some:
            if (folder / "output.bin").exists() or (folder / "error.txt").exists():
                continue
            done = subprocess.run([program, folder], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                (folder / "error.txt").write_text(f"ended with {done.returncode}: {done.stderr[-300:]}")


def problem(folder, case, expected):
    """What is wrong with the answer; nothing if it is the specification's."""
    if (folder / "error.txt").exists():
        return (folder / "error.txt").read_text()
    data, at = (folder / "output.bin").read_bytes(), 0
    for name, want in expected.items():
        want = np.asarray(want)
        got = np.frombuffer(data[at : at + want.nbytes], want.dtype).reshape(want.shape)
        at += want.nbytes
        if not np.allclose(got, want, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5), equal_nan=True):
            first = np.argwhere(~np.isclose(got, want, rtol=1e-3, atol=1e-5, equal_nan=True))
            where = tuple(first[0]) if len(first) else ()
            return f"{name}{list(where)}: expected {want[where]}, got {got[where]}"
    return ""


def main(arguments):
    files = [argument for argument in arguments if argument != "--all"]
    if len(files) > 1 or any(name.startswith("-") for name in files):
        print(__doc__.strip())
        return 64
    found = list(cases())
    with tempfile.TemporaryDirectory() as folder:
        ways = {1: Path(folder) / "one", None: Path(folder) / "all", 0: Path(folder) / "none"}
        for kept, place in ways.items():
            place.mkdir()
            for at, (case, given, expected) in enumerate(found):
                write(place / str(at), case.model, given, expected, kept)
            run([place / str(at) for at in range(len(found))])
        failed, by_operator = {}, defaultdict(lambda: [0, 0])
        for at, (case, _, expected) in enumerate(found):
            problems = [problem(place / str(at), case, expected) for place in ways.values()]
            operators = {node.op_type for node in case.model.graph.node}
            count = by_operator[operators.pop() if len(operators) == 1 else "several"]
            count[1] += 1
            if all(problems):
                failed[case.name] = problems[0]
            else:
                count[0] += 1
    expected = set(EXPECTED.read_text().split()) if EXPECTED.exists() else set()
    for file in files:
        Path(file).write_text(json.dumps(by_operator) + "\n")
    if "--all" in arguments:
        for name, why in sorted(failed.items()):
            print(f"{name}: {why[:300]}")
    lost, won = sorted(failed.keys() - expected), sorted(expected - failed.keys())
    for name in lost:
        print(f"lost: {name}: {failed[name][:500]}")
    for name in won:
        print(f"won: {name}: take it out of {EXPECTED.name}")
    whole = sum(good == all_ for good, all_ in by_operator.values())
    print(f"{len(found) - len(failed)} of {len(found)} cases; all of {whole} of {len(by_operator)} operators'")
    return 1 if lost or won else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
