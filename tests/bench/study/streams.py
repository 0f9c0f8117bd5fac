"""Part A: changes in streams, as a device sees them."""

import detectors
import metrics
import models
import numpy as np
import series
from river import drift

RIVER = {"river ADWIN": drift.ADWIN, "river Page–Hinkley": drift.PageHinkley, "river KSWIN": drift.KSWIN}
LENGTH, CHANGE, HORIZON = 4000, 2000, 2000
QUIET_LENGTH = 10_000
# KSWIN remembers 100 values: what came earlier cannot matter to it.
KSWIN_BEFORE = 300


# --- annotated series -------------------------------------------------------------------------


def tuning_stream(seed):
    """About as long as the annotated ones, one to three changes of mean, standardised as they are."""
    rng = np.random.default_rng([90, seed])
    count = int(rng.integers(100, 500))
    changes = np.sort(rng.choice(np.arange(20, count - 20), int(rng.integers(1, 4)), replace=False))
    levels = np.cumsum(rng.choice([-1, 1], len(changes)) * rng.uniform(1, 4, len(changes)))
    level = np.concatenate([[0.0], levels])[np.searchsorted(changes, np.arange(count), side="right")]
    return series.standard([level + rng.normal(0, 1, count)])[0], [int(at) for at in changes]


def tune(name, setting, streams=40):
    kind = detectors.GRIDS[name][0]
    made = [tuning_stream(seed) for seed in range(streams)]
    return float(np.mean([metrics.f1([changes], detectors.river(kind, [values], **setting)) for values, changes in made]))


def annotated(settings):
    """F1 and covering by series and detector; `settings`: the tuned ones."""
    out = {}
    for name, signals, annotations in series.annotated():
        found = detectors.of_dunlin(signals)
        for rival, kind in RIVER.items():
            found[rival] = detectors.river(kind, signals)
            found[f"{rival}, tuned"] = detectors.river(kind, signals, **settings[rival])
        found["ZERO"] = []
        out[name] = {
            "values": len(signals[0]),
            "dimensions": len(signals),
            "annotators": len(annotations),
            "by": {
                who: {
                    "f1": metrics.f1(annotations, at),
                    "covering": metrics.covering(annotations, at, len(signals[0])),
                    "found": len(at),
                }
                for who, at in found.items()
            },
        }
    return out


# --- known changes ----------------------------------------------------------------------------


def fast(signals):
    """Every detector but KSWIN, at every index; Dunlin's ADWIN and Page–Hinkley must say what river's say."""
    found = detectors.of_dunlin(signals)
    same = all(
        found[f"Dunlin {name}"] == detectors.river(RIVER[f"river {name}"], signals) for name in ("ADWIN", "Page–Hinkley")
    )
    return {name: found[name] for name in ("Dunlin", "Dunlin ADWIN", "Dunlin Page–Hinkley")}, same


def delay_of(found, change):
    after = [at - change for at in found if change <= at < change + HORIZON]
    return after[0] if after else None


def delays(name, scale, seed, with_kswin):
    """Delay of each detector in one stream whose change is no multiple of ADWIN's 32."""
    rng = np.random.default_rng([10, list(series.CHANGES).index(name), seed])
    change = CHANGE + int(rng.integers(0, 64))
    values = series.changing(rng, name, change + HORIZON, change, sd=series.SD * scale)
    found, same = fast([values])
    out = {who: delay_of(at, change) for who, at in found.items()}
    if with_kswin:
        tail = values[change - KSWIN_BEFORE :]
        at = detectors.first(drift.KSWIN, [tail], KSWIN_BEFORE)
        out["river KSWIN"] = None if at is None else at - KSWIN_BEFORE
    return {"delays": out, "same": same}


def quiet(name, seed, with_kswin):
    """Alarms of each detector in one stream that never changes."""
    rng = np.random.default_rng([20, list(series.QUIET).index(name), seed])
    values = series.QUIET[name](rng, QUIET_LENGTH)
    found, same = fast([values])
    alarms = {who: len(at) for who, at in found.items()}
    if with_kswin:
        alarms["river KSWIN"] = len(detectors.river(drift.KSWIN, [values]))
    return {"alarms": alarms, "same": same}


# As shipped, at other thresholds, and on a signal that its first values have scaled to one standard deviation.
# river's, which Dunlin's equal.
SETTINGS = {
    "PH as shipped (λ 50, δ .005)": (drift.PageHinkley, {}, False),
    "PH λ 20": (drift.PageHinkley, {"threshold": 20}, False),
    "PH λ 10": (drift.PageHinkley, {"threshold": 10}, False),
    "PH scaled": (drift.PageHinkley, {}, True),
    "PH scaled, δ .25": (drift.PageHinkley, {"delta": 0.25}, True),
    "PH scaled, λ 25, δ .25": (drift.PageHinkley, {"threshold": 25, "delta": 0.25}, True),
    "ADWIN as shipped (δ .002)": (drift.ADWIN, {}, False),
    "ADWIN scaled": (drift.ADWIN, {}, True),
    "ADWIN scaled, δ .0002": (drift.ADWIN, {"delta": 0.0002}, True),
}
SCALED_BY = 500


def with_setting(setting, values):
    kind, options, is_scaled = SETTINGS[setting]
    if is_scaled:
        values = values / max(values[:SCALED_BY].std(), 1e-6)
    return detectors.river(kind, [values], **options)


def settings_quiet(setting, name, seeds):
    """Alarms per 10,000 values of signals that never change."""
    draws = ([20, list(series.QUIET).index(name), seed] for seed in range(seeds))
    signals = (series.QUIET[name](np.random.default_rng(draw), QUIET_LENGTH) for draw in draws)
    return metrics.per_10000([len(with_setting(setting, values)) for values in signals], [QUIET_LENGTH] * seeds)


def settings_delay(setting, name, seeds):
    """Quartiles of the delay of a known change."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng([10, list(series.CHANGES).index(name), seed])
        change = CHANGE + int(rng.integers(0, 64))
        values = series.changing(rng, name, change + HORIZON, change)
        found.append(delay_of(with_setting(setting, values), change))
    return metrics.quartiles(found)


# --- models -----------------------------------------------------------------------------------


def model_stream(data, corruption, seed):
    """A model's answers while what it is fed is corrupted from row `change` on; entropy and confidence first."""
    model = models.model(data)
    rng = np.random.default_rng([30, list(models.DATA).index(data), list(models.CORRUPTIONS).index(corruption), seed])
    change = CHANGE + int(rng.integers(0, 64))
    x, labels = model.draw(rng, change + HORIZON)
    x = np.concatenate([x[:change], models.CORRUPTIONS[corruption](rng, x[change:], model.sd)])
    answers = model.answer(x)
    return models.signals(answers), change, answers.argmax(axis=1) == labels


def of_model(data, corruption, seed, with_kswin):
    """Delay and false alarms of every detector on a model's entropy and confidence."""
    pair, change, right = model_stream(data, corruption, seed)
    found, same = fast(list(pair))
    out = {who: delay_of(at, change) for who, at in found.items()}
    before = {who: sum(i < change for i in at) for who, at in found.items()}
    if with_kswin:
        tails = [signal[change - KSWIN_BEFORE :] for signal in pair]
        at = detectors.first(drift.KSWIN, tails, KSWIN_BEFORE)
        out["river KSWIN"] = None if at is None else at - KSWIN_BEFORE
    return {
        "delays": out,
        "before": before,
        "length": change,
        "same": same,
        "accuracy": [float(right[:change].mean()), float(right[change:].mean())],
        "confidence": [float(pair[1][:change].mean()), float(pair[1][change:].mean())],
    }


def settings_model(data, corruption, seed):
    """The same with other settings: by setting the delay, and alarms before the change."""
    pair, change, _ = model_stream(data, corruption, seed)
    out = {}
    for setting in SETTINGS:
        found = sorted({at for signal in pair for at in with_setting(setting, signal)})
        out[setting] = [delay_of(found, change), sum(at < change for at in found), change]
    return out


def quiet_model(data, seed):
    """KSWIN alone on a model's signals without any change, for its alarms: the slow one."""
    model = models.model(data)
    x, _ = model.draw(np.random.default_rng([40, list(models.DATA).index(data), seed]), CHANGE)
    pair = models.signals(model.answer(x))
    return {"alarms": len(detectors.river(drift.KSWIN, list(pair))), "length": CHANGE}

