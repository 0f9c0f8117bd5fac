"""Detectors of changes: Dunlin's on the device, river's, and none at all."""

import dunlin
from river import drift

# Kept for streams that the annotated series are no part of, see streams.tune.
GRIDS = {
    "river ADWIN": (drift.ADWIN, [{"delta": d, "clock": c} for d in (0.002, 0.02, 0.2) for c in (1, 8, 32)]),
    "river Page–Hinkley": (
        drift.PageHinkley,
        [{"threshold": t, "delta": d} for t in (3, 6, 12, 25, 50) for d in (0.005, 0.1, 0.5)],
    ),
    "river KSWIN": (
        drift.KSWIN,
        [{"alpha": a, "window_size": w, "stat_size": 30} for a in (1e-5, 1e-4, 1e-3, 5e-3) for w in (60, 100)],
    ),
}


def river(kind, signals, **setting):
    """Indices at which any signal's detector says so."""
    found = set()
    for signal in signals:
        detector = kind(seed=1, **setting) if kind is drift.KSWIN else kind(**setting)
        for at, value in enumerate(signal.tolist()):
            detector.update(value)
            if detector.drift_detected:
                found.add(at)
    return sorted(found)


def first(kind, signals, start, **setting):
    """The first index from `start` on at which any signal's detector says so, or None; nothing after it is run."""
    running = [kind(seed=1, **setting) if kind is drift.KSWIN else kind(**setting) for _ in signals]
    for at in range(len(signals[0])):
        for detector, signal in zip(running, signals):
            detector.update(float(signal[at]))
        if at >= start and any(detector.drift_detected for detector in running):
            return at
    return None


def of_dunlin(signals):
    """By detector the indices, and where ADWIN's kept window begins: where it thinks the change was."""
    told = []
    # The device watches two signals at most; of a series of more dimensions each is watched by itself.
    pairs = [signals] if len(signals) <= 2 else [[signal] for signal in signals]
    for pair in pairs:
        told += dunlin.watch(pair)
    of = lambda name: sorted({at for at, detector, _ in told if detector == name})
    placed = {max(0, at - width + 1) for at, detector, width in told if detector == "adwin"}
    return {
        "Dunlin": sorted({at for at, _, _ in told}),
        "Dunlin ADWIN": of("adwin"),
        "Dunlin Page–Hinkley": of("page_hinkley"),
        "Dunlin ADWIN, placed": sorted(placed),
    }
