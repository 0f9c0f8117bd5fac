#!/usr/bin/env python3
"""Writes delegation.json: what python-tuf says of path patterns and hash bins, to be read back by Dunlin.

    python3 -m venv venv && venv/bin/pip install -r ../../../../../tests/peers/tuf/requirements.txt
    venv/bin/python delegation.py
"""

import json
import random
from pathlib import Path

from tuf.api.metadata import DelegatedRole, SuccinctRoles

PATTERNS = [
    "*", "*/*", "*/*/manifest.json", "digits/*", "digits/*/*", "digits/[0-9]/*", "digits/[!0-9]/*", "?", "??", "a*b*c", "[", "[]", "[!]",
    "[]a]", "[!]a]", "[a-]", "[-a]", "[a-c-e]", "[--/]", "[c-a]", "[^a]", "[&&a]", "[a~~b]", "[a||b]", "[[a]", "[\\]", "\\*", "a.b", "(a|b)",
    "{a,b}", "é*", "*ü", "", "/", "/a", "a/", "a//b", "a/*/b", "**", "***a", "*.*", "A", "[A-Z]", "a\nb", "[ab",
]
PATHS = [
    "", "a", "b", "c", "e", "-", "/", "^", "&", "~", "|", "[", "]", "\\", "\\*", "ab", "abc", "aXbXc", "a.b", "aXb", "(a|b)", "{a,b}", "éa", "xü",
    "digits", "digits/", "digits/1", "digits/1/manifest.json", "digits/x/manifest.json", "letters/1/manifest.json", "digits/1/2/3", "/a", "a/",
    "a/b", "a//b", "a/x/b", "a/x/y/b", "A", "Z", "a\nb", "[ab", "[!]", "[]", "...", ".hidden",
]


def covered(pattern: str, path: str) -> bool:
    return DelegatedRole("role", [], 1, False, [pattern]).is_delegated_path(path)


def main() -> None:
    pairs = [(pattern, path) for pattern in PATTERNS for path in PATHS]
    chance = random.Random(7)
    for _ in range(2000):
        pattern = "".join(chance.choice("ab*?/[]!-") for _ in range(chance.randrange(9)))
        pairs.append((pattern, "".join(chance.choice("ab/]-!") for _ in range(chance.randrange(7)))))
    bins = []
    for bits in range(1, 33):
        for path in ("digits/1/manifest.json", "", "ü", *(f"file-{n}" for n in range(5))):
            bins.append([bits, path, SuccinctRoles([], 1, bits, "bin").get_role_for_target(path)])
    vectors = {"patterns": [[pattern, path, covered(pattern, path)] for pattern, path in pairs], "bins": bins}
    Path(__file__).with_name("delegation.json").write_text(json.dumps(vectors, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
