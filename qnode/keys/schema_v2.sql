-- Store of one site, version 2. Key bytes stand only in sealed_unit, sealed.

CREATE TABLE site (
    one                     INTEGER PRIMARY KEY CHECK (one = 1),
    store_id                BLOB    NOT NULL,
    role                    TEXT    NOT NULL CHECK (role IN ('alice', 'bob')),
    kme_id                  TEXT    NOT NULL,
    peer_kme_id             TEXT    NOT NULL,
    awaiting_peer           TEXT    NOT NULL DEFAULT '',   -- why nothing is served, '' = serving
    generation              INTEGER NOT NULL DEFAULT 0,
    era                     INTEGER NOT NULL DEFAULT 0,
    pool_epoch              INTEGER NOT NULL DEFAULT 0,
    last_block_id           INTEGER NOT NULL DEFAULT 0,
    last_assignment_id      INTEGER NOT NULL DEFAULT 0,
    last_handover_id        INTEGER NOT NULL DEFAULT 0,
    sent_segment            INTEGER NOT NULL DEFAULT -1,
    sent_index              INTEGER NOT NULL DEFAULT -1,
    received_segment        INTEGER NOT NULL DEFAULT -1,
    received_index          INTEGER NOT NULL DEFAULT -1,
    epsilon                 REAL    NOT NULL DEFAULT 0.0,  -- eps_sec + eps_cor of all blocks that were opened
    peer_generation         INTEGER NOT NULL DEFAULT 0,    -- what the peer last said of itself
    peer_last_assignment_id INTEGER NOT NULL DEFAULT 0,
    peer_last_handover_id   INTEGER NOT NULL DEFAULT 0,
    peer_last_handover_void INTEGER NOT NULL DEFAULT 0,    -- it was voided here, not taken
    forgotten_block_id      INTEGER NOT NULL DEFAULT 0,    -- rows of finished blocks up to here are gone
    delivered               INTEGER NOT NULL DEFAULT 0,    -- chunks, totals
    void                    INTEGER NOT NULL DEFAULT 0,
    expired                 INTEGER NOT NULL DEFAULT 0,
    tags_used               INTEGER NOT NULL DEFAULT 0,    -- one-time tags, sent and verified
    waits                   TEXT    NOT NULL DEFAULT '',   -- older, anchorless or restore, '' = serving
    peer_sent_segment       INTEGER NOT NULL DEFAULT -1,   -- the greatest pad that the peer says he used
    peer_sent_index         INTEGER NOT NULL DEFAULT -1,
    lineage                 BLOB    NOT NULL DEFAULT x'',  -- of the generations: see _restore.begin_lineage
    lineage_before          BLOB    NOT NULL DEFAULT x'',
    age_mark                BLOB    NOT NULL DEFAULT x'',  -- AgeMark, msgpack
    own_chunks              INTEGER NOT NULL DEFAULT 0,    -- in own_assignment now, by its triggers
    stock_chunks            INTEGER NOT NULL DEFAULT 0,    -- of these, in acknowledged stock
    peer_chunks             INTEGER NOT NULL DEFAULT 0     -- in peer_assignment now, by its triggers
) STRICT;

CREATE TABLE block (
    block_id       INTEGER PRIMARY KEY CHECK (block_id > 0),
    state          TEXT    NOT NULL CHECK (state IN ('prepared', 'available', 'void')),
    record         BLOB,                                   -- JSON
    chunks_left    INTEGER NOT NULL CHECK (chunks_left >= 0),
    peer_confirmed INTEGER NOT NULL DEFAULT 0,             -- the peer has shown that it is available there
    void_reason    TEXT    NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX block_prepared ON block (block_id) WHERE state = 'prepared';

-- Chunks nobody has been promised; owner is the site that may assign them.
CREATE TABLE free_range (
    block_id INTEGER NOT NULL,
    first    INTEGER NOT NULL CHECK (first >= 0),
    count    INTEGER NOT NULL CHECK (count > 0),
    owner    TEXT    NOT NULL CHECK (owner IN ('alice', 'bob')),
    PRIMARY KEY (block_id, first)
) STRICT, WITHOUT ROWID;
CREATE INDEX free_range_owner ON free_range (owner, block_id, first);

-- Assigned by this site: its SAEs are masters.
CREATE TABLE own_assignment (
    assignment_id  INTEGER PRIMARY KEY,
    content        BLOB    NOT NULL,                       -- Assignment, msgpack
    master_sae     TEXT    NOT NULL,
    slave_sae      TEXT,                                   -- of stock: its one slave
    size_bits      INTEGER NOT NULL,
    chunks_per_key INTEGER NOT NULL,
    n_keys         INTEGER NOT NULL,
    n_taken        INTEGER NOT NULL DEFAULT 0,             -- of stock: keys delivered from its front
    stock          INTEGER NOT NULL,
    acknowledged   INTEGER NOT NULL DEFAULT 0,             -- 1: the peer holds it, 2: it is being released, 3: and he refused
    assigned_at    REAL    NOT NULL
) STRICT;
CREATE INDEX own_stock ON own_assignment (master_sae, slave_sae, size_bits, assignment_id) WHERE stock = 1;
CREATE INDEX own_age ON own_assignment (acknowledged, assigned_at);

-- Assigned by the peer: SAEs of this site are slaves.
CREATE TABLE peer_assignment (
    assignment_id  INTEGER PRIMARY KEY,
    content        BLOB    NOT NULL,
    waiting        BLOB    NOT NULL,                       -- for each slave a bit a key that it may still fetch
    chunks_per_key INTEGER NOT NULL,
    keys_left      INTEGER NOT NULL,
    stock          INTEGER NOT NULL,
    accepted_at    REAL    NOT NULL
) STRICT;
CREATE INDEX peer_age ON peer_assignment (stock, accepted_at);

-- Chunks that wait at this site for one slave, by pair: for its share of the store.
CREATE TABLE waiting_pair (
    master_sae TEXT    NOT NULL,
    slave_sae  TEXT    NOT NULL,
    chunks     INTEGER NOT NULL,
    PRIMARY KEY (master_sae, slave_sae)
) STRICT, WITHOUT ROWID;

-- Totals of both tables, so that nobody adds up 100,000 rows.
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

-- The hand-over that the peer has not confirmed (at most one).
CREATE TABLE handover (
    handover_id INTEGER PRIMARY KEY,
    content     BLOB NOT NULL
) STRICT;

-- What could not be opened here, and the peer has not given up yet.
CREATE TABLE loss (
    loss_id INTEGER PRIMARY KEY,
    content BLOB NOT NULL
) STRICT;

CREATE TABLE pad_segment (
    direction TEXT    NOT NULL CHECK (direction IN ('send', 'receive')),
    segment   INTEGER NOT NULL,
    next      INTEGER NOT NULL DEFAULT 0,                  -- pads before this one are used or skipped
    count     INTEGER NOT NULL,
    confirmed INTEGER NOT NULL,                            -- 0: its block is prepared, usable to receive only
    PRIMARY KEY (direction, segment)
) STRICT, WITHOUT ROWID;

CREATE TABLE sealed_unit (
    kind    TEXT    NOT NULL,
    segment INTEGER NOT NULL,
    unit    INTEGER NOT NULL,
    sealed  BLOB    NOT NULL,                              -- nonce, then AES-256-GCM
    PRIMARY KEY (kind, segment, unit)
) STRICT, WITHOUT ROWID;

-- The audit (qnode/audit): one chain of entries for each life of the store, the last one is live.
CREATE TABLE audit_chain (
    chain         INTEGER PRIMARY KEY,
    chain_id      BLOB    NOT NULL UNIQUE,
    pruned_number INTEGER NOT NULL,                        -- entries up to here were deleted because of their age
    pruned_hash   BLOB    NOT NULL,
    last_number   INTEGER NOT NULL,
    last_hash     BLOB    NOT NULL
) STRICT;

CREATE TABLE audit_entry (
    chain   INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    content BLOB    NOT NULL,                              -- MessagePack
    hash    BLOB    NOT NULL,                              -- SHA-256 of the hash before and the content
    PRIMARY KEY (chain, number)
) STRICT, WITHOUT ROWID;
