-- Back to version 1, for release 0.1.0. The audit stays in the file: that release does not look at it.

DROP TRIGGER own_added;
DROP TRIGGER own_removed;
DROP TRIGGER own_changed;
DROP TRIGGER peer_added;
DROP TRIGGER peer_removed;
DROP TRIGGER peer_changed;
DROP TABLE waiting_pair;
DROP TABLE loss;
ALTER TABLE site DROP COLUMN tags_used;
ALTER TABLE site DROP COLUMN waits;
ALTER TABLE site DROP COLUMN peer_sent_segment;
ALTER TABLE site DROP COLUMN peer_sent_index;
ALTER TABLE site DROP COLUMN lineage;
ALTER TABLE site DROP COLUMN lineage_before;
ALTER TABLE site DROP COLUMN age_mark;
ALTER TABLE site DROP COLUMN own_chunks;
ALTER TABLE site DROP COLUMN stock_chunks;
ALTER TABLE site DROP COLUMN peer_chunks;
-- Version 1 reads that a block was recorded from its assumptions.
UPDATE block SET record = CAST(json_remove(CAST(record AS TEXT), '$.recorded') AS BLOB) WHERE record IS NOT NULL;
PRAGMA user_version = 1;
