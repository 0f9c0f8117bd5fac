"""Writes docs/models.md from what a run found.

    table.py RESULTS PAGE

The page's text is `models.head.md` beside this script; its table is made here.
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


def page(results):
    lines = [HEAD.read_text().rstrip(), "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, result in results.items():
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row(name, result)) + " |")
    mended = sum(loads(result) == "mended" for result in results.values())
    refused = sum("refused" in result for result in results.values())
    lines += [
        "",
        f"{len(results)} models, {len(results) - refused} run, {mended} of them mended. Compared with ONNX "
        f"Runtime {onnxruntime.__version__}; made networks written with onnx {onnx.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments):
    if len(arguments) != 2:
        print(__doc__.strip())
        return 64
    results = json.loads(Path(arguments[0]).read_text())
    Path(arguments[1]).write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
