-- Version 1 added a block's epsilons when it gave key, and did not count tags.

ALTER TABLE site ADD COLUMN tags_used INTEGER NOT NULL DEFAULT 0;
-- No block used more than four.
UPDATE site SET tags_used = 4 * last_block_id;
-- Those that wait for the peer's word were opened, and would be counted only now.
UPDATE site SET epsilon = epsilon + (
    SELECT coalesce(sum(json_extract(CAST(record AS TEXT), '$.eps_sec') +
                        json_extract(CAST(record AS TEXT), '$.eps_cor')), 0.0)
    FROM block WHERE state = 'prepared'
);
PRAGMA user_version = 2;
