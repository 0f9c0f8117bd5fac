-- What every version has answered since its first window came. They only rise: neither retention nor
-- roll-up touches them, so that a counter made of them never falls.
CREATE TABLE version_totals (
    family     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    inferences INTEGER NOT NULL,
    errors     INTEGER NOT NULL,
    -- Counts by bucket, JSON.
    latency    TEXT NOT NULL,
    heard_ms   INTEGER NOT NULL,
    PRIMARY KEY (family, version)
) STRICT, WITHOUT ROWID;
