-- Newest measurements with all that says how far to trust them, and flags on what is suspicious. Nothing is deleted.
-- Flags: few_repeats (below 3), wide_interval (half width above 10 %), slow_first_repeat (20 % above the others),
-- steal (above 1 % of CPU time), throttled (above 5 % of busy time), download_active, cpu_on_gpu_server (the model would
-- fit its GPU), above_roofline, twin_disagreement (another run within 7 days, nothing known to have changed, differs by
-- more than 10 %), drift (the measurement before differs by more than 10 %), price_unknown, price_old (read more than
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
WITH older AS (
    SELECT sweep_id, server_run_id, model, task, n_tokens
    FROM cells
    ANTI JOIN v_latest USING (sweep_id, server_run_id, model, task, n_tokens)
    WHERE outcome = 'measured' AND NOT resumed AND weights IS DISTINCT FROM 'simulated'
    QUALIFY row_number() OVER (
        PARTITION BY vendor, server, model, weights, task, n_tokens
        ORDER BY (coalesce(observed_at, started_at, TIMESTAMPTZ '1970-01-01'), server_run_id) DESC
    ) = 1
),
previous AS (
    SELECT
        o.vendor,
        o.server,
        o.model,
        o.weights,
        o.task,
        o.n_tokens,
        coalesce(o.observed_at, o.started_at) AS at,
        o.tok_per_s_median AS was,
        o.tok_per_s_ci95_low AS low,
        o.tok_per_s_ci95_high AS high,
        concat_ws('|', o.engine_commit, o.build, o.backend) AS made,
        p.methodology_version
    FROM cells AS o
    JOIN older USING (sweep_id, server_run_id, model, task, n_tokens)
    JOIN server_runs AS p USING (sweep_id, server_run_id)
)
SELECT
    c.vendor,
    c.server,
    c.place,
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
    r.peak_share,
    d.was AS previous_tok_per_s,
    c.tok_per_s_median / nullif(d.was, 0) AS drift_ratio,
    c.price_usd_per_hour,
    c.price_read_at,
    (epoch(coalesce(c.observed_at, c.run_started_at)) - epoch(c.price_read_at)) / 86400 AS price_age_days,
    c.usd_per_mtok,
    coalesce(c.observed_at, c.run_started_at) AS measured_at,
    c.source,
    c.engine_commit,
    c.methodology_version,
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
        if(NOT r.plausible, 'above_roofline', NULL),
        if(
            abs(drift_ratio - 1) > 0.1
            AND NOT coalesce(c.tok_per_s_ci95_low <= d.high AND d.low <= c.tok_per_s_ci95_high, false),
            if(
                d.made = concat_ws('|', c.engine_commit, c.build, c.backend)
                AND d.methodology_version = c.methodology_version
                AND epoch(measured_at) - epoch(d.at) < 7 * 86400,
                'twin_disagreement',
                'drift'
            ),
            NULL
        ),
        if(c.price_usd_per_hour IS NULL, 'price_unknown', NULL),
        if(price_age_days > 90, 'price_old', NULL),
        if(c.weights = 'random', 'random_weights', NULL)
    ) AS flags,
    len(string_split(nullif(trim(replace(flags, 'random_weights', '')), ''), ' ')) AS n_flags
FROM v_latest AS c
LEFT JOIN hardware AS h USING (sweep_id, server_run_id)
LEFT JOIN v_throttling AS t USING (sweep_id, server_run_id)
LEFT JOIN v_roofline AS r USING (sweep_id, server_run_id, model, weights, task, n_tokens)
LEFT JOIN previous AS d ON
    d.vendor = c.vendor AND d.server = c.server AND d.model = c.model AND d.task = c.task AND d.n_tokens = c.n_tokens
    AND d.weights IS NOT DISTINCT FROM c.weights;
