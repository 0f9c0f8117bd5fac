"""Evidently on raw rows that all devices would have to send to one place."""

import warnings

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests import registry
from evidently.legacy.core import ColumnType

warnings.simplefilter("ignore")

# As Evidently names them, each with its own default threshold; None: its own choice of a test.
TESTS = {
    "Evidently default": None,
    "Evidently PSI": "psi",
    "Evidently JS": "jensenshannon",
    "Evidently KS": "ks",
    "Evidently W1": "wasserstein",
}
# Evidently says that a data set drifted when at least half of its columns did.
DRIFT_SHARE = 0.5


def column(reference, current, name):
    """Whether Evidently says that a numeric column drifted."""
    reference, current = pd.Series(reference), pd.Series(current)
    test = registry.get_stattest(reference, current, ColumnType.Numerical, name)
    value, is_drift = test.func(reference, current, ColumnType.Numerical, test.default_threshold)
    return bool(is_drift), test.display_name, float(value)


def columns(reference, current, tests=TESTS, only=None):
    """By test, whether each column drifted."""
    picked = range(reference.shape[1]) if only is None else only
    out = {}
    for label, name in tests.items():
        if name is None and {"ks", "wasserstein"} <= set(tests.values()):
            continue
        out[label] = np.array([column(reference[:, at], current[:, at], name)[0] for at in picked])
    if "Evidently default" in tests and "Evidently default" not in out:
        # What it would choose is among those that were run.
        names = {"K-S p_value": "Evidently KS", "Wasserstein distance (normed)": "Evidently W1"}
        chosen = registry.get_stattest(pd.Series(reference[:, 0]), pd.Series(current[:, 0]), ColumnType.Numerical, None)
        out = {"Evidently default": out[names[chosen.display_name]]} | out
    return out


def of_preset(reference, current):
    """The whole preset, as its users call it: drifted columns, and whether the data set drifted."""
    from evidently import Report
    from evidently.presets import DataDriftPreset

    frames = [pd.DataFrame(rows, columns=[f"x{at}" for at in range(rows.shape[1])]) for rows in (reference, current)]
    metrics = Report([DataDriftPreset()]).run(frames[1], frames[0]).dict()["metrics"]
    (count,) = [m["value"]["count"] for m in metrics if m["metric_name"].startswith("DriftedColumnsCount")]
    return int(count), count / reference.shape[1] >= DRIFT_SHARE
