-- Samples of inputs that devices keep, sealed to a key that this server does not have: what was asked
-- for, what came, and who did what with it.
CREATE TABLE capture_requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    family TEXT,
    version INTEGER,
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE capture_targets (
    request INTEGER NOT NULL REFERENCES capture_requests (id) ON DELETE CASCADE,
    device TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    batches INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    PRIMARY KEY (request, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX capture_targets_waiting ON capture_targets (device) WHERE state = 'waiting';

CREATE TABLE captures (
    sha256 BLOB PRIMARY KEY,
    request INTEGER NOT NULL,
    device TEXT NOT NULL,
    family TEXT NOT NULL,
    version INTEGER NOT NULL,
    header TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX captures_by_device ON captures (device, bytes);
CREATE INDEX captures_by_request ON captures (request);
CREATE INDEX captures_by_time ON captures (received_ms);

-- Apart from what lists read.
CREATE TABLE capture_contents (
    sha256 BLOB PRIMARY KEY REFERENCES captures (sha256) ON DELETE CASCADE,
    sealed BLOB NOT NULL
) STRICT;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (time_ms);
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'what was audited is not changed');
END;
