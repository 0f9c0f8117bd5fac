-- Receivers drop numbers that they know: a number is never given twice, also when all that had one are
-- delivered.
CREATE TABLE numbered_deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL REFERENCES webhooks (name) ON DELETE CASCADE,
    body TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_ms INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    last_error TEXT
) STRICT;
-- Above all that the numbers before can have been.
INSERT INTO sqlite_sequence (name, seq) VALUES ('numbered_deliveries', 1000000);
INSERT INTO numbered_deliveries
    SELECT id, webhook, body, created_ms, attempts, next_ms, dead, last_error FROM deliveries;
DROP TABLE deliveries;
ALTER TABLE numbered_deliveries RENAME TO deliveries;
CREATE INDEX deliveries_due ON deliveries (dead, next_ms);
