"""`study.py RESULTS [PART...]`: runs the study's parts (all, or those named) and puts their numbers into RESULTS.

Every draw has a seed of its own, named after what is drawn, so the numbers do not depend on how work is shared
out among processes. Times are not among them.
"""

import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import detectors
import fleet
import metrics
import models
import pooled
import series
import streams
import weights

SEEDS, KSWIN_SEEDS = 200, 40
QUIET_SEEDS, KSWIN_QUIET_SEEDS = 200, 6
MODEL_SEEDS, KSWIN_MODEL_SEEDS = 50, 15
FLEET_SEEDS, FLEET_BATCH, REAL_SEEDS = 120, 20, 30
SETTING_SEEDS, SETTING_MODEL_SEEDS = 40, 20
FEATURES = [1, 10, 50]


def of_seeds(pool, function, names, seeds, *more, kswin):
    """`function(name, *more, seed, with_kswin)` of every name and seed, by name in the order of seeds."""
    asked = {n: [pool.submit(function, *n, *more, seed, seed < kswin) for seed in range(seeds)] for n in names}
    return {n: [future.result() for future in futures] for n, futures in asked.items()}


def delays_of(drawn):
    """By detector quartiles of the delay and the share that was missed."""
    out = {}
    for who in sorted({who for draw in drawn for who in draw["delays"]}):
        got = [draw["delays"][who] for draw in drawn if who in draw["delays"]]
        missed = sum(delay is None for delay in got)
        out[who] = {"delay": metrics.quartiles(got), "missed": metrics.wilson(missed, len(got)), "streams": len(got)}
    return out


# --- part A -----------------------------------------------------------------------------------


def annotated(pool):
    asked = {
        name: [(setting, pool.submit(streams.tune, name, setting)) for setting in settings]
        for name, (_, settings) in detectors.GRIDS.items()
    }
    # The first of equals, so that a tie is none.
    tuned = {name: max(tried, key=lambda pair: pair[1].result())[0] for name, tried in asked.items()}
    return {"tuned": tuned, "series": pool.submit(streams.annotated, tuned).result()}


def changes(pool):
    out, same = {}, []
    for scale in (1, 10):
        names = [(name, scale) for name in series.CHANGES]
        kswin = KSWIN_SEEDS if scale == 1 else 0
        for (name, _), drawn in of_seeds(pool, streams.delays, names, SEEDS, kswin=kswin).items():
            out.setdefault(name, {})[str(scale)] = delays_of(drawn)
            same += [draw["same"] for draw in drawn]
    return {"by": out, "same": sum(same), "of": len(same)}


def quiet(pool):
    out, same = {}, []
    names = [(name,) for name in series.QUIET]
    for (name,), drawn in of_seeds(pool, streams.quiet, names, QUIET_SEEDS, kswin=KSWIN_QUIET_SEEDS).items():
        same += [draw["same"] for draw in drawn]
        out[name] = {}
        for who in sorted({who for draw in drawn for who in draw["alarms"]}):
            alarms = [draw["alarms"][who] for draw in drawn if who in draw["alarms"]]
            out[name][who] = metrics.per_10000(alarms, [streams.QUIET_LENGTH] * len(alarms))
    return {"by": out, "same": sum(same), "of": len(same)}


def settings(pool):
    asked = {
        name: (
            {signal: pool.submit(streams.settings_quiet, name, signal, SETTING_SEEDS) for signal in series.QUIET},
            {change: pool.submit(streams.settings_delay, name, change, SETTING_SEEDS) for change in series.CHANGES},
        )
        for name in streams.SETTINGS
    }
    done = lambda futures: {name: future.result() for name, future in futures.items()}
    out = {name: {"quiet": done(quiet), "changes": done(changes), "models": {}} for name, (quiet, changes) in asked.items()}
    cases = [(data, corruption) for data in models.DATA for corruption in models.CORRUPTIONS]
    drawn = {case: [pool.submit(streams.settings_model, *case, seed) for seed in range(SETTING_MODEL_SEEDS)] for case in cases}
    before = {name: [] for name in out}
    for (data, corruption), futures in drawn.items():
        for name in out:
            got = [future.result()[name] for future in futures]
            out[name]["models"][f"{data}, {corruption}"] = metrics.quartiles([delay for delay, _, _ in got])
            before[name] += [(alarms, length) for _, alarms, length in got]
    for name, got in before.items():
        out[name]["models_quiet"] = metrics.per_10000(*zip(*got))
    return out


def of_models(pool):
    out, same = {}, []
    names = [(data, corruption) for data in models.DATA for corruption in models.CORRUPTIONS]
    drawn_by = of_seeds(pool, streams.of_model, names, MODEL_SEEDS, kswin=KSWIN_MODEL_SEEDS)
    kswin = {data: [pool.submit(streams.quiet_model, data, seed) for seed in range(KSWIN_MODEL_SEEDS)] for data in models.DATA}
    for (data, corruption), drawn in drawn_by.items():
        same += [draw["same"] for draw in drawn]
        mean = lambda what: [sum(draw[what][at] for draw in drawn) / len(drawn) for at in (0, 1)]
        out.setdefault(data, {"corruptions": {}})["corruptions"][corruption] = {
            "by": delays_of(drawn),
            "accuracy": mean("accuracy"),
            "confidence": mean("confidence"),
        }
        before = out[data].setdefault("before", {})
        for draw in drawn:
            for who, alarms in draw["before"].items():
                before.setdefault(who, [[], []])
                before[who][0].append(alarms)
                before[who][1].append(draw["length"])
    for data, of in out.items():
        runs = [future.result() for future in kswin[data]]
        of["before"]["river KSWIN"] = [[run["alarms"] for run in runs], [run["length"] for run in runs]]
        of["false_alarms"] = {who: metrics.per_10000(*lists) for who, lists in of.pop("before").items()}
    return {"by": out, "same": sum(same), "of": len(same)}


# --- part B -----------------------------------------------------------------------------------


def setting(seed, effect="none", size=0.0, features=FEATURES, reference=5000, devices=20, each=50, between=0.0):
    named = {"effect": effect, "size": size, "features": features, "reference": reference}
    return named | {"devices": devices, "each": each, "between": between, "seed": seed}


def rates(pool, settings, seeds=FLEET_SEEDS):
    """Of each setting, by number of features and method: share flagged, and share whose first feature was."""
    starts = range(0, seeds, FLEET_BATCH)
    asked = {key: [pool.submit(fleet.counts, one, (s, min(s + FLEET_BATCH, seeds))) for s in starts] for key, one in settings.items()}
    out = {}
    for key, futures in asked.items():
        sums = {}
        for future in futures:
            for features, name, *counted in future.result():
                slot = sums.setdefault((features, name), [0, 0, 0])
                sums[features, name] = [a + b for a, b in zip(slot, counted)]
        for (features, name), (anything, first, of) in sums.items():
            of_key = out.setdefault(key, {}).setdefault(str(features), {})
            of_key[name] = {"any": metrics.wilson(anything, of), "first": metrics.wilson(first, of)}
    return out


def quiet_fleet(pool):
    cases = [(n, m) for n in (1000, 5000) for m in (60, 200, 1000, 5000)]
    devices = {60: 1, 200: 20, 1000: 20, 5000: 20}
    return rates(pool, {
        f"{n}/{m}": setting([1, n, m], reference=n, devices=devices[m], each=m // devices[m]) for n, m in cases
    })


def power(pool):
    """Shifts of one feature of ten."""
    sizes = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5]
    return rates(pool, {
        f"{n}/{m}/{size}": setting([2, n, m], "shift", size, [10], n, 20, m // 20)
        for n, m in ((1000, 1000), (5000, 200), (5000, 1000), (5000, 5000))
        for size in sizes
    })


def kinds(pool):
    """Other changes of one feature of ten."""
    cases = [
        ("spread", 1.2), ("spread", 1.5), ("spread", 2.0),
        ("one device in twenty", 1.0), ("one device in twenty", 3.0), ("one device in twenty", 10.0),
        ("values at random, 1 in 20", 3.0), ("values at random, 1 in 20", 10.0),
    ]  # fmt: skip
    return rates(pool, {
        f"{effect}/{size}/{m}": setting([3, m], effect, size, [10], 5000, 20, m // 20)
        for effect, size in cases
        for m in (1000, 5000)
    })


def between(pool):
    """Nothing drifts, but devices differ."""
    return rates(pool, {
        f"{share}/{devices}/{each}": setting([4, devices, each], features=[10], devices=devices, each=each, between=share)
        for share in (0.0, 0.1, 0.2, 0.3, 0.5)
        for devices, each in ((1, 600), (5, 1000), (20, 250))
    })


def real(pool):
    corruptions = [*models.CORRUPTIONS, fleet.ONE_DEVICE]
    data = ("digits", "breast_cancer")
    asked = {(d, c): pool.submit(fleet.real, d, c, (0, REAL_SEEDS)) for d in data for c in corruptions}
    out = {}
    for (d, c), future in asked.items():
        got = future.result()
        out.setdefault(d, {"corruptions": {}})["corruptions"][c] = {
            name: count / got["of"] if name.startswith("columns ") else metrics.wilson(count, got["of"])
            for name, count in got["sums"].items()
        }
        out[d] |= {key: got[key] for key in ("reference", "current", "features", "of")}
    return out


def preset(pool):
    agreed = [pool.submit(fleet.preset_agrees, seed) for seed in range(4)]
    return {"agreed": sum(future.result() for future in agreed), "of": len(agreed)}


# --- part C -----------------------------------------------------------------------------------


def weigh(pool):
    cases = [(features, count) for features in (4, 16, 64, 256) for count in (60, 600, 6000)]
    normal = [pool.submit(weights.normal, *case) for case in cases]
    digits = [pool.submit(weights.of_model, "digits", count) for count in (60, 600, 6000)]
    return {"normal": [f.result() for f in normal], "digits": [f.result() for f in digits]}


PARTS = {
    part.__name__: part
    for part in (annotated, changes, quiet, settings, of_models, preset, quiet_fleet, power, kinds, between, real, weigh)
}


def rounded(value):
    """Six digits say all that the draws know."""
    if isinstance(value, dict):
        return {key: rounded(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(of) for of in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write(path, results):
    """A line for each case, so that a difference shows where it is."""
    line = lambda value: json.dumps(value, ensure_ascii=False)
    parts = [
        f"{line(part)}: {{\n" + ",\n".join(f" {line(key)}: {line(of)}" for key, of in cases.items()) + "\n}"
        for part, cases in results.items()
    ]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main():
    path, parts = Path(sys.argv[1]), sys.argv[2:] or list(PARTS)
    results = json.loads(path.read_text()) if path.exists() else {}
    names = ("evidently", "river", "whylogs", "scipy", "numpy", "pandas", "scikit-learn", "statsmodels")
    results["versions"] = {"Python": platform.python_version()} | {name: version(name) for name in names}
    results["seeds"] = {name: value for name, value in globals().items() if name.endswith("SEEDS")}
    # In the order of the parts, whichever ran last.
    results = {name: results[name] for name in ("versions", "seeds", *PARTS) if name in results}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name in parts:
            begun = time.monotonic()
            results[name] = rounded(PARTS[name](pool))
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            write(path, results)


if __name__ == "__main__":
    main()
