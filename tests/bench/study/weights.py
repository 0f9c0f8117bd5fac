"""Part C: bytes that a device sends about a window of rows."""

import gzip
import json

import dunlin
import models
import numpy as np
import pandas as pd
import whylogs
from whylogs.core.datatypes import Fractional
from whylogs.core.metrics import StandardMetric
from whylogs.core.resolvers import MetricSpec, ResolverSpec
from whylogs.core.schema import DeclarativeSchema

# whylogs' distribution of a column (a KLL sketch) alone: without its count of distinct values and of types.
LEAN = [ResolverSpec(column_type=Fractional, metrics=[MetricSpec(StandardMetric.distribution.value)])]


def as_json(rows):
    return "\n".join(json.dumps([float(f"{value:.7g}") for value in row]) for row in rows).encode()


def packed(content):
    return len(gzip.compress(content, 6, mtime=0))


def of_rows(reference, rows, classes, probabilities):
    """Bytes of one window of these rows: Dunlin's, whylogs' profile of the same columns, the rows themselves."""
    rng = np.random.default_rng(80)
    dunlin.set_reference(dunlin.with_outputs(rng, reference, probabilities[0]), classes)
    sent = dunlin.with_outputs(rng, rows, probabilities[1])
    # whylogs profiles what Dunlin's window holds, but the latency: features, confidence, entropy, class.
    frame = pd.DataFrame(sent[:, :-1], columns=[f"x[{at}]" for at in range(sent.shape[1] - 1)])
    profile, lean = (
        whylogs.log(pandas=frame, schema=schema).profile().view().serialize() for schema in (None, DeclarativeSchema(LEAN))
    )
    text = as_json(rows)
    return dunlin.wire(sent) | {
        "features": rows.shape[1],
        "rows": len(rows),
        "whylogs_bytes": len(profile),
        "whylogs_gzip_bytes": packed(profile),
        "whylogs_lean_bytes": len(lean),
        "json_bytes": len(text),
        "json_gzip_bytes": packed(text),
        "float32_bytes": rows.astype("<f4").nbytes,
    }


def normal(features, count):
    rng = np.random.default_rng([81, features, count])
    return of_rows(rng.normal(0, 1, (5000, features)), rng.normal(0, 1, (count, features)), 2, (None, None))


def of_model(data, count):
    """Rows of a model's data, drawn from its held-out half."""
    model = models.model(data)
    rows, _ = model.draw(np.random.default_rng([82, count]), count)
    return of_rows(model.field, rows, model.classes, (model.answer(model.field), model.answer(rows)))
