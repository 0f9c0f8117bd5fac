-- What a device showed to the early looks at one stage of a rollout: written once and never changed,
-- so that a look is the same whenever and by whichever process it is taken.
CREATE TABLE rollout_entries (
    -- Their order is the order in which devices had shown enough.
    id          INTEGER PRIMARY KEY,
    rollout     TEXT NOT NULL,
    stage       INTEGER NOT NULL,
    device      TEXT NOT NULL,
    -- Change of mean confidence, after less before, in 10^-9; NULL: it never will have enough.
    change_nano INTEGER,
    entered_ms  INTEGER NOT NULL,
    UNIQUE (rollout, stage, device)
) STRICT;

-- Up to which window a stage's devices were looked through.
CREATE TABLE rollout_marks (
    rollout   TEXT NOT NULL,
    stage     INTEGER NOT NULL,
    window_id INTEGER NOT NULL,
    PRIMARY KEY (rollout, stage)
) STRICT, WITHOUT ROWID;
