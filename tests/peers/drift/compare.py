"""`compare.py PROGRAM CASES SEED`: the fixtures and random cases through the references and through Dunlin."""

import json
import math
import secrets
import subprocess
import sys
import tempfile

import numpy as np
import references

TOLERANCE = 1e-9


def answer(program, cases):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(case) + "\n" for case in cases)
        file.flush()
        done = subprocess.run([program, file.name], stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def derived(got):
    """Numbers that references give in another form."""
    means = {f"{name}_mean": float(np.mean(got[name])) for name in ("precision", "recall", "f1") if name in got}
    squared = {"hellinger_squared": got["hellinger"] ** 2} if "hellinger" in got else {}
    return got | means | squared


def difference(got, expected):
    """Of numbers up to one the difference, of larger ones relative to them."""
    got, expected = np.atleast_1d(np.asarray(got, float)), np.atleast_1d(np.asarray(expected, float))
    if got.shape != expected.shape:
        return math.inf
    apart = np.where(got == expected, 0.0, np.abs(got - expected) / np.maximum(1.0, np.abs(expected)))
    return float(np.max(apart, initial=0.0)) if not np.isnan(apart).any() else math.inf


def outside(got, expected):
    lower = got[expected.lower]
    upper = math.inf if expected.upper is None else got[expected.upper]
    if upper is None:
        return math.inf
    return max(0.0, lower - expected.value, expected.value - upper)


def compare(got, expected):
    if isinstance(expected, references.Within):
        return outside(got[0], expected)
    if isinstance(expected, references.Exactly):
        return 0.0 if got[1] == expected.value else math.inf
    return difference(got[1], expected.value)


def main():
    program, count = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) or secrets.randbelow(2**31)
    print(f"seed {seed}, about {count} cases of each kind, tolerance {TOLERANCE:g}")
    failures = 0
    for at, make in enumerate(references.ALL):
        made = list(make(np.random.default_rng([seed, at]), count))
        answers = answer(program, [case for case, _ in made])
        if len(answers) != len(made):
            sys.exit(f"{make.__name__}: {len(answers)} answers to {len(made)} cases")
        largest, compared = {}, {}
        for number, ((_, expected), got) in enumerate(zip(made, answers)):
            got = derived(got)
            for name, value in expected.items():
                how = {references.Same: "same", references.Within: "within", references.Exactly: "exactly"}
                key = (name, how[type(value)])
                apart = compare((got, got[name]), value)
                largest[key] = max(largest.get(key, 0.0), apart)
                compared[key] = compared.get(key, 0) + 1
                if apart > TOLERANCE:
                    failures += 1
                    print(f"  {make.__name__} {number}: {name}: got {got[name]}, expected {value}")
        print(f"{make.__name__}: {make.__doc__.splitlines()[0]}")
        for (name, how), apart in largest.items():
            print(f"    {name:20} {how:8} {compared[name, how]:5} cases, largest difference {apart:.2g}")
    if failures:
        sys.exit(f"{failures} differences beyond the tolerance")


if __name__ == "__main__":
    main()
