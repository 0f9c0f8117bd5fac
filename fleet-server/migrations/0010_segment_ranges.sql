-- Numbers of segments that are on disk, by runs without a hole, once they are a day old: a device counts
-- up, so that a row for each would outgrow everything else.
CREATE TABLE segment_ranges (
    device      TEXT NOT NULL,
    boot        BLOB NOT NULL,
    -- Both included, as 64 bits with a sign, as in segments.
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    -- Of the last that arrived.
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (device, boot, first)
) STRICT, WITHOUT ROWID;

-- So that what devices dropped is forgotten with the records that told of it.
ALTER TABLE gaps ADD COLUMN received_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX gaps_by_receipt ON gaps (received_ms);
