-- Each measurement against the one before it of the same cell on the same server: did it change since last time?
-- of: cells, server_runs
-- @measured_at When it was measured.
-- @previous_at When the one before was.
-- @previous_tok_per_s [tok/s] Median of the one before.
-- @ratio This over the one before; 0.9 is 10 % slower.
-- @within_noise The two 95 % intervals meet; null where one has a single sample.
-- @changed What else changed: engine, build, backend, methodology; empty where nothing is known to have.
CREATE VIEW v_drift AS
SELECT
    * EXCLUDE (before),
    before.at AS previous_at,
    before.tok_per_s AS previous_tok_per_s,
    tok_per_s_median / nullif(previous_tok_per_s, 0) AS ratio,
    tok_per_s_ci95_low <= before.high AND before.low <= tok_per_s_ci95_high AS within_noise,
    concat_ws(
        ' ',
        if(engine_commit IS DISTINCT FROM before.engine_commit, 'engine', NULL),
        if(build IS DISTINCT FROM before.build, 'build', NULL),
        if(backend IS DISTINCT FROM before.backend, 'backend', NULL),
        if(methodology_version IS DISTINCT FROM before.methodology_version, 'methodology', NULL)
    ) AS changed
FROM (
    SELECT
        sweep_id,
        server_run_id,
        vendor,
        server,
        place,
        model,
        weights,
        task,
        n_tokens,
        coalesce(observed_at, run_started_at) AS measured_at,
        tok_per_s_median,
        tok_per_s_ci95_low,
        tok_per_s_ci95_high,
        engine_commit,
        build,
        backend,
        methodology_version,
        lag({
            'at': coalesce(observed_at, run_started_at),
            'tok_per_s': tok_per_s_median,
            'low': tok_per_s_ci95_low,
            'high': tok_per_s_ci95_high,
            'engine_commit': engine_commit,
            'build': build,
            'backend': backend,
            'methodology_version': methodology_version
        }) OVER (
            PARTITION BY vendor, server, model, weights, task, n_tokens
            ORDER BY coalesce(observed_at, run_started_at), run_started_at, server_run_id
        ) AS before
    FROM v_cells
    WHERE outcome = 'measured' AND NOT resumed AND weights IS DISTINCT FROM 'simulated'
)
WHERE before IS NOT NULL;
