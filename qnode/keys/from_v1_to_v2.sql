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
ALTER TABLE site ADD COLUMN waits TEXT NOT NULL DEFAULT '';
-- Version 1 did not say which of the two it waits for: this one is the safe one.
UPDATE site SET waits = 'anchorless' WHERE awaiting_peer != '';
ALTER TABLE site ADD COLUMN peer_sent_segment INTEGER NOT NULL DEFAULT -1;
ALTER TABLE site ADD COLUMN peer_sent_index INTEGER NOT NULL DEFAULT -1;
ALTER TABLE site ADD COLUMN lineage BLOB NOT NULL DEFAULT x'';
ALTER TABLE site ADD COLUMN lineage_before BLOB NOT NULL DEFAULT x'';
ALTER TABLE site ADD COLUMN age_mark BLOB NOT NULL DEFAULT x'';
-- Sums of what is assigned were made anew each time; the table waiting_pair is filled by the program.
ALTER TABLE site ADD COLUMN own_chunks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN stock_chunks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN peer_chunks INTEGER NOT NULL DEFAULT 0;
UPDATE site SET
    own_chunks = (SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0) FROM own_assignment),
    stock_chunks = (SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0) FROM own_assignment
                    WHERE stock = 1 AND acknowledged = 1),
    peer_chunks = (SELECT coalesce(sum(keys_left * chunks_per_key), 0) FROM peer_assignment);
CREATE TABLE waiting_pair (
    master_sae TEXT    NOT NULL,
    slave_sae  TEXT    NOT NULL,
    chunks     INTEGER NOT NULL,
    PRIMARY KEY (master_sae, slave_sae)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER own_added AFTER INSERT ON own_assignment BEGIN
    UPDATE site SET own_chunks = own_chunks + (NEW.n_keys - NEW.n_taken) * NEW.chunks_per_key,
        stock_chunks = stock_chunks + (NEW.stock = 1 AND NEW.acknowledged = 1) * (NEW.n_keys - NEW.n_taken) * NEW.chunks_per_key; END;
CREATE TRIGGER own_removed AFTER DELETE ON own_assignment BEGIN
    UPDATE site SET own_chunks = own_chunks - (OLD.n_keys - OLD.n_taken) * OLD.chunks_per_key,
        stock_chunks = stock_chunks - (OLD.stock = 1 AND OLD.acknowledged = 1) * (OLD.n_keys - OLD.n_taken) * OLD.chunks_per_key; END;
CREATE TRIGGER own_changed AFTER UPDATE ON own_assignment BEGIN
    UPDATE site SET own_chunks = own_chunks + (OLD.n_taken - NEW.n_taken) * NEW.chunks_per_key,
        stock_chunks = stock_chunks + (NEW.stock = 1 AND NEW.acknowledged = 1) * (NEW.n_keys - NEW.n_taken) * NEW.chunks_per_key
            - (OLD.stock = 1 AND OLD.acknowledged = 1) * (OLD.n_keys - OLD.n_taken) * OLD.chunks_per_key; END;
CREATE TRIGGER peer_added AFTER INSERT ON peer_assignment BEGIN
    UPDATE site SET peer_chunks = peer_chunks + NEW.keys_left * NEW.chunks_per_key; END;
CREATE TRIGGER peer_removed AFTER DELETE ON peer_assignment BEGIN
    UPDATE site SET peer_chunks = peer_chunks - OLD.keys_left * OLD.chunks_per_key; END;
CREATE TRIGGER peer_changed AFTER UPDATE ON peer_assignment BEGIN
    UPDATE site SET peer_chunks = peer_chunks + (NEW.keys_left - OLD.keys_left) * NEW.chunks_per_key; END;
CREATE TABLE loss (
    loss_id INTEGER PRIMARY KEY,
    content BLOB NOT NULL
) STRICT;
-- That a block was recorded was one of its assumptions only.
UPDATE block SET record = CAST(json_set(CAST(record AS TEXT), '$.recorded', json('true')) AS BLOB)
WHERE record IS NOT NULL AND EXISTS (
    SELECT 1 FROM json_each(CAST(record AS TEXT), '$.assumptions')
    WHERE value = 'tags or symbols of this block were recorded: whoever reads the recording knows its key'
);
-- A store that was rolled back to version 1 has kept its audit.
CREATE TABLE IF NOT EXISTS audit_chain (
    chain         INTEGER PRIMARY KEY,
    chain_id      BLOB    NOT NULL UNIQUE,
    pruned_number INTEGER NOT NULL,
    pruned_hash   BLOB    NOT NULL,
    last_number   INTEGER NOT NULL,
    last_hash     BLOB    NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_entry (
    chain   INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    content BLOB    NOT NULL,
    hash    BLOB    NOT NULL,
    PRIMARY KEY (chain, number)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
