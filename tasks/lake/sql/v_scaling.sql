-- Newest measurements against those of the smallest server of the same vendor with the same GPU (or, without one, the
-- same CPU): how much of each added unit arrives.
-- of: cells
-- @unit gpu or cpu: what is counted.
-- @unit_model Model of the GPU or CPU.
-- @n_units GPUs, or CPUs that a process may use.
-- @base_server The smallest server of the family.
-- @base_n_units Its units.
-- @tok_per_s [tok/s] Median.
-- @speedup Over the base server.
-- @efficiency Speedup over added units: 1 is linear.
CREATE VIEW v_scaling AS
WITH counted AS (
    SELECT
        c.vendor,
        c.server,
        c.model,
        c.weights,
        c.task,
        c.n_tokens,
        if(ran_on_gpu(h.n_gpus, c.backend, c.ngl), 'gpu', 'cpu') AS unit,
        if(unit = 'gpu', h.gpu_model, h.cpu_model) AS unit_model,
        if(unit = 'gpu', h.n_gpus, h.n_cpus) AS n_units,
        c.tok_per_s_median AS tok_per_s
    FROM v_latest AS c
    JOIN hardware AS h USING (sweep_id, server_run_id)
    WHERE coalesce(h.n_gpus, 0) = 0 OR unit = 'gpu'
)
SELECT
    *,
    first(server) OVER family AS base_server,
    first(n_units) OVER family AS base_n_units,
    tok_per_s / nullif(first(tok_per_s) OVER family, 0) AS speedup,
    speedup / (n_units / nullif(base_n_units, 0)) AS efficiency
FROM counted
WHERE unit_model IS NOT NULL AND n_units > 0
WINDOW family AS (
    PARTITION BY vendor, unit, unit_model, model, weights, task, n_tokens
    ORDER BY n_units, tok_per_s DESC, server
    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
);
