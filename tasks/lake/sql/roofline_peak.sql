-- What there is at most of what `roofline_needed` says. GPUs: the data sheet; one GPU for tg, since a layer split uses
-- them in turn, all for pp. CPUs: the measured bandwidth, for models that do not fit the caches; null for pp.
-- @p_task pp or tg.
-- @p_on_gpu The model ran on a GPU.
-- @p_n_gpus GPUs of the server.
-- @p_gpu_flop_per_s [FLOP/s] Operations of one GPU.
-- @p_gpu_read_bytes_per_s [B/s] Memory bandwidth of one GPU.
-- @p_cpu_read_bytes_per_s [B/s] Measured read bandwidth of the memory.
-- @p_l3_bytes [B] Caches of the CPUs.
-- @p_model_bytes [B] Size of the file.
CREATE MACRO roofline_peak(
    p_task, p_on_gpu, p_n_gpus, p_gpu_flop_per_s, p_gpu_read_bytes_per_s, p_cpu_read_bytes_per_s, p_l3_bytes, p_model_bytes
) AS
    CASE
        WHEN p_task = 'pp' AND p_on_gpu THEN p_gpu_flop_per_s * p_n_gpus
        WHEN p_task = 'tg' AND p_on_gpu THEN p_gpu_read_bytes_per_s
        WHEN p_task = 'tg' AND p_model_bytes > 4 * coalesce(p_l3_bytes, 0) THEN p_cpu_read_bytes_per_s
    END;
