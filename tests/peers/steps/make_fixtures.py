#!/usr/bin/env python3
"""Writes the committed cases of processing steps, agent/tests/inference/steps/*.json: a few of each kind,
small, always the same with the packages of requirements.txt. And the pictures that fuzzing of the decoders
begins with.
"""

import json
import pathlib
import struct
import zlib

import numpy as np

import references

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = ROOT / "agent/tests/inference/steps"
SEEDS = ROOT / "tests/fuzz/corpus/image"
SEED, EACH = 1, 6


def png_header(width, height):
    """A PNG that says how large it is, and then ends."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def pictures():
    rng = np.random.default_rng(SEED)
    for mode in ("RGB", "RGBA", "L", "LA"):
        image = references.pillow(references.noise(rng, 7, 9, len(mode)))
        yield references.file_of(image, format="PNG")
    colour = references.pillow(references.picture(rng, 17, 23))
    yield references.file_of(colour.convert("P"), format="PNG")
    yield references.file_of(colour.convert("1"), format="PNG")
    for subsampling in range(3):
        for progressive in (False, True):
            yield references.file_of(colour, format="JPEG", subsampling=subsampling,
                                     progressive=progressive, quality=60)
    yield references.file_of(colour.convert("L"), format="JPEG", quality=60)
    yield references.file_of(colour.convert("CMYK"), format="JPEG", quality=60)
    whole = references.file_of(colour, format="JPEG", quality=60, restart_marker_rows=1)
    yield whole
    yield whole[:-40]
    # What a bomb says of itself.
    yield png_header(65535, 65535)
    at = whole.index(b"\xff\xc0") + 5
    yield whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4:]


OUT.mkdir(exist_ok=True)
references.side.__defaults__ = (1, 24)
for make in references.ALL:
    found = list(references.cases(make, SEED, EACH))
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in found)
    path = OUT / f"{make.__name__}.json"
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{path.name}: {len(found)} cases, {path.stat().st_size} bytes")

SEEDS.mkdir(exist_ok=True)
for at, raw in enumerate(pictures()):
    (SEEDS / f"seed-{at:02}").write_bytes(bytes([at % 2]) + raw)
print(f"{at + 1} pictures to begin fuzzing with")
