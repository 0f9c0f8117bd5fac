"""Series that people annotated, and streams made to known rules."""

import numpy as np
import statsmodels.api as sm
from river.drift import datasets

# River's Apple, Brent and Bitcoin are left out: their annotations index other series than the files hold.
ANNOTATED = {
    "Occupancy": datasets.Occupancy,
    "AirlinePassengers": datasets.AirlinePassengers,
    "RunLog": datasets.RunLog,
    "UKCoalEmploy": datasets.UKCoalEmploy,
}
# The first year after the known change of 1898, counted from 1871.
NILE = [[28]]


def standard(columns):
    return [(column - column.mean()) / column.std() for column in columns]


def annotated():
    """Name, signals, annotations: a list of points an annotator. Scaled as TCPDBench does, over the whole series."""
    for name, kind in ANNOTATED.items():
        data = kind()
        rows = [list(y.values()) if isinstance(y, dict) else [y] for _, y in data]
        yield name, standard(np.array(rows, float).T), list(data.annotations.values())
    volume = sm.datasets.nile.load_pandas().data["volume"].to_numpy()
    yield "Nile", standard([volume]), NILE


def autocorrelated(rng, count, sd, share):
    """AR(1) with that standard deviation."""
    noise = rng.normal(0, sd * np.sqrt(1 - share**2), count)
    out = np.empty(count)
    out[0] = rng.normal(0, sd)
    for at in range(1, count):
        out[at] = share * out[at - 1] + noise[at]
    return out


def gaussian(rng, count):
    return rng.normal(0, 1, count)


def correlated(share):
    return lambda rng, count: autocorrelated(rng, count, 1.0, share)


# What a device's confidence might look like: about .7 with a standard deviation of .1.
LEVEL, SD = 0.7, 0.1

# Noise, shift in standard deviations, its length, factor of the spread.
CHANGES = {
    "−0.5 sd": (gaussian, -0.5, 1, 1),
    "−1 sd": (gaussian, -1, 1, 1),
    "−2 sd": (gaussian, -2, 1, 1),
    "−4 sd": (gaussian, -4, 1, 1),
    "−2 sd over 1,000 values": (gaussian, -2, 1000, 1),
    "spread × 2, same mean": (gaussian, 0, 1, 2),
    "−2 sd, autocorrelated .9": (correlated(0.9), -2, 1, 1),
}


def changing(rng, name, count, change, level=LEVEL, sd=SD):
    noise, shift, length, spread = CHANGES[name]
    at = np.arange(count)
    after = np.clip((at - change + 1) / length, 0, 1)
    return level + sd * (noise(rng, count) * np.where(at >= change, spread, 1) + shift * after)


def day(rng, count):
    return LEVEL + SD * (rng.normal(0, 1, count) + np.sin(np.arange(count) * 2 * np.pi / 1440))


QUIET = {
    "Gaussian, sd .1": lambda rng, count: LEVEL + SD * gaussian(rng, count),
    "Gaussian, sd 1": lambda rng, count: LEVEL + gaussian(rng, count),
    "Beta(9, 1), as of a sure model": lambda rng, count: rng.beta(9, 1, count),
    "zeros and ones, .2": lambda rng, count: (rng.random(count) < 0.2).astype(float),
    "autocorrelated .5, sd .1": lambda rng, count: LEVEL + autocorrelated(rng, count, SD, 0.5),
    "autocorrelated .9, sd .1": lambda rng, count: LEVEL + autocorrelated(rng, count, SD, 0.9),
    "autocorrelated .99, sd .1": lambda rng, count: LEVEL + autocorrelated(rng, count, SD, 0.99),
    "a day's cycle of 1,440 values, ±1 sd": day,
}
