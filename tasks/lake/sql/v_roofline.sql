-- Newest measurements against what the hardware can do at most: a lie detector. What a speed needs and what there is:
-- macros roofline_needed and roofline_peak. Mixtures of experts are not judged.
-- of: cells, hardware
-- @on_gpu The model ran on a GPU, as far as backend and ngl tell; an unknown backend with layers to offload counts.
-- @needed [B/s or FLOP/s] Bandwidth (tg) or operations (pp) that the measured speed needs at least.
-- @peak [B/s or FLOP/s] What there is at most; null where it is not known.
-- @peak_share Needed over peak.
-- @plausible At most 1.05 of the peak; null where no peak is known.
CREATE VIEW v_roofline AS
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
    ran_on_gpu(h.n_gpus, c.backend, c.ngl) AS on_gpu,
    roofline_needed(c.task, c.tok_per_s_median, c.model_bytes, c.n_params, c.arch) AS needed,
    roofline_peak(
        c.task, on_gpu, h.n_gpus, h.gpu_flop_per_s, h.gpu_read_bytes_per_s, h.memory_read_bytes_per_s, h.l3_bytes,
        c.model_bytes
    ) AS peak,
    needed / nullif(peak, 0) AS peak_share,
    peak_share <= 1.05 AS plausible
FROM v_latest AS c
JOIN v_hardware AS h USING (sweep_id, server_run_id);
