-- Newest measurements against what the hardware can do at most: a lie detector. Text generation is judged by the
-- bandwidth that reading the weights once per token takes, prompt processing by 2 operations per parameter and token.
-- GPUs: the data sheet; one GPU for tg (a layer split uses them in turn), all for pp. CPUs: the measured bandwidth,
-- for models that do not fit the caches. Bytes read are a lower bound: three quarters of a file below 2 GB, nine tenths
-- of a larger one, since a token embedding need not be read. Mixtures of experts are not judged.
-- of: cells, hardware
-- @on_gpu The model ran on a GPU, as far as backend and ngl tell; an unknown backend with layers to offload counts.
-- @needed [B/s or FLOP/s] Bandwidth (tg) or operations (pp) that the measured speed needs at least.
-- @peak [B/s or FLOP/s] What there is at most; null where it is not known.
-- @peak_share Needed over peak.
-- @plausible At most 1.05 of the peak; null where no peak is known.
CREATE VIEW v_roofline AS
WITH gpus AS (
    SELECT gpu_model, arg_max(peak_read_bytes_per_s, length(gpu_pattern)) AS gpu_read_bytes_per_s,
        arg_max(peak_flop_per_s, length(gpu_pattern)) AS gpu_flop_per_s
    FROM (SELECT DISTINCT gpu_model FROM hardware WHERE n_gpus > 0)
    JOIN v_gpu_peaks ON regexp_matches(gpu_model, '(?i)\b' || regexp_escape(gpu_pattern) || '(\b|-)')
    GROUP BY gpu_model
),
judged AS (
    SELECT
        c.sweep_id,
        c.server_run_id,
        c.vendor,
        c.server,
        c.model,
        c.weights,
        c.task,
        c.n_tokens,
        c.model_bytes,
        c.n_params,
        c.tok_per_s_median,
        c.backend,
        c.ngl,
        h.gpu_model,
        h.n_gpus,
        h.memory_read_bytes_per_s,
        coalesce(h.n_gpus, 0) > 0 AND coalesce(c.ngl, -1) <> 0
            AND regexp_matches(coalesce(c.backend, 'CUDA'), 'CUDA|ROCm|Vulkan|SYCL') AS on_gpu,
        CASE
            WHEN regexp_matches(coalesce(c.arch, ''), 'moe|mixtral|deepseek') THEN NULL
            WHEN c.task = 'pp' THEN 2.0 * c.n_params * c.tok_per_s_median
            ELSE c.model_bytes * if(c.model_bytes < 2e9, 0.75, 0.9) * c.tok_per_s_median
        END AS needed,
        CASE
            WHEN c.task = 'pp' AND on_gpu THEN g.gpu_flop_per_s * h.n_gpus
            WHEN c.task = 'tg' AND on_gpu THEN g.gpu_read_bytes_per_s
            WHEN c.task = 'tg' AND c.model_bytes > 4 * coalesce(h.l3_bytes, 0) THEN h.memory_read_bytes_per_s
        END AS peak
    FROM v_latest AS c
    JOIN hardware AS h USING (sweep_id, server_run_id)
    LEFT JOIN gpus AS g USING (gpu_model)
)
SELECT *, needed / nullif(peak, 0) AS peak_share, peak_share <= 1.05 AS plausible
FROM judged;
