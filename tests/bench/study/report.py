"""`report.py RESULTS FOLDER`: results.md and plots from the study's numbers."""

import json
import sys
from pathlib import Path

import plots
import said
from tables import delay, number, percent, rate, size, table

DUNLIN = ["Dunlin", "Dunlin ADWIN", "Dunlin Page–Hinkley"]
ALL = [*DUNLIN, "river KSWIN"]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# --- part A -----------------------------------------------------------------------------------


def setting(of):
    return ", ".join(f"{key} {value}" for key, value in of.items())


def annotated(results):
    series = results["annotated"]["series"]
    names = list(next(iter(series.values()))["by"])
    for measure, title in (("f1", "F1, margin 5"), ("covering", "covering")):
        yield f"{title}, at the index where it is told:\n"
        rows = [
            [name, *(number(of["by"][name][measure]) for of in series.values()), number(mean(of["by"][name][measure] for of in series.values()))]
            for name in names
        ]
        yield table(["", *series, "mean"], rows)
    yield "Told changes (ZERO: none; annotators' own differ):\n"
    yield table(["", *series], [[name, *(of["by"][name]["found"] for of in series.values())] for name in names])
    sizes = "; ".join(f"{name}: {of['values']} values, {of['dimensions']} dimensions, {of['annotators']} annotators" for name, of in series.items())
    tuned = "; ".join(f"{name}: {setting(of)}" for name, of in results["annotated"]["tuned"].items())
    yield f"{sizes}. Tuned to: {tuned}.\n"


def changes(results):
    by = results["changes"]["by"]
    rows = [[change, *(delay(of["1"][name]) for name in ALL)] for change, of in by.items()]
    yield table(["change", *ALL], rows)
    yield "The same changes of a signal ten times as large (standard deviation 1):\n"
    rows = [[change, *(delay(of["10"][name]) for name in DUNLIN)] for change, of in by.items()]
    yield table(["change", *DUNLIN], rows)


def quiet(results):
    by = results["quiet"]["by"]
    yield table(["signal", *ALL], [[name, *(rate(of[who]) for who in ALL)] for name, of in by.items()])


def of_models(results):
    for data, of in results["of_models"]["by"].items():
        rows = []
        for corruption, found in of["corruptions"].items():
            accuracy, confidence = (f"{a:.2f} → {b:.2f}" for a, b in (found["accuracy"], found["confidence"]))
            rows.append([corruption, accuracy, confidence, *(delay(found["by"][who]) for who in ALL)])
        yield table([data, "accuracy", "confidence", *ALL], rows)
        alarms = "; ".join(f"{who} {rate(of['false_alarms'][who])}" for who in ALL)
        yield f"False alarms per 10,000 answers before the change: {alarms}.\n"


def settings(results):
    by = results["settings"]
    first = next(iter(by.values()))
    yield "False alarms per 10,000 values:\n"
    rows = [[signal, *(rate(of["quiet"][signal]) for of in by.values())] for signal in first["quiet"]]
    rows.append(["the models' signals", *(rate(of["models_quiet"]) for of in by.values())])
    yield table(["", *by], rows)
    yield "Median delay:\n"
    median = lambda delays: "never" if delays[0] is None else size(delays[0])
    rows = [[case, *(median(of[part][case]) for of in by.values())] for part in ("changes", "models") for case in first[part]]
    yield table(["", *by], rows)


# --- part B -----------------------------------------------------------------------------------

EVIDENTLY = ["Evidently default", "Evidently data set", "Evidently PSI", "Evidently JS", "Evidently KS", "Evidently W1"]
FLEET = ["Dunlin", "Dunlin without margin", *EVIDENTLY]


def quiet_fleet(results):
    by = results["quiet_fleet"]
    rows = []
    for key, of in by.items():
        n, m = (int(x) for x in key.split("/"))
        for features, found in of.items():
            insufficient = found["insufficient"]["any"][0]
            # Evidently looks at the features alone.
            names = ["Dunlin", "Dunlin whole", "Dunlin without margin"]
            said = ["insufficient" if insufficient == 1 else percent(found[name]["any"]) for name in names]
            rows.append([size(n), size(m), features, *said, *(percent(found[name]["any"]) for name in EVIDENTLY)])
    yield table(["N", "M", "features", *names, *EVIDENTLY], rows, left=0)


def power(results):
    for group in ("1000/1000", "5000/200", "5000/1000", "5000/5000"):
        n, m = (int(x) for x in group.split("/"))
        keys = [key for key in results["power"] if key.startswith(group + "/")]
        names = ["Dunlin", "Dunlin without margin", "Evidently default", "Evidently PSI", "Evidently JS", "Evidently KS", "Evidently W1"]
        yield f"Reference of {n:,} rows, {m:,} current rows:\n"
        rows = [[key.split("/")[2], *(percent(results["power"][key]["10"][name]["first"]) for name in names)] for key in keys]
        yield table(["shift, sd", *names], rows)


def kinds(results):
    names = ["Dunlin", "Dunlin PSI", "Dunlin range", "Dunlin without margin", "Dunlin KS", "Evidently default", "Evidently PSI", "Evidently JS", "Evidently KS"]
    rows = []
    for key, of in results["kinds"].items():
        effect, amount, m = key.split("/")
        what = f"{effect} × {amount}" if effect == "spread" else f"{effect}, + {amount} sd"
        rows.append([what, size(int(m)), *(percent(of["10"][name]["first"]) for name in names)])
    yield table(["change", "rows", *names], rows)


def between(results):
    rows = []
    for key, of in results["between"].items():
        share, devices, each = key.split("/")
        rows.append([share, devices, size(int(each)), *(percent(of["10"][name]["any"]) for name in FLEET)])
    yield table(["sd of devices' means", "devices", "rows each", *FLEET], rows, left=0)


def real(results):
    names = ["Dunlin", "Dunlin, features", "Dunlin, outputs", "Evidently, any column", "Evidently data set"]
    for data, of in results["real"].items():
        yield f"{data}: reference {of['reference']} rows, current {of['current']} of five devices, {of['features']} features, {of['of']} draws:\n"
        rows = [
            [corruption, *(percent(found[name]) for name in names), *(number(found[f"columns {who}"], 1) for who in ("Dunlin", "Evidently"))]
            for corruption, found in of["corruptions"].items()
        ]
        yield table(["corruption", *names, "columns, Dunlin", "columns, Evidently"], rows)


# --- part C -----------------------------------------------------------------------------------

BYTES = {
    "message_bytes": "Dunlin, message",
    "stored_bytes": "Dunlin, stored",
    "whylogs_bytes": "whylogs profile",
    "whylogs_gzip_bytes": "whylogs, gzip",
    "whylogs_lean_bytes": "whylogs, distribution alone",
    "json_bytes": "rows, JSON",
    "json_gzip_bytes": "rows, JSON gzip",
    "float32_bytes": "rows, float32",
}


def weigh(results):
    for title, key in (("Normal features:", "normal"), ("The 64 pixels of digits, whole numbers 0 to 16:", "digits")):
        yield title + "\n"
        rows = [[case["features"], size(case["rows"]), *(size(case[name]) for name in BYTES)] for case in results["weigh"][key]]
        yield table(["features", "rows", *BYTES.values()], rows, left=0)


SECTIONS = [annotated, changes, quiet, settings, of_models, quiet_fleet, power, kinds, between, real, weigh]


def main():
    results, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    plots.draw(results, folder)
    shown = {section.__name__: "\n".join(section(results)) for section in SECTIONS}
    (folder / "results.md").write_text(said.report(results, shown))


if __name__ == "__main__":
    main()
