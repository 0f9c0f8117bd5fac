-- Windows in a compact form (store/window.rs; rows of before stay JSON), and added up by the hour and by
-- the day once they are old:
--   unit_ms    the unit up to which the row has been looked at, in milliseconds; 0: as it came
--   parts      windows of the device that it is the sum of
--   soundness  one byte a histogram, how each part was judged; NULL: not judged yet, or counts in no score
CREATE TABLE windows_new (
    -- Never given twice: looks at rollouts go by it.
    id                   INTEGER PRIMARY KEY AUTOINCREMENT,
    device               TEXT NOT NULL,
    bundle               BLOB NOT NULL,
    family               TEXT NOT NULL,
    version              INTEGER NOT NULL,
    start_ms             INTEGER NOT NULL,
    end_ms               INTEGER NOT NULL,
    received_ms          INTEGER NOT NULL,
    window               ANY NOT NULL,
    unit_ms              INTEGER NOT NULL DEFAULT 0,
    parts                INTEGER NOT NULL DEFAULT 1,
    soundness            BLOB
) STRICT;
INSERT INTO windows_new (id, device, bundle, family, version, start_ms, end_ms, received_ms, window)
    SELECT id, device, bundle, family, version, start_ms, end_ms, received_ms, window FROM windows;
DROP TABLE windows;
ALTER TABLE windows_new RENAME TO windows;
CREATE INDEX windows_by_device ON windows (device, bundle, start_ms);
CREATE INDEX windows_by_version ON windows (family, version, start_ms);
CREATE INDEX windows_by_unit ON windows (unit_ms, received_ms);
