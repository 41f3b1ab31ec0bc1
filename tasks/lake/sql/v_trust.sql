-- Newest measurements with all that says how far to trust them, and flags on what is suspicious. Nothing is deleted.
-- Flags: few_repeats (below 3), wide_interval (half width above 10 %), slow_first_repeat (20 % above the others),
-- steal (above 1 % of CPU time), throttled (above 5 % of busy time), download_active, cpu_on_gpu_server (the model would
-- fit its GPU), cpu_fallback (a GPU that could not be used; cells.cpu_fallback says why), gpu_memory_unused (the engine
-- says that the model is on the GPU, whose memory does not show it), anchor_drift (the smallest model's speed moved by
-- more than 5 % within the run), burst (the server type is fast only on credits), above_roofline, twin_disagreement
-- (another run within 7 days, nothing known to have changed, differs by more than 10 %), drift (the measurement before differs by more than 10 %), price_unknown, price_old (read more than
-- 90 days before the measurement), random_weights.
-- of: cells, server_runs, hardware
-- @measured_at When it was measured.
-- @half_width_pct [%] Half the 95 % interval of the mean, as a share of the mean.
-- @throttled_share Share of busy seconds of the run in which its GPU was slowed down, 0 to 1.
-- @peak_share Share of the hardware's peak that the speed needs; above 1 is impossible.
-- @previous_tok_per_s [tok/s] The measurement before, of the same cell on the same server.
-- @drift_ratio This over the one before.
-- @price_age_days [d] From reading the price to the measurement.
-- @usd_per_mtok [USD] For a million tokens at the median speed and the run's price.
-- @flags What is suspicious, separated by blanks; empty where nothing is.
-- @n_flags How many, random_weights left out.
CREATE VIEW v_trust AS
-- The newest measurement of each cell and the one before it, found in one pass over few columns. v_latest takes the
-- same newest ones, in the same order.
WITH newest AS (
    SELECT
        vendor,
        server,
        model,
        weights,
        task,
        n_tokens,
        arg_max(
            {
                'sweep_id': sweep_id,
                'server_run_id': server_run_id,
                'at': coalesce(observed_at, started_at),
                'tok_per_s': tok_per_s_median,
                'low': tok_per_s_ci95_low,
                'high': tok_per_s_ci95_high,
                'made': concat_ws('|', engine_commit, build, backend, n_threads)
            },
            (coalesce(observed_at, started_at, TIMESTAMPTZ '1970-01-01'), server_run_id),
            2
        ) AS two
    FROM cells
    WHERE outcome = 'measured' AND NOT resumed AND weights IS DISTINCT FROM 'simulated'
    GROUP BY ALL
),
pairs AS (
    SELECT * EXCLUDE (two, weights), two[1].sweep_id AS sweep_id, two[1].server_run_id AS server_run_id, two[2] AS before
    FROM newest
),
judged AS (
    SELECT
        c.vendor,
        c.server,
        r.place,
        c.model,
        c.weights,
        c.task,
        c.n_tokens,
        c.tok_per_s_median,
        c.n_samples,
        c.tok_per_s_cv,
        c.tok_per_s_ci95_low,
        c.tok_per_s_ci95_high,
        (c.tok_per_s_ci95_high - c.tok_per_s_mean) / nullif(c.tok_per_s_mean, 0) * 100 AS half_width_pct,
        c.first_repeat_ratio,
        c.steal_share,
        t.throttled_share,
        c.download_active,
        c.backend,
        c.build,
        c.ngl,
        h.n_gpus,
        h.gpu_model,
        roofline_needed(c.task, c.tok_per_s_median, c.model_bytes, c.n_params, c.arch)
        / nullif(
            roofline_peak(
                c.task, ran_on_gpu(h.n_gpus, c.backend, c.ngl), h.n_gpus, h.gpu_flop_per_s, h.gpu_read_bytes_per_s,
                h.memory_read_bytes_per_s, h.l3_bytes, c.model_bytes
            ),
            0
        ) AS peak_share,
        d.before.tok_per_s AS previous_tok_per_s,
        c.tok_per_s_median / nullif(d.before.tok_per_s, 0) AS drift_ratio,
        r.spot,
        r.price_usd_per_hour,
        r.price_read_at,
        (epoch(coalesce(c.observed_at, r.started_at)) - epoch(r.price_read_at)) / 86400 AS price_age_days,
        usd_per_mtok(r.price_usd_per_hour, c.tok_per_s_median) AS usd_per_mtok,
        coalesce(c.observed_at, r.started_at) AS measured_at,
        c.source,
        c.engine_commit,
        r.methodology_version,
        c.sweep_id,
        c.server_run_id,
        concat_ws(
            ' ',
            if(c.n_samples < 3, 'few_repeats', NULL),
            if(half_width_pct > 10, 'wide_interval', NULL),
            if(c.first_repeat_ratio > 1.2, 'slow_first_repeat', NULL),
            if(c.steal_share > 0.01, 'steal', NULL),
            if(t.throttled_share > 0.05, 'throttled', NULL),
            if(c.download_active, 'download_active', NULL),
            if(
                h.n_gpus > 0
                AND (c.ngl = 0 OR NOT regexp_matches(c.backend, 'CUDA|ROCm|Vulkan|SYCL'))
                AND c.model_bytes * 1.1 < coalesce(h.vram_total_bytes, 0),
                'cpu_on_gpu_server',
                NULL
            ),
            if(c.cpu_fallback IS NOT NULL, 'cpu_fallback', NULL),
            if(
                starts_with(c.backend_used, 'CUDA')
                AND c.vram_used_bytes < 0.5 * c.model_bytes * coalesce(c.layers_offloaded / nullif(c.layers_total, 0), 1),
                'gpu_memory_unused',
                NULL
            ),
            if(a.drifted, 'anchor_drift', NULL),
            if(r.burst_kind = 'credits', 'burst', NULL),
            if(peak_share > 1.05, 'above_roofline', NULL),
            if(
                abs(drift_ratio - 1) > 0.1
                AND NOT coalesce(c.tok_per_s_ci95_low <= d.before.high AND d.before.low <= c.tok_per_s_ci95_high, false),
                if(
                    d.before.made = concat_ws('|', c.engine_commit, c.build, c.backend, c.n_threads)
                    AND p.methodology_version = r.methodology_version
                    AND epoch(measured_at) - epoch(d.before.at) < 7 * 86400,
                    'twin_disagreement',
                    'drift'
                ),
                NULL
            ),
            if(r.price_usd_per_hour IS NULL, 'price_unknown', NULL),
            if(price_age_days > 90, 'price_old', NULL),
            if(c.weights = 'random', 'random_weights', NULL)
        ) AS flags
    FROM cells AS c
    JOIN pairs AS d USING (sweep_id, server_run_id, vendor, server, model, task, n_tokens)
    JOIN server_runs AS r USING (sweep_id, server_run_id)
    LEFT JOIN server_runs AS p ON p.sweep_id = d.before.sweep_id AND p.server_run_id = d.before.server_run_id
    LEFT JOIN v_hardware AS h USING (sweep_id, server_run_id)
    LEFT JOIN v_throttling AS t USING (sweep_id, server_run_id)
    LEFT JOIN (
        SELECT sweep_id, server_run_id, bool_or(drifted) AS drifted FROM v_anchors GROUP BY ALL
    ) AS a USING (sweep_id, server_run_id)
)
-- By itself, as DuckDB would work out the flags twice beside each other.
SELECT
    *,
    if(
        flags IN ('', 'random_weights'),
        0,
        1 + len(flags) - len(replace(flags, ' ', '')) - CAST(ends_with(flags, 'random_weights') AS INTEGER)
    ) AS n_flags
FROM judged;
