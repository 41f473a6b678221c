-- Store of one site, version 2, in PostgreSQL: the tables of schema_v2.sql. Key bytes stand only in sealed_unit,
-- sealed. It is run in a schema of its own.

-- SQLite's name of `greatest`.
CREATE FUNCTION max(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT greatest($1, $2)';
CREATE FUNCTION max(double precision, double precision) RETURNS double precision LANGUAGE sql IMMUTABLE
    AS 'SELECT greatest($1, $2)';

CREATE TABLE schema_version (
    one     BIGINT PRIMARY KEY CHECK (one = 1),
    version BIGINT NOT NULL
);
INSERT INTO schema_version VALUES (1, 2);

CREATE TABLE site (
    one                     BIGINT PRIMARY KEY CHECK (one = 1),
    store_id                BYTEA   NOT NULL,
    role                    TEXT    NOT NULL CHECK (role IN ('alice', 'bob')),
    kme_id                  TEXT    NOT NULL,
    peer_kme_id             TEXT    NOT NULL,
    awaiting_peer           TEXT    NOT NULL DEFAULT '',   -- why nothing is served, '' = serving
    generation              BIGINT NOT NULL DEFAULT 0,
    era                     BIGINT NOT NULL DEFAULT 0,
    pool_epoch              BIGINT NOT NULL DEFAULT 0,
    last_block_id           BIGINT NOT NULL DEFAULT 0,
    last_assignment_id      BIGINT NOT NULL DEFAULT 0,
    last_handover_id        BIGINT NOT NULL DEFAULT 0,
    sent_segment            BIGINT NOT NULL DEFAULT -1,
    sent_index              BIGINT NOT NULL DEFAULT -1,
    received_segment        BIGINT NOT NULL DEFAULT -1,
    received_index          BIGINT NOT NULL DEFAULT -1,
    epsilon                 DOUBLE PRECISION NOT NULL DEFAULT 0.0,  -- eps_sec + eps_cor of all blocks that were opened
    peer_generation         BIGINT NOT NULL DEFAULT 0,    -- what the peer last said of itself
    peer_last_assignment_id BIGINT NOT NULL DEFAULT 0,
    peer_last_handover_id   BIGINT NOT NULL DEFAULT 0,
    peer_last_handover_void BIGINT NOT NULL DEFAULT 0,    -- it was voided here, not taken
    forgotten_block_id      BIGINT NOT NULL DEFAULT 0,    -- rows of finished blocks up to here are gone
    delivered               BIGINT NOT NULL DEFAULT 0,    -- chunks, totals
    void                    BIGINT NOT NULL DEFAULT 0,
    expired                 BIGINT NOT NULL DEFAULT 0,
    tags_used               BIGINT NOT NULL DEFAULT 0,    -- one-time tags, sent and verified
    waits                   TEXT    NOT NULL DEFAULT '',   -- older, anchorless or restore, '' = serving
    peer_sent_segment       BIGINT NOT NULL DEFAULT -1,   -- the greatest pad that the peer says he used
    peer_sent_index         BIGINT NOT NULL DEFAULT -1,
    lineage                 BYTEA   NOT NULL DEFAULT '',  -- of the generations: see _restore.begin_lineage
    lineage_before          BYTEA   NOT NULL DEFAULT '',
    age_mark                BYTEA   NOT NULL DEFAULT '',  -- AgeMark, msgpack
    own_chunks              BIGINT NOT NULL DEFAULT 0,    -- in own_assignment now, by its triggers
    stock_chunks            BIGINT NOT NULL DEFAULT 0,    -- of these, in acknowledged stock
    peer_chunks             BIGINT NOT NULL DEFAULT 0     -- in peer_assignment now, by its triggers
);

CREATE TABLE block (
    block_id       BIGINT PRIMARY KEY CHECK (block_id > 0),
    state          TEXT    NOT NULL CHECK (state IN ('prepared', 'available', 'void')),
    record         BYTEA,                                   -- JSON
    chunks_left    BIGINT NOT NULL CHECK (chunks_left >= 0),
    peer_confirmed BIGINT NOT NULL DEFAULT 0,             -- the peer has shown that it is available there
    void_reason    TEXT    NOT NULL DEFAULT ''
);
CREATE INDEX block_prepared ON block (block_id) WHERE state = 'prepared';

-- Chunks nobody has been promised; owner is the site that may assign them.
CREATE TABLE free_range (
    block_id BIGINT NOT NULL,
    first    BIGINT NOT NULL CHECK (first >= 0),
    count    BIGINT NOT NULL CHECK (count > 0),
    owner    TEXT    NOT NULL CHECK (owner IN ('alice', 'bob')),
    PRIMARY KEY (block_id, first)
);
CREATE INDEX free_range_owner ON free_range (owner, block_id, first);

-- Assigned by this site: its SAEs are masters.
CREATE TABLE own_assignment (
    assignment_id  BIGINT PRIMARY KEY,
    content        BYTEA   NOT NULL,                       -- Assignment, msgpack
    master_sae     TEXT    NOT NULL,
    slave_sae      TEXT,                                   -- of stock: its one slave
    size_bits      BIGINT NOT NULL,
    chunks_per_key BIGINT NOT NULL,
    n_keys         BIGINT NOT NULL,
    n_taken        BIGINT NOT NULL DEFAULT 0,             -- of stock: keys delivered from its front
    stock          BIGINT NOT NULL,
    acknowledged   BIGINT NOT NULL DEFAULT 0,             -- 1: the peer holds it, 2: it is being released, 3: and he refused
    assigned_at    DOUBLE PRECISION NOT NULL
);
CREATE INDEX own_stock ON own_assignment (master_sae, slave_sae, size_bits, assignment_id) WHERE stock = 1;
CREATE INDEX own_age ON own_assignment (acknowledged, assigned_at);

-- Assigned by the peer: SAEs of this site are slaves.
CREATE TABLE peer_assignment (
    assignment_id  BIGINT PRIMARY KEY,
    content        BYTEA   NOT NULL,
    waiting        BYTEA   NOT NULL,                       -- for each slave a bit a key that it may still fetch
    chunks_per_key BIGINT NOT NULL,
    keys_left      BIGINT NOT NULL,
    stock          BIGINT NOT NULL,
    accepted_at    DOUBLE PRECISION NOT NULL
);
CREATE INDEX peer_age ON peer_assignment (stock, accepted_at);

-- Chunks that wait at this site for one slave, by pair: for its share of the store.
CREATE TABLE waiting_pair (
    master_sae TEXT    NOT NULL,
    slave_sae  TEXT    NOT NULL,
    chunks     BIGINT NOT NULL,
    PRIMARY KEY (master_sae, slave_sae)
);

-- The hand-over that the peer has not confirmed (at most one).
CREATE TABLE handover (
    handover_id BIGINT PRIMARY KEY,
    content     BYTEA NOT NULL
);

-- What could not be opened here, and the peer has not given up yet.
CREATE TABLE loss (
    loss_id BIGINT PRIMARY KEY,
    content BYTEA NOT NULL
);

CREATE TABLE pad_segment (
    direction TEXT    NOT NULL CHECK (direction IN ('send', 'receive')),
    segment   BIGINT NOT NULL,
    next      BIGINT NOT NULL DEFAULT 0,                  -- pads before this one are used or skipped
    count     BIGINT NOT NULL,
    confirmed BIGINT NOT NULL,                            -- 0: its block is prepared, usable to receive only
    PRIMARY KEY (direction, segment)
);

CREATE TABLE sealed_unit (
    kind    TEXT    NOT NULL,
    segment BIGINT NOT NULL,
    unit    BIGINT NOT NULL,
    sealed  BYTEA   NOT NULL,                              -- nonce, then AES-256-GCM
    PRIMARY KEY (kind, segment, unit)
);

-- The audit (qnode/audit): one chain of entries for each life of the store, the last one is live.
CREATE TABLE audit_chain (
    chain         BIGINT PRIMARY KEY,
    chain_id      BYTEA   NOT NULL UNIQUE,
    pruned_number BIGINT NOT NULL,                        -- entries up to here were deleted because of their age
    pruned_hash   BYTEA   NOT NULL,
    last_number   BIGINT NOT NULL,
    last_hash     BYTEA   NOT NULL
);

CREATE TABLE audit_entry (
    chain   BIGINT NOT NULL,
    number  BIGINT NOT NULL,
    content BYTEA   NOT NULL,                              -- MessagePack
    hash    BYTEA   NOT NULL,                              -- SHA-256 of the hash before and the content
    PRIMARY KEY (chain, number)
);

-- Front ends (`qnode serve`), which deliver beside the node: _front_ends.py.
CREATE TABLE front_end_gate (
    one              BIGINT PRIMARY KEY CHECK (one = 1),
    epoch            BIGINT NOT NULL,                      -- random; begins when the database may have been set back
    server           TEXT   NOT NULL,                      -- the process of the server in this epoch
    written_by       TEXT   NOT NULL,                      -- transaction that began it: a copied row has another
    began_generation BIGINT NOT NULL,                      -- the store's generation at its begin
    is_open          BIGINT NOT NULL                       -- all front ends have compared their anchors
);
CREATE TABLE front_end_node (                              -- what the node says while it runs
    one            BIGINT PRIMARY KEY CHECK (one = 1),
    seen_at        TIMESTAMPTZ NOT NULL,
    key_lifetime_s DOUBLE PRECISION NOT NULL
);
CREATE TABLE front_end (
    name           TEXT PRIMARY KEY,
    admitted_epoch BIGINT NOT NULL DEFAULT 0,              -- set by the node: it may deliver in this epoch
    reported_epoch BIGINT NOT NULL DEFAULT 0,              -- set by the front end: the next two are for this epoch
    anchored       BIGINT NOT NULL DEFAULT 0,              -- generation that its anchor knows; 0: none
    audit          BYTEA                                   -- head of the audit that its anchor knows, MessagePack
);
CREATE TABLE front_end_demand (                            -- keys, totals
    front_end  TEXT   NOT NULL,
    master_sae TEXT   NOT NULL,
    slave_sae  TEXT   NOT NULL,
    asked      BIGINT NOT NULL,
    delivered  BIGINT NOT NULL,
    PRIMARY KEY (front_end, master_sae, slave_sae)
);

-- What masters with a limit have had, by the server's clock: _rates.py.
CREATE TABLE sae_rate (
    sae_id     TEXT PRIMARY KEY,
    paid_until DOUBLE PRECISION NOT NULL                   -- Unix seconds
);

-- A unit is random, and one page: neither compressed nor apart. Rows that change with each key are cleared often.
ALTER TABLE sealed_unit ALTER COLUMN sealed SET STORAGE PLAIN;
ALTER TABLE sealed_unit SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE free_range SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE own_assignment SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE peer_assignment SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE site SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Totals of both tables, so that nobody adds up 100,000 rows; once a statement, for a row that is changed often in
-- one transaction becomes slow.
CREATE FUNCTION count_own() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    own   BIGINT := 0;
    stock BIGINT := 0;
    n     BIGINT;
    n_of_stock BIGINT;
BEGIN
    IF current_setting('qnode.front_end', true) <> '' THEN  -- it counts last, to hold the row of the site shortly
        RETURN NULL;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0), coalesce(sum((n_keys - n_taken) * chunks_per_key)
            FILTER (WHERE new_rows.stock = 1 AND acknowledged = 1), 0) INTO own, stock FROM new_rows;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0), coalesce(sum((n_keys - n_taken) * chunks_per_key)
            FILTER (WHERE old_rows.stock = 1 AND acknowledged = 1), 0) INTO n, n_of_stock FROM old_rows;
        own := own - n;
        stock := stock - n_of_stock;
    END IF;
    IF own <> 0 OR stock <> 0 THEN
        UPDATE site SET own_chunks = own_chunks + own, stock_chunks = stock_chunks + stock;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER own_added AFTER INSERT ON own_assignment REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_own();
CREATE TRIGGER own_removed AFTER DELETE ON own_assignment REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_own();
CREATE TRIGGER own_changed AFTER UPDATE ON own_assignment REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_own();

CREATE FUNCTION count_peer() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    peer BIGINT := 0;
    n    BIGINT;
BEGIN
    IF current_setting('qnode.front_end', true) <> '' THEN  -- it counts last, to hold the row of the site shortly
        RETURN NULL;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        SELECT coalesce(sum(keys_left * chunks_per_key), 0) INTO peer FROM new_rows;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        SELECT coalesce(sum(keys_left * chunks_per_key), 0) INTO n FROM old_rows;
        peer := peer - n;
    END IF;
    IF peer <> 0 THEN
        UPDATE site SET peer_chunks = peer_chunks + peer;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER peer_added AFTER INSERT ON peer_assignment REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_peer();
CREATE TRIGGER peer_removed AFTER DELETE ON peer_assignment REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_peer();
CREATE TRIGGER peer_changed AFTER UPDATE ON peer_assignment REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_peer();
