#!/usr/bin/env python3
"""Writes the committed cases of processing steps, agent/tests/inference/steps/*.json: a few of each kind,
small, always the same with the packages of requirements.txt.
"""

import json
import pathlib

import references

OUT = pathlib.Path(__file__).resolve().parents[3] / "agent/tests/inference/steps"
SEED, EACH = 1, 6

OUT.mkdir(exist_ok=True)
references.side.__defaults__ = (1, 24)
for make in references.ALL:
    found = list(references.cases(make, SEED, EACH))
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in found)
    path = OUT / f"{make.__name__}.json"
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{path.name}: {len(found)} cases, {path.stat().st_size} bytes")
