"""Measures of detectors: those of the Turing Change Point Dataset, rates and their intervals.

F1 and covering are as van den Burg & Williams (2020, "An Evaluation of Change Point Detection Algorithms",
section 4.2) define them and their TCPDBench computes them: index 0 is a change point of everybody, a prediction
is used once, precision is against the union of all annotators, recall is the mean over annotators.
"""

import math

import numpy as np

Z = 1.959963984540054
RESAMPLES = 2000


def hits(annotated, predicted, margin):
    """Annotated points with a prediction of their own within the margin."""
    free, found = set(predicted), 0
    for point in sorted(annotated):
        near = [(abs(point - x), x) for x in free if abs(point - x) <= margin]
        if near:
            free.remove(min(near)[1])
            found += 1
    return found


def f1(annotations, predicted, margin=5):
    annotators = [set(points) | {0} for points in annotations]
    predicted = set(predicted) | {0}
    precision = hits(set().union(*annotators), predicted, margin) / len(predicted)
    recall = float(np.mean([hits(points, predicted, margin) / len(points) for points in annotators]))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def parts(points, length):
    borders = sorted({0, length} | {point for point in points if 0 < point < length})
    return list(zip(borders, borders[1:]))


def covering(annotations, predicted, length):
    """Of each annotated stretch the best Jaccard index of a predicted one, by length; the mean over annotators."""
    found = parts(predicted, length)

    def jaccard(a, b):
        shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
        return shared / (a[1] - a[0] + b[1] - b[0] - shared)

    def of(points):
        return sum((part[1] - part[0]) * max(jaccard(part, other) for other in found) for part in parts(points, length)) / length

    return float(np.mean([of(points) for points in annotations]))


def wilson(count, of):
    """Share and its 95 % interval (Wilson 1927)."""
    if of == 0:
        return [math.nan, 0.0, 1.0]
    share = count / of
    middle = (share + Z * Z / (2 * of)) / (1 + Z * Z / of)
    half = Z / (1 + Z * Z / of) * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    return [share, max(0.0, middle - half), min(1.0, middle + half)]


def per_10000(alarms, lengths):
    """Alarms per 10,000 observations over streams, with a 95 % interval.

    Streams are resampled, for alarms of one stream hang together; with no alarm at all the upper end is the rate
    at which that would happen one time in twenty.
    """
    alarms, lengths = np.asarray(alarms, float), np.asarray(lengths, float)
    rate = 1e4 * alarms.sum() / lengths.sum()
    if alarms.sum() == 0:
        return [0.0, 0.0, 1e4 * -math.log(0.05) / lengths.sum()]
    rng = np.random.default_rng(1)
    picked = rng.integers(0, len(alarms), (RESAMPLES, len(alarms)))
    rates = 1e4 * alarms[picked].sum(axis=1) / lengths[picked].sum(axis=1)
    return [float(rate), *(float(q) for q in np.quantile(rates, [0.025, 0.975]))]


def quartiles(delays):
    """Median and quartiles, those that never came as infinite; None where that is what they are."""
    if not delays:
        return [None, None, None]
    ordered = sorted(math.inf if d is None else d for d in delays)
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.25, 0.75)]
    return [None if math.isinf(x) else int(x) for x in at]
