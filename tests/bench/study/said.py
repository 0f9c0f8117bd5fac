"""The report's words. Figures in them come from the results."""

import findings


def report(results, shown):
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    seeds = results["seeds"]
    same = sum(results[part]["same"] for part in ("changes", "quiet", "of_models"))
    of = sum(results[part]["of"] for part in ("changes", "quiet", "of_models"))
    return f"""\
# How well drift is found

Written by `tests/bench/study/run --write`; numbers in `results.json`.

## What was asked

How soon and how surely does Dunlin find drift that is known to be there, how often does it cry wolf, and what does it send for that? On the device against river's ADWIN, Page–Hinkley and KSWIN and against saying nothing (ZERO); in the fleet against Evidently, which gets all raw rows in one place; on the wire against whylogs' profiles and the rows themselves.

Dunlin is its own code as it is shipped, through `tests/examples/study.rs`: `Watch` of the agent's detectors, windows over frozen bins, `of_windows` of the server (exact merge, Benjamini–Hochberg, Yurdakul's bound and a contingency test, a practical margin of .1 PSI; a beta-binomial bound and a margin of .02 for the share of values out of range), the agent's own segments. {versions}. Every draw has a seed of its own.

{findings.said(Figures(results))}
## A. Changes in a stream

Both of Dunlin's detectors have fixed parameters (ADWIN δ .002, a look every 32 values; Page–Hinkley λ 50, δ .005, α .9999), which are river's defaults, and must say what river's say: of {of:,} streams here {same:,} were the same to the index. So ADWIN and Page–Hinkley of river are in the tables below only where they are tuned; “Dunlin” is what a device tells: either detector, either signal. KSWIN is river's with its defaults (α .005, window 100, 30 newest values).

### Annotated series

Five series of the Turing Change Point Dataset that come inside packages: four in river, and the Nile in statsmodels, with the one change of 1898. Scaled over the whole series as TCPDBench does; one detector a dimension. F1 and covering as van den Burg & Williams (2020) define them: a margin of 5, index 0 a change of everybody, precision against all annotators together, recall by annotator. These are measures for methods that see the whole series; a detector that needs 30 values to be sure is always late by more than 5. “placed”: where ADWIN's kept window begins instead of where it is told. “tuned”: on 40 made streams of 100 to 500 values with 1 to 3 changes of mean, none of them from here; Dunlin's parameters are constants.

{shown["annotated"]}
### Known changes

Streams of {2000:,} to 2,063 values, then a change, then 2,000 values more; mean .7 and standard deviation .1, as a confidence might have. Median delay in values (quartiles), and the share that was not told within 2,000. {seeds["SEEDS"]} streams each, {seeds["KSWIN_SEEDS"]} for KSWIN, which sees the last 300 values before the change.

![Delay by size of the change](delays.svg)

{shown["changes"]}
### Streams that never change

10,000 values each, {seeds["QUIET_SEEDS"]} streams ({seeds["KSWIN_QUIET_SEEDS"]} for KSWIN, which takes 0.3 ms a value). False alarms per 10,000 values, with 95 % intervals from resampled streams. The last three lines are streams that no detector of independent values is made for, and that cameras and machines send.

![False alarms by kind of signal](quiet.svg)

{shown["quiet"]}
### Other settings

What the shipped settings cost and what they save; “scaled”: on the signal divided by the standard deviation of its first 500 values. {seeds["SETTING_SEEDS"]} streams each.

{shown["settings"]}
### Signals of real models

Models on scikit-learn's data (a network of 48 units for digits, logistic regressions for the others), trained on one half; rows of the other half drawn at random, from row 2,000 to 2,063 on corrupted. What is watched is the model's entropy and confidence, as on a device. {seeds["MODEL_SEEDS"]} streams each, {seeds["KSWIN_MODEL_SEEDS"]} for KSWIN. Accuracy is what was really lost; no detector sees it.

{shown["of_models"]}
## B. The fleet

N reference rows from 20 devices, M current rows; normal features, independent. {seeds["FLEET_SEEDS"]} draws each; shares in percent with Wilson's 95 % interval. “Dunlin”: the verdict on the features, by their PSI or by the share of their values out of range, or (“PSI”, “range”) by one of them alone; “whole”: with confidence, entropy and classes, which never change here; “without margin”: a PSI beyond what sampling explains, however small. Evidently's own choice of a test is Kolmogorov–Smirnov (p < .05) up to 1,000 reference rows and normed Wasserstein-1 (≥ .1) beyond; its data set has drifted when half of the columns have. PSI ≥ .1, Jensen–Shannon distance ≥ .1, KS and W1 are its tests with its default thresholds. {results["preset"]["agreed"]} of {results["preset"]["of"]} draws through its whole preset gave the same columns as its functions do here.

### Nothing drifts: how often is there an alarm?

M = 60 rows come from one device's single window, the others from 20 devices. At 60 rows Dunlin gives no verdict; the Kolmogorov–Smirnov that it publishes beside names one of ten features in {ks_beside(results, 10)} of windows, one of fifty in {ks_beside(results, 50)}.

{shown["quiet_fleet"]}
### One feature of ten shifts: is it found?

![Found, by size of the shift](power.svg)

{shown["power"]}
### One feature of ten changes otherwise

Reference of 5,000 rows. “One device in twenty”: its values of that feature move.

{shown["kinds"]}
### Nothing drifts, but devices differ

Each device's mean of each feature lies some way from the fleet's; reference and current devices are others. Ten features, reference of 5,000 rows.

![False alarms by rows and by difference of devices](false-alarms.svg)

{shown["between"]}
### Real data

Held-out rows of the two larger models' data, halved anew at each draw: one half is the reference, the other comes from five devices. “Dunlin” is its whole verdict; its parts are the features and the model's outputs. “columns”: the mean number of columns that were called drifted.

{shown["real"]}
## C. Bytes

One window of one device: ten classes or two, confidence, entropy, latency and every feature over 40 frozen bins. “message”: the JSON that goes over MQTT; “stored”: the same as the device's buffer keeps it (zstd). whylogs profiles the same columns but latency; the size of its profiles differs by some bytes from run to run. Raw rows have seven digits, features only.

![Bytes by number of features](bytes.svg)

{shown["weigh"]}"""


def ks_beside(results, features):
    return f"{100 * results['quiet_fleet']['5000/60'][str(features)]['Dunlin KS']['any'][0]:.0f} %"


class Figures:
    """Single figures out of the results, as text."""

    def __init__(self, results):
        self.results = results

    def delay(self, change, who, scale="1"):
        median = self.results["changes"]["by"][change][scale][who]["delay"][0]
        return "never" if median is None else f"{median:,}"

    def quiet(self, signal, who):
        rate = self.results["quiet"]["by"][signal][who][0]
        return "0" if rate == 0 else f"{rate:.2g}"

    def f1(self, who, measure="f1"):
        series = self.results["annotated"]["series"].values()
        return f"{sum(of['by'][who][measure] for of in series) / len(series):.2f}"

    def share(self, part, case, features, who, what="any"):
        return f"{100 * self.results[part][case][str(features)][who][what][0]:.0f} %"

    def loudest(self, who, least=1000, most=5000):
        """The largest share of quiet windows with an alarm, of so many rows."""
        large = [of for key, of in self.results["quiet_fleet"].items() if least <= int(key.split("/")[1]) <= most]
        return f"{100 * max(found[who]['any'][0] for of in large for found in of.values()):.0f} %"

    def real(self, data, corruption, who):
        return f"{100 * self.results['real'][data]['corruptions'][corruption][who][0]:.0f} %"

    def told(self, data, corruption, who):
        """Share of streams in which a change was told."""
        missed = self.results["of_models"]["by"][data]["corruptions"][corruption]["by"][who]["missed"][0]
        return f"{100 * (1 - missed):.0f} %"

    def accuracy(self, data, corruption):
        return "{:.2f} to {:.2f}".format(*self.results["of_models"]["by"][data]["corruptions"][corruption]["accuracy"])

    def setting(self, name, part, case):
        value = self.results["settings"][name][part][case][0]
        if part == "quiet":
            return f"{value:.2g}"
        return "never" if value is None else f"{value:,}"

    def bytes(self, kind, features, rows, name):
        (case,) = [c for c in self.results["weigh"][kind] if (c["features"], c["rows"]) == (features, rows)]
        return case[name]

    def ratio(self, kind, features, rows, name, of="message_bytes"):
        return f"{self.bytes(kind, features, rows, name) / self.bytes(kind, features, rows, of):.0f}"

    def found_at(self, group, who):
        """The smallest shift of one feature of ten that is found in at least nine draws of ten."""
        for key, of in self.results["power"].items():
            if key.startswith(group + "/") and of["10"][who]["first"][0] >= 0.9:
                return f"{float(key.split('/')[2]):g} sd"
        return "none of them"
