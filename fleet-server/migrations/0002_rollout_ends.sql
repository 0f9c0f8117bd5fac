-- `running`: the planner still looks at it, also while devices go back. `ended`: nothing more is
-- given to devices, so that its family is free for another rollout.
ALTER TABLE rollouts ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN resume_requested_ms INTEGER;
UPDATE rollouts SET ended = 1
    WHERE running = 0 OR json_extract(state, '$.state') IN ('stopped', 'finished', 'aborted');
DROP INDEX rollouts_running;
CREATE UNIQUE INDEX rollouts_live ON rollouts (family) WHERE ended = 0;
