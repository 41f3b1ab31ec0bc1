-- Each measurement against the one before it of the same cell on the same server: did it change since last time?
-- of: cells, server_runs
-- @measured_at When it was measured.
-- @previous_at When the one before was.
-- @previous_tok_per_s [tok/s] Median of the one before.
-- @ratio This over the one before; 0.9 is 10 % slower.
-- @within_noise The two 95 % intervals meet; null where one has a single sample.
-- @changed What else changed: engine, build, backend, threads, methodology; empty where nothing is known to have.
CREATE VIEW v_drift AS
-- Runs and servers by numbers, so that the many rows of cells are sorted without their names; cells by a hash of 64
-- bits: among a million of them the chance that any two share one is 3 in 100 million.
WITH runs AS MATERIALIZED (
    SELECT
        sweep_id,
        server_run_id,
        vendor,
        server,
        place,
        methodology_version,
        started_at,
        dense_rank() OVER (ORDER BY vendor, server) AS server_no,
        row_number() OVER (ORDER BY started_at, server_run_id, sweep_id) AS run_no
    FROM server_runs
),
pairs AS (
    SELECT
        r.run_no,
        c.model,
        c.weights,
        c.task,
        c.n_tokens,
        coalesce(c.observed_at, r.started_at) AS measured_at,
        c.tok_per_s_median,
        c.tok_per_s_ci95_low,
        c.tok_per_s_ci95_high,
        c.engine_commit,
        c.build,
        c.backend,
        c.n_threads,
        lag({
            'run_no': r.run_no,
            'at': coalesce(c.observed_at, r.started_at),
            'tok_per_s': c.tok_per_s_median,
            'low': c.tok_per_s_ci95_low,
            'high': c.tok_per_s_ci95_high,
            'engine_commit': c.engine_commit,
            'build': c.build,
            'backend': c.backend,
            'n_threads': c.n_threads
        }) OVER (
            PARTITION BY hash(r.server_no, c.model, c.weights, c.task, c.n_tokens)
            ORDER BY coalesce(c.observed_at, r.started_at), r.run_no
        ) AS before
    FROM cells AS c
    JOIN runs AS r USING (sweep_id, server_run_id)
    WHERE c.outcome = 'measured' AND NOT c.resumed AND c.weights IS DISTINCT FROM 'simulated'
)
SELECT
    r.sweep_id,
    r.server_run_id,
    r.vendor,
    r.server,
    r.place,
    c.model,
    c.weights,
    c.task,
    c.n_tokens,
    c.measured_at,
    c.tok_per_s_median,
    c.tok_per_s_ci95_low,
    c.tok_per_s_ci95_high,
    c.engine_commit,
    c.build,
    c.backend,
    r.methodology_version,
    c.before.at AS previous_at,
    c.before.tok_per_s AS previous_tok_per_s,
    c.tok_per_s_median / nullif(previous_tok_per_s, 0) AS ratio,
    c.tok_per_s_ci95_low <= c.before.high AND c.before.low <= c.tok_per_s_ci95_high AS within_noise,
    concat_ws(
        ' ',
        if(c.engine_commit IS DISTINCT FROM c.before.engine_commit, 'engine', NULL),
        if(c.build IS DISTINCT FROM c.before.build, 'build', NULL),
        if(c.backend IS DISTINCT FROM c.before.backend, 'backend', NULL),
        if(c.n_threads IS DISTINCT FROM c.before.n_threads, 'threads', NULL),
        if(r.methodology_version IS DISTINCT FROM p.methodology_version, 'methodology', NULL)
    ) AS changed
FROM pairs AS c
JOIN runs AS r USING (run_no)
JOIN runs AS p ON p.run_no = c.before.run_no;
