"""Writes docs/models.md from what a run found.

    table.py RESULTS OPERATORS PAGE

RESULTS is of `zoo.py`, OPERATORS of `operators.py`. The page's text is `models.head.md` beside this
script; its tables are made here.
"""

import json
import sys
from pathlib import Path

import onnx
import onnxruntime

from catalogue import MODELS, PACKAGES

HEAD = Path(__file__).with_name("models.head.md")
COLUMNS = ["model", "what it tells", "from", "licence", "operators", "MB", "loads", "differs by", "at most", "ONNX Runtime from itself", "remarks"]


def source(model):
    if not model.package:
        return model.source
    package = PACKAGES[model.package]
    text = f"[{model.package}]({package.home}) {package.version}"
    return f"{text}: {model.source}" if model.source else text


def licence(model):
    return PACKAGES[model.package].licence if model.package else model.licence


def exponent(value):
    """One digit: the next ones are the machine's."""
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def loads(result):
    if "refused" in result:
        return "no"
    return "mended" if result["mends"] else "as it is"


def remarks(model, result):
    found = [result[key] for key in ("refused", "failed") if key in result] + result.get("mends", [])
    if result.get("same", 0) != result.get("rows", 0):
        found.append(f"largest score the same in {result['same']} of {result['rows']} rows")
    return "; ".join([*found, model.remark] if model.remark else found)


def row(name, result):
    model, nodes = MODELS[name], result["nodes"]
    return [
        name,
        model.what,
        source(model),
        licence(model),
        f"{nodes['all']} of {nodes['kinds']} kinds",
        f"{result['bytes'] / 1e6:.1f}",
        loads(result),
        exponent(result["largest"]) if "largest" in result else "–",
        exponent(model.tolerance),
        exponent(result["of_itself"]) if "of_itself" in result else "–",
        remarks(model, result),
    ]


def operators(counts):
    """Which of ONNX's own cases the engine answers, by operator."""
    counts = {name: count for name, count in counts.items() if name != "several"}
    some = lambda good, of: 0 < good < of
    lists = [
        ("all of them", lambda good, of: good == of, lambda name, good, of: name),
        ("some", some, lambda name, good, of: f"{name} ({good} of {of})"),
        ("none", lambda good, of: good == 0, lambda name, good, of: name),
    ]
    lines = ["| its cases | operators |", "|---|---|"]
    for title, chosen, shown in lists:
        names = [shown(n, *count) for n, count in sorted(counts.items()) if chosen(*count)]
        lines.append(f"| {title} ({len(names)}) | {', '.join(names)} |")
    return lines


def page(results, counts):
    lines = [HEAD.read_text().rstrip(), "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, result in results.items():
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row(name, result)) + " |")
    mended = sum(loads(result) == "mended" for result in results.values())
    refused = sum("refused" in result for result in results.values())
    lines += [
        "",
        f"{len(results)} models, {len(results) - refused} run, {mended} of them mended. Compared with ONNX "
        f"Runtime {onnxruntime.__version__}; made networks written with onnx {onnx.__version__}.",
        "",
        "## ONNX's own cases",
        "",
        f"The onnx package ({onnx.__version__}) has test cases for each operator. Those whose tensors a manifest "
        "can name are run by the engine (`tests/peers/zoo/operators.py`), operators of training and of sequences "
        "among them:",
        "",
        *operators(counts),
    ]
    return "\n".join(lines) + "\n"


def main(arguments):
    if len(arguments) != 3:
        print(__doc__.strip())
        return 64
    results, counts = (json.loads(Path(name).read_text()) for name in arguments[:2])
    Path(arguments[2]).write_text(page(results, counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
