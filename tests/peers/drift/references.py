"""Cases, and what the references say about them.

A case maker yields pairs (case, expected). `expected` names numbers of Dunlin's answer: `Same(x)` must be equal
to the tolerance, `Within(x, lower, upper)` must lie between two of them, `Exactly(x)` must be identical.
"""

import base64
import hashlib
import math
import warnings
from collections import namedtuple

import numpy as np
import pandas as pd
from evidently.legacy.calculations import stattests
from evidently.legacy.core import ColumnType
from river import drift
from scipy import integrate, special, stats
from scipy.spatial import distance

Same = namedtuple("Same", "value")
Within = namedtuple("Within", "value lower upper")
Exactly = namedtuple("Exactly", "value")

ALPHA = 0.05
LN_2 = math.log(2)


def evidently(test, reference, current, kind):
    return test.func(pd.Series(reference), pd.Series(current), kind, 0.1)[0]


# --- counts over categories or bins -----------------------------------------------------------


def of_counts(reference, current):
    """SciPy on two vectors of counts."""
    reference, current = np.asarray(reference), np.asarray(current)
    p, q = reference / reference.sum(), current / current.sum()
    sampling = 1 / reference.sum() + 1 / current.sum()
    filled = (reference + current) > 0
    chi = stats.chi2_contingency(np.array([reference, current])[:, filled], correction=False)
    return {
        "jensen_shannon": Same(distance.jensenshannon(p, q, base=2) ** 2),
        "total_variation": Same(distance.cityblock(p, q) / 2),
        "l_infinity": Same(distance.chebyshev(p, q)),
        "hellinger": Same(np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / math.sqrt(2)),
        "psi_bound": Same(stats.chi2.isf(ALPHA, len(p) - 1) * sampling),
        "chi_squared": Same(chi.statistic),
        "chi_squared_p": Same(chi.pvalue),
        "chi_squared_bound": Same(stats.chi2.isf(ALPHA, chi.dof)),
    }


def counts_case(reference, current):
    case = {"kind": "counts", "alpha": ALPHA}
    return case | {"reference": [int(n) for n in reference], "current": [int(n) for n in current]}


def categories(rng, count):
    """Category counts against Evidently, which is given the rows themselves, and SciPy."""
    fixture = np.array([500, 300, 200]), np.array([400, 350, 250])
    for case in range(count):
        classes = int(rng.integers(2, 25))
        sizes = rng.integers(30, 5000, 2)
        share = rng.dirichlet(np.ones(classes))
        other = share if rng.random() < 0.3 else rng.dirichlet(np.ones(classes))
        reference, current = rng.multinomial(sizes[0], share), rng.multinomial(sizes[1], other)
        if case == 0:
            reference, current = fixture
        # Evidently's χ² divides by the reference; a category it never saw has no place there.
        if np.count_nonzero(reference) < 2:
            continue
        rows = [np.repeat(np.arange(len(n)), n).astype(str) for n in (reference, current)]
        filled = (reference + current) > 0
        kind = ColumnType.Categorical
        psi = evidently(stattests.psi_stat_test, *rows, kind)
        nats = evidently(stattests.jensenshannon_stat_test, *rows, kind)
        expected = of_counts(reference[filled], current[filled]) | {
            "psi": Same(psi),
            "jensen_shannon": Same(nats**2 / LN_2),
        }
        hellinger = evidently(stattests.hellinger_stat_test, *rows, kind)
        expected["hellinger_squared"] = Same(hellinger**2)
        yield counts_case(reference[filled], current[filled]), expected


def numeric_fixture():
    square = [i * i % 97 for i in range(200)]
    return np.array(square, float), np.array(square[:150], float) + 8


def samples(rng):
    sizes = rng.integers(40, 1500, 2)
    shift, scale = rng.choice([0.0, 0.3, 2.0]), 10 ** rng.uniform(-2, 2)
    reference, current = rng.normal(0, 1, sizes[0]), rng.normal(shift, rng.uniform(0.7, 1.5), sizes[1])
    if rng.random() < 0.3:
        reference, current = rng.gamma(2, 1, sizes[0]), rng.gamma(2 + shift, 1, sizes[1])
    return reference * scale, current * scale


def numbers(rng, count):
    """Numbers over Evidently's own bins against what Evidently makes of the raw values."""
    for case in range(count):
        reference, current = numeric_fixture() if case == 0 else samples(rng)
        kind = ColumnType.Numerical
        edges = np.histogram_bin_edges(np.concatenate([reference, current]), bins="sturges")
        binned = [np.histogram(values, edges)[0] for values in (reference, current)]
        nats = evidently(stattests.jensenshannon_stat_test, reference, current, kind)
        yield (
            counts_case(*binned),
            {
                "psi": Same(evidently(stattests.psi_stat_test, reference, current, kind)),
                "jensen_shannon": Same(nats**2 / LN_2),
            },
        )
        edges = np.histogram_bin_edges(list(set(reference) | set(current)), bins="sturges")
        binned = [np.histogram(values, edges)[0] for values in (reference, current)]
        hellinger = evidently(stattests.hellinger_stat_test, reference, current, kind)
        yield counts_case(*binned), {"hellinger_squared": Same(hellinger**2)}


# --- the order of bins ------------------------------------------------------------------------


def ordered_case(edges, reference, current, times=1):
    return {
        "kind": "ordered",
        "edges": [float(edge) for edge in edges],
        "reference": [float(x) for x in reference],
        "current": [float(x) for x in current],
        "times": times,
        "reference_std": float(np.std(reference)),
    }


def atoms(rng, count):
    """A bin for each number that occurs: nothing is hidden, so both must agree."""
    for case in range(count):
        reference, current = numeric_fixture()
        if case > 0:
            sizes = rng.integers(30, 250, 2)
            places = np.sort(rng.normal(0, 10 ** rng.uniform(-1, 2), int(rng.integers(5, 400))))
            reference, current = rng.choice(places[: int(rng.integers(3, len(places) + 1))], sizes[0]), rng.choice(places, sizes[1])
        places = np.unique(np.concatenate([reference, current]))
        edges = np.unique(np.concatenate([places, np.nextafter(places, np.inf)]))
        ks = stats.ks_2samp(reference, current, method="exact")
        normed = evidently(stattests.wasserstein_stat_test, reference, current, ColumnType.Numerical)
        yield (
            ordered_case(edges, reference, current),
            {
                "ks_lower": Same(ks.statistic),
                "ks_upper": Same(ks.statistic),
                "ks_p": Same(ks.pvalue),
                "wasserstein": Same(normed),
                "wasserstein_lower": Same(normed),
                "wasserstein_upper": Same(normed),
                "std": Same(np.std(reference)),
            },
        )


def frozen_bins(rng, count):
    """Bins at the reference's quantiles: what SciPy makes of the raw values lies within the interval."""
    for case in range(count):
        reference, current = numeric_fixture() if case == 0 else samples(rng)
        bins = int(rng.choice([10, 20, 40]))
        edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)))
        edges[-1] = np.nextafter(edges[-1], np.inf)
        if rng.random() < 0.5:
            # Wide enough that nothing is in the tails.
            edges[0], edges[-1] = min(edges[0], current.min()), max(edges[-1], np.nextafter(current.max(), np.inf))
        is_open = current.min() < edges[0] or current.max() >= edges[-1]
        ks = stats.ks_2samp(reference, current, method="asymp").statistic
        normed = stats.wasserstein_distance(reference, current) / max(np.std(reference), 0.001)
        at_edges = max(abs(np.mean(reference < edge) - np.mean(current < edge)) for edge in edges)
        times = 50
        effective = times * len(reference) * len(current) / (len(reference) + len(current))
        expected = {
            "ks_upper": Within(ks, "ks_lower", "ks_upper"),
            "ks_lower": Same(at_edges),
            "wasserstein_lower": Within(normed, "wasserstein_lower", None if is_open else "wasserstein_upper"),
        }
        # So many values that their distribution has reached its limit.
        expected["ks_p"] = Same(stats.kstwobign.sf(math.sqrt(effective) * at_edges))
        yield ordered_case(edges, reference, current, times), expected


def ranges(rng, count):
    """Values out of range: SciPy's beta-binomial and binomial tails, and its Clopper–Pearson limit."""
    for _ in range(count):
        rows, size = int(rng.integers(30, 5000)), int(rng.integers(30, 5000))
        beyond = 0 if rng.random() < 0.7 else int(rng.integers(0, rows - 30 + 1) * rng.random() ** 4)
        outside = int(min(size, rng.integers(0, 4) if rng.random() < 0.3 else size * rng.random() ** 3))
        margin, alpha = float(rng.choice([0.005, 0.02, 0.1])), float(10 ** rng.uniform(-6, -1))
        allowed = (beyond + 2) / (rows + 1)
        by_count = np.arange(-1, size)
        sampling = stats.betabinom(size, beyond + 2, rows - beyond - 1).sf(by_count)
        both = np.maximum(sampling, stats.binom(size, min(allowed + margin, 1)).sf(by_count))
        last_above = lambda tail: int(np.flatnonzero(tail > alpha)[-1])
        last = last_above(both)
        yield (
            {
                "kind": "range",
                "rows": rows,
                "reference_outside": beyond,
                "inside": size - outside,
                "outside": outside,
                "margin": margin,
                "alpha": alpha,
            },
            {
                "p_value": Same(both[outside]),
                "lower": Same(stats.beta.ppf(alpha, outside, size - outside + 1) if outside else 0.0),
                "allowed": Same(allowed),
                "bound": Same(last_above(sampling) / size),
                "threshold": Same(last / size),
                "is_alarm": Exactly(outside > last),
                "chance": Same(sampling[last + 1] if last < size else 0.0),
            },
        )


# --- different values ---------------------------------------------------------------------------


def sketch(values):
    """HyperLogLog as the documentation of the wire says, from the hashes up."""
    ranks = np.zeros(1024, np.uint8)
    for value in values:
        bits = format(int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big"), "064b")
        register, rest = int(bits[:10], 2), bits[10:]
        ranks[register] = max(ranks[register], len(rest) - len(rest.lstrip("0")) + 1)
    filled = np.flatnonzero(ranks)
    if 2 * len(filled) <= 768:
        written = b"\x01" + b"".join(int(64 * at + ranks[at]).to_bytes(2, "big") for at in filled)
    else:
        written = b"\x02" + int("".join(format(rank, "06b") for rank in ranks), 2).to_bytes(768, "big")
    return base64.b64encode(written).decode().rstrip("=")


def different(rng, count):
    """Sketches of different values, byte for byte, and how near the estimate is to what was counted."""
    for _ in range(count):
        kinds = int(10 ** rng.uniform(0, 4))
        devices = [rng.integers(0, kinds, int(rng.integers(0, 1000))) for _ in range(int(rng.integers(1, 8)))]
        devices = [[f"value {n}" for n in values] for values in devices]
        every = {value for values in devices for value in values}
        yield (
            {"kind": "distinct", "devices": devices},
            {"sketch": Exactly(sketch(every)), "exact": Within(len(every), "at_least", "at_most")},
        )


# --- many features, many looks, two versions ----------------------------------------------------


def together(rng, count):
    """Benjamini and Hochberg's adjusted p-values."""
    for _ in range(count):
        p = rng.uniform(0, 1, int(rng.integers(1, 200))) ** rng.choice([1, 4])
        adjusted = stats.false_discovery_control(p, method="bh")
        found = int(np.count_nonzero(adjusted <= ALPHA))
        yield (
            {"kind": "together", "p_values": p.tolist(), "alpha": ALPHA},
            {"adjusted": Same(adjusted), "discoveries": Exactly(max(found, np.count_nonzero(p <= ALPHA / len(p))))},
        )


def mixed_likelihood(variance, effect_variance, n, mean):
    """The likelihood ratio as what it is: an integral over effects."""
    v, tau = variance / n, math.sqrt(effect_variance)
    centre, width = mean * effect_variance / (v + effect_variance), math.sqrt(v * effect_variance / (v + effect_variance))

    def integrand(effect):
        ratio = effect * mean / v - effect * effect / (2 * v)
        return math.exp(ratio) * stats.norm.pdf(effect, 0, tau)

    return integrate.quad(integrand, centre - 12 * width, centre + 12 * width, epsabs=0, epsrel=1e-12, limit=200)[0]


def looks(rng, count):
    """The mixture test against the integral that it is, numerically."""
    for case in range(count):
        variance, effect_variance = rng.uniform(0.1, 5), 10 ** rng.uniform(-3, 0)
        seen = [(int(n), float(rng.normal(0, math.sqrt(variance / n)))) for n in np.sort(rng.integers(1, 5000, 5))]
        if case == 0:
            variance, effect_variance, seen = 2.0, 0.01, [(100, 0.3), (1000, 0.15)]
        ratios = [mixed_likelihood(variance, effect_variance, n, mean) for n, mean in seen]
        yield (
            {"kind": "looks", "variance": variance, "effect_variance": effect_variance, "looks": seen},
            {"likelihood_ratio": Same(ratios), "p_value": Same(np.minimum.accumulate(np.minimum(1, 1 / np.array(ratios))))},
        )


def paired(rng, count):
    """E-values of disagreements against SciPy's beta functions."""
    for case in range(count):
        s, f = (20, 5) if case == 0 else (int(n) for n in rng.integers(0, 300, 2))
        margin = float(rng.choice([0.0, 0.02, 0.1, 0.3]))
        p0 = 0.5 - margin
        mixed = special.betaln(s + 1, f + 1) + np.log(special.betaincc(s + 1, f + 1, p0)) - math.log(1 - p0)
        yield (
            {"kind": "paired", "wins": s, "losses": f, "margin": margin},
            {
                "differ": Same(math.exp((s + f) * LN_2 + special.betaln(s + 1, f + 1))),
                "not_inferior": Same(np.exp(mixed - s * math.log(p0) - f * math.log(1 - p0))),
            },
        )


# --- accuracy without labels ------------------------------------------------------------------


def labelled(rng, names, rows, sharpness, temperature):
    """Rows whose scores are right in order, and wrong as probabilities unless the temperature is 1."""
    logits = rng.normal(0, sharpness, (rows, len(names)))
    truth = np.array([rng.choice(len(names), p=special.softmax(row)) for row in logits])
    scores = special.softmax(logits / temperature, axis=1)
    frame = pd.DataFrame(scores, columns=[f"score_{name}" for name in names])
    frame["said"] = [names[at] for at in scores.argmax(axis=1)]
    frame["true"] = [names[at] for at in truth]
    return frame


def curve_of(calibrator):
    regressor = getattr(calibrator, "_regressor", None)
    # Scores that need no calibration are probabilities as they are.
    if regressor is None:
        return {"scores": [0.0, 1.0], "probabilities": [0.0, 1.0]}
    probabilities = np.clip(regressor.y_thresholds_, 0.0, 1.0)
    return {"scores": regressor.X_thresholds_.tolist(), "probabilities": probabilities.tolist()}


def unlabelled(rng, count):
    """NannyML's CBPE, its calibration taken over."""
    from nannyml import CBPE
    from nannyml.chunk import SizeBasedChunker

    for case in range(max(3, count // 20)):
        names = [f"class_{at}" for at in range(int(rng.integers(3, 7)))]
        temperature = [1.0, 0.4, 2.0][case % 3]
        reference = labelled(rng, names, 2000, 2.0, temperature)
        rows = int(rng.integers(300, 900))
        current = labelled(rng, names, rows, rng.uniform(0.5, 2.5), temperature)
        scores = {name: f"score_{name}" for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = CBPE(
                problem_type="classification_multiclass",
                y_pred_proba=scores,
                y_pred="said",
                y_true="true",
                metrics=["accuracy", "precision", "recall", "f1", "confusion_matrix"],
                chunker=SizeBasedChunker(rows),
                normalize_confusion_matrix="all",
            )
            estimator.fit(reference)
            estimated = estimator.estimate(current.drop(columns=["true"])).filter(period="analysis").to_df().iloc[0]
        right = int((reference["said"] == reference["true"]).sum())
        calibration = {"curves": [curve_of(estimator._calibrators[name]) for name in names], "rows": len(reference), "right": right}
        value = lambda metric: estimated[(metric, "value")]
        cells = [value(f"true_{true}_pred_{said}") for said in names for true in names]
        yield (
            {
                "kind": "unlabelled",
                "calibration": calibration,
                "scores": current[list(scores.values())].to_numpy().tolist(),
                "predicted": [names.index(said) for said in current["said"]],
            },
            {
                "accuracy": Same(value("accuracy")),
                "confusion": Same(cells),
                "precision_mean": Same(value("precision")),
                "recall_mean": Same(value("recall")),
                "f1_mean": Same(value("f1")),
            },
        )


# --- detectors --------------------------------------------------------------------------------


def fixture_stream():
    state, values = 42, []
    for at in range(4000):
        state = (1664525 * state + 1013904223) % 2**32
        values.append(float(state / 2**32 < (0.2 if at < 2000 else 0.5)))
    return values


def random_stream(rng, shape):
    size = int(rng.integers(50, 4000))
    change = int(rng.integers(0, size))
    is_after = np.arange(size) >= change
    if shape == 0:
        return np.where(is_after, rng.beta(2, 3, size), rng.beta(5, 2, size))
    if shape == 1:
        return (rng.random(size) < np.where(is_after, 0.6, 0.1)).astype(float)
    a, b = rng.normal(0, 1, 2) * 10 ** rng.uniform(-1, 1.5)
    noise = rng.normal(0, 10 ** rng.uniform(-2, 1.5), size)
    if shape == 2:
        return noise + np.where(is_after, b, a)
    # A slow change.
    return noise + a + (b - a) * np.clip((np.arange(size) - change) / 500, 0, 1)


def streams(rng, count):
    """ADWIN and Page–Hinkley against river, index by index."""
    for case in range(count):
        values = fixture_stream() if case == 0 else [float(x) for x in random_stream(rng, case % 4)]
        adwin, page_hinkley = drift.ADWIN(), drift.PageHinkley()
        adwin_at, page_hinkley_at = [], []
        for at, value in enumerate(values):
            adwin.update(value)
            page_hinkley.update(value)
            adwin_at += [at] if adwin.drift_detected else []
            page_hinkley_at += [at] if page_hinkley.drift_detected else []
        yield (
            {"kind": "stream", "values": values},
            {
                "adwin_at": Exactly(adwin_at),
                "adwin_width": Exactly(int(adwin.width)),
                "adwin_estimate": Same(adwin.estimation),
                "page_hinkley_at": Exactly(page_hinkley_at),
            },
        )


ALL = [categories, numbers, atoms, frozen_bins, ranges, different, together, looks, paired, unlabelled, streams]
