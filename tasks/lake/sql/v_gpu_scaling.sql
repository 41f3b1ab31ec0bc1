-- What further GPUs of a server bring: one model over a set of them (`-dev`), and one instance on each at once, against
-- the mean of each GPU alone.
-- @n_gpus GPUs that took part.
-- @how set: one process over all of them; instances: one process on each.
-- @tok_per_s [tok/s] Median; of instances their sum.
-- @one_gpu_tok_per_s [tok/s] Mean over the GPUs alone.
-- @slowest_gpu_ratio The slowest GPU alone over that mean: well below 1 is a GPU that is not like the others.
-- @speedup Over one GPU.
-- @efficiency Speedup per GPU: 1 is linear.
-- of: variants
CREATE VIEW v_gpu_scaling AS
WITH alone AS (
    SELECT
        sweep_id,
        server_run_id,
        model,
        task,
        avg(tok_per_s_median) AS one_gpu_tok_per_s,
        min(tok_per_s_median) / avg(tok_per_s_median) AS slowest_gpu_ratio
    FROM variants
    WHERE kind = 'gpu'
    GROUP BY ALL
),
together AS (
    SELECT
        sweep_id,
        server_run_id,
        vendor,
        server,
        model,
        task,
        if(kind = 'instances', 'instances', 'set') AS how,
        if(kind = 'instances', any_value(n_instances), any_value(n_devices)) AS n_gpus,
        sum(tok_per_s_median) AS tok_per_s
    FROM variants
    WHERE kind IN ('gpu_set', 'instances') AND outcome = 'measured'
    GROUP BY sweep_id, server_run_id, vendor, server, model, task, kind, variant
)
SELECT *, tok_per_s / one_gpu_tok_per_s AS speedup, speedup / n_gpus AS efficiency
FROM together
LEFT JOIN alone USING (sweep_id, server_run_id, model, task);
