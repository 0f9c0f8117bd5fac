-- Times are milliseconds since 1970 (UTC). Digests are 32 raw bytes. JSON is text.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
INSERT INTO meta (key, value) VALUES ('epoch', '1');

CREATE TABLE admins (
    name TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE
) STRICT;

CREATE TABLE claims (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL UNIQUE,
    uses_left  INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    labels     TEXT NOT NULL
) STRICT;

CREATE TABLE devices (
    id                  TEXT PRIMARY KEY,
    labels              TEXT NOT NULL,
    hardware            TEXT NOT NULL,
    arch                TEXT NOT NULL,
    agent_version       TEXT NOT NULL,
    cert_sha256         BLOB NOT NULL,
    public_key_sha256   BLOB NOT NULL,
    claim               TEXT NOT NULL,
    enrolled_ms         INTEGER NOT NULL,
    revoked             INTEGER NOT NULL DEFAULT 0,
    online              INTEGER NOT NULL DEFAULT 0,
    connection          TEXT,
    last_seen_ms        INTEGER,
    reported            TEXT,
    reported_sequence   INTEGER NOT NULL DEFAULT -1,
    reported_epoch      INTEGER NOT NULL DEFAULT 0,
    reported_generation INTEGER NOT NULL DEFAULT 0,
    active_family       TEXT,
    active_version      INTEGER
) STRICT;
CREATE INDEX devices_by_key ON devices (public_key_sha256);

CREATE TABLE desired (
    device     TEXT PRIMARY KEY,
    epoch      INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    bundles    TEXT NOT NULL
) STRICT;

CREATE TABLE bundles (
    family         TEXT NOT NULL,
    version        INTEGER NOT NULL,
    digest         BLOB NOT NULL,
    target         TEXT NOT NULL,
    rollback_floor INTEGER NOT NULL,
    manifest_json  TEXT NOT NULL,
    profile        BLOB,
    published_ms   INTEGER NOT NULL,
    -- 0 once the key holders have taken it off the signed list.
    listed         INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (family, version)
) STRICT;
CREATE INDEX bundles_by_digest ON bundles (digest);

CREATE TABLE rollouts (
    id                 TEXT PRIMARY KEY,
    family             TEXT NOT NULL,
    version            INTEGER NOT NULL,
    digest             BLOB NOT NULL,
    policy             TEXT NOT NULL,
    selector           TEXT NOT NULL,
    probation          TEXT NOT NULL,
    created_ms         INTEGER NOT NULL,
    created_by         TEXT NOT NULL,
    running            INTEGER NOT NULL,
    abort_requested_ms INTEGER,
    state              TEXT NOT NULL,
    report             TEXT NOT NULL
) STRICT;
-- One running rollout a family.
CREATE UNIQUE INDEX rollouts_running ON rollouts (family) WHERE running = 1;

CREATE TABLE rollout_devices (
    rollout  TEXT NOT NULL,
    device   TEXT NOT NULL,
    stage    INTEGER NOT NULL,
    position INTEGER NOT NULL,
    -- What the device was asked to run before this rollout.
    before   TEXT,
    state    TEXT NOT NULL,
    PRIMARY KEY (rollout, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE rollout_verdicts (
    id      INTEGER PRIMARY KEY,
    rollout TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    verdict TEXT NOT NULL
) STRICT;
CREATE INDEX rollout_verdicts_by_rollout ON rollout_verdicts (rollout, id);

-- Remembered longer than the rows it brought, so that a late repeat is still known.
CREATE TABLE segments (
    device      TEXT NOT NULL,
    boot        BLOB NOT NULL,
    segment     INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (device, boot, segment)
) STRICT, WITHOUT ROWID;

CREATE TABLE windows (
    id                   INTEGER PRIMARY KEY,
    device               TEXT NOT NULL,
    bundle               BLOB NOT NULL,
    family               TEXT NOT NULL,
    version              INTEGER NOT NULL,
    start_ms             INTEGER NOT NULL,
    end_ms               INTEGER NOT NULL,
    received_ms          INTEGER NOT NULL,
    window               TEXT NOT NULL
) STRICT;
CREATE INDEX windows_by_device ON windows (device, bundle, start_ms);
CREATE INDEX windows_by_version ON windows (family, version, start_ms);
CREATE INDEX windows_by_receipt ON windows (received_ms);

CREATE TABLE records (
    id          INTEGER PRIMARY KEY,
    device      TEXT NOT NULL,
    class       TEXT NOT NULL,
    time_ms     INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX records_by_device ON records (device, class, id);
CREATE INDEX records_by_receipt ON records (received_ms);

CREATE TABLE gaps (
    device  TEXT NOT NULL,
    boot    BLOB NOT NULL,
    segment INTEGER NOT NULL,
    PRIMARY KEY (device, boot, segment)
) STRICT, WITHOUT ROWID;
