"""Part B: devices' windows added up by Dunlin's server, against Evidently on the pooled raw rows."""

import dunlin
import models
import numpy as np
import pooled

REFERENCE_DEVICES = 20

# What happens to the first feature: (rng, its values, device of each value, size).
EFFECTS = {
    "none": lambda rng, x, device, size: x,
    "shift": lambda rng, x, device, size: x + size,
    "spread": lambda rng, x, device, size: x * size,
    "one device in twenty": lambda rng, x, device, size: x + size * (device % 20 == 0),
    "values at random, 1 in 20": lambda rng, x, device, size: x + size * (rng.random(len(x)) < 0.05),
}


def rows_of(rng, devices, each, features, between):
    """Standard normal rows; each device's means lie `between` standard deviations around the fleet's."""
    device = np.repeat(np.arange(devices), each)
    shift = rng.normal(0, between, (devices, features)) if between else np.zeros((devices, features))
    return rng.normal(0, 1, (devices * each, features)) + shift[device], device


def of_dunlin(rng, reference, current, device_rows):
    """Dunlin's answer; a model's outputs that never change go with the rows."""
    dunlin.set_reference(dunlin.with_outputs(rng, reference), 2)
    return dunlin.fleet(dunlin.with_outputs(rng, current), device_rows)


def simulated(rng, setting, kinds=pooled.TESTS):
    """One draw: by method and number of features whether anything was flagged, and whether feature 0 was."""
    effect, size = EFFECTS[setting["effect"]], setting["size"]
    most = max(setting["features"])
    reference, _ = rows_of(rng, REFERENCE_DEVICES, setting["reference"] // REFERENCE_DEVICES, most, setting["between"])
    current, device = rows_of(rng, setting["devices"], setting["each"], most, setting["between"])
    current[:, 0] = effect(rng, current[:, 0], device, size)
    device_rows = [setting["each"]] * setting["devices"]
    only = None if setting["effect"] == "none" else [0]
    rivals = pooled.columns(reference, current, kinds, only)
    out = {}
    for features in setting["features"]:
        answer = of_dunlin(rng, reference[:, :features], current[:, :features], device_rows)
        flags = {
            "Dunlin": dunlin.features(answer),
            "Dunlin PSI": [status == "alarm" for status in answer["psi"]],
            "Dunlin range": [status == "alarm" for status in answer["out_of_range"]],
            "Dunlin KS": [status == "alarm" for status in answer["kolmogorov_smirnov"]],
            "Dunlin W1": [status == "alarm" for status in answer["wasserstein"]],
            "Dunlin without margin": answer["significant"],
        }
        flags |= {name: list(found[:features]) for name, found in rivals.items()}
        out[features] = {name: (any(found), bool(found[0])) for name, found in flags.items()}
        found = rivals["Evidently default"][:features]
        share = (np.mean(found) >= pooled.DRIFT_SHARE) if only is None else features == 1 and found[0]
        out[features]["Evidently data set"] = (bool(share), bool(share))
        out[features]["Dunlin whole"] = (answer["whole"] == "alarm",) * 2
        is_insufficient = answer["psi"][0] == "insufficient"
        out[features]["insufficient"] = (is_insufficient, is_insufficient)
    return out


def counts(setting, seeds):
    """How often anything was flagged, and the first feature, over seeds."""
    sums = {}
    for seed in range(*seeds):
        drawn = simulated(np.random.default_rng([50, *setting["seed"], seed]), setting)
        for features, by in drawn.items():
            for name, (anything, first) in by.items():
                slot = sums.setdefault((features, name), [0, 0, 0])
                slot[0] += anything
                slot[1] += first
                slot[2] += 1
    return [[features, name, *slot] for (features, name), slot in sums.items()]


# --- real data --------------------------------------------------------------------------------

FLEET_DEVICES = 5
ONE_DEVICE = "one device in five, noise of 1 sd"


def corrupted(rng, corruption, x, sd, device):
    if corruption == ONE_DEVICE:
        rows = device == 0
        out = x.copy()
        out[rows] = models.CORRUPTIONS["noise of 1 sd"](rng, x[rows], sd)
        return out
    return models.CORRUPTIONS[corruption](rng, x, sd)


def real(data, corruption, seeds):
    """A model's held-out rows, halved anew at each seed: one half the reference, the other sent by five devices."""
    model = models.model(data)
    sums = {}
    for seed in range(*seeds):
        rng = np.random.default_rng([60, list(models.DATA).index(data), seed])
        order = rng.permutation(len(model.field))
        half = len(order) // 2
        reference, current = model.field[order[:half]], model.field[order[half:]]
        device = np.sort(np.arange(len(current)) % FLEET_DEVICES)
        current = corrupted(rng, corruption, current, model.sd, device)
        dunlin.set_reference(dunlin.with_outputs(rng, reference, model.answer(reference)), model.classes)
        answer = dunlin.fleet(dunlin.with_outputs(rng, current, model.answer(current)), np.bincount(device))
        features = sum(dunlin.features(answer))
        found = pooled.columns(reference, current, {"Evidently default": None})["Evidently default"]
        flags = {
            "Dunlin": answer["whole"] == "alarm",
            "Dunlin, features": features > 0,
            "Dunlin, outputs": "alarm" in [*answer["confidence"], *answer["entropy"], *answer["mix"]],
            "Evidently, any column": bool(found.any()),
            "Evidently data set": bool(found.mean() >= pooled.DRIFT_SHARE),
        }
        for name, is_flagged in flags.items():
            sums[name] = sums.get(name, 0) + is_flagged
        for name, count in (("Dunlin", features), ("Evidently", int(found.sum()))):
            sums[f"columns {name}"] = sums.get(f"columns {name}", 0) + count
    return {
        "sums": sums,
        "of": len(range(*seeds)),
        "reference": half,
        "current": len(model.field) - half,
        "features": model.field.shape[1],
    }


def preset_agrees(seed):
    """Whether the functions used here say what Evidently's preset says, on one draw of both sizes of a reference."""
    rng = np.random.default_rng([70, seed])
    agreed = []
    for size in (1000, 2000):
        reference, current = rng.normal(0, 1, (size, 6)), rng.normal(0, 1, (500, 6)) + np.linspace(0, 0.25, 6)
        found = pooled.columns(reference, current)["Evidently default"]
        agreed.append((int(found.sum()), bool(found.mean() >= pooled.DRIFT_SHARE)) == pooled.of_preset(reference, current))
    return all(agreed)
