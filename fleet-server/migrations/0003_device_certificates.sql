-- Every device certificate that was signed. `current`: the newest that the device has used; `next`:
-- signed after it, not yet used; `superseded`: a newer one was used, or the device enrolled anew.
CREATE TABLE device_certificates (
    device            TEXT NOT NULL,
    sha256            BLOB NOT NULL,
    public_key_sha256 BLOB NOT NULL,
    issued_ms         INTEGER NOT NULL,
    state             TEXT NOT NULL CHECK (state IN ('current', 'next', 'superseded')),
    superseded_ms     INTEGER,
    -- When the use of a superseded one was last noted.
    misused_ms        INTEGER,
    PRIMARY KEY (device, sha256)
) STRICT, WITHOUT ROWID;
INSERT INTO device_certificates (device, sha256, public_key_sha256, issued_ms, state)
    SELECT id, cert_sha256, public_key_sha256, enrolled_ms, 'current' FROM devices;
