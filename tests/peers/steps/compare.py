"""`compare.py PROGRAM CASES SEED`: random cases of every step through the references and through Dunlin."""

import datetime
import json
import subprocess
import sys
import tempfile

import references


def main():
    program, count = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) or datetime.date.today().toordinal()
    print(f"seed {seed}, {count} cases of each kind")
    failures = 0
    for make in references.ALL:
        made = list(references.cases(make, seed, count))
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(made, file)
            file.flush()
            done = subprocess.run([program, file.name], stdout=subprocess.PIPE, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        failed = [line for line in lines if "problem" in line]
        if len(lines) != len(made):
            failed.append({"name": "all", "problem": f"{len(lines)} answers to {len(made)} cases"})
        largest = max((line.get("difference", 0.0) for line in lines), default=0.0)
        allowed = max(c["tolerance"]["max"] for c in made)
        print(f"{make.__name__:16} {len(made):4} cases, largest difference {largest:.2g} (tolerance {allowed:.2g})")
        for line in failed:
            print(f"    {line['name']}: {line['problem']}")
        failures += len(failed)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
