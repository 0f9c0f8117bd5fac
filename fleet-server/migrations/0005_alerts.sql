-- What operators want to be told of, what was so, and what webhooks have still to be told.
CREATE TABLE alert_rules (
    name TEXT PRIMARY KEY,
    rule TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- Where each subject of a rule stands; those that are quiet have no row.
CREATE TABLE alert_tracks (
    rule TEXT NOT NULL REFERENCES alert_rules (name) ON DELETE CASCADE,
    subject TEXT NOT NULL,
    track TEXT NOT NULL,
    PRIMARY KEY (rule, subject)
) STRICT;

CREATE TABLE alerts (
    id INTEGER PRIMARY KEY,
    rule TEXT NOT NULL,
    subject TEXT NOT NULL,
    severity TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    fired_ms INTEGER NOT NULL,
    resolved_ms INTEGER,
    silenced INTEGER NOT NULL,
    seen TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX alerts_firing ON alerts (rule, subject) WHERE resolved_ms IS NULL;
CREATE INDEX alerts_resolved ON alerts (resolved_ms);

CREATE TABLE silences (
    id INTEGER PRIMARY KEY,
    rule TEXT,
    subject TEXT,
    until_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    made_by TEXT NOT NULL
) STRICT;

CREATE TABLE webhooks (
    name TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    webhook TEXT NOT NULL REFERENCES webhooks (name) ON DELETE CASCADE,
    body TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_ms INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    last_error TEXT
) STRICT;
CREATE INDEX deliveries_due ON deliveries (dead, next_ms);
