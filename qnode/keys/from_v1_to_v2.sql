-- Version 1 added a block's epsilons when it gave key, and did not count tags.

ALTER TABLE site ADD COLUMN tags_used INTEGER NOT NULL DEFAULT 0;
-- No block used more than four.
UPDATE site SET tags_used = 4 * last_block_id;
-- Blocks that gave no key, or wait for the peer's word, were not counted: as if each block had the largest epsilon known.
UPDATE site SET epsilon = max(epsilon, last_block_id * (
    SELECT coalesce(max(json_extract(CAST(record AS TEXT), '$.eps_sec') +
                        json_extract(CAST(record AS TEXT), '$.eps_cor')), 0.0)
    FROM block WHERE record IS NOT NULL
));
PRAGMA user_version = 2;
