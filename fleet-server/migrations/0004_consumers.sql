-- Programs besides the fleet's own that read what devices send. A row stays when it is revoked, so
-- that its name never means something else. `devices`: empty for all.
CREATE TABLE consumers (
    name        TEXT PRIMARY KEY,
    channels    TEXT NOT NULL,
    devices     TEXT NOT NULL,
    cert_sha256 BLOB NOT NULL,
    issued_ms   INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    renewed_by  TEXT,
    revoked_ms  INTEGER,
    revoked_by  TEXT
) STRICT;
