-- The hardware of every server run, with what the data sheet says of its GPU.
-- of: hardware
-- @gpu_read_bytes_per_s [B/s] Memory bandwidth of one GPU by its data sheet; null where it is in none.
-- @gpu_flop_per_s [FLOP/s] Dense half precision operations of one GPU by its data sheet.
CREATE VIEW v_hardware AS
WITH gpus AS (
    SELECT gpu_model, arg_max(peak_read_bytes_per_s, length(gpu_pattern)) AS gpu_read_bytes_per_s,
        arg_max(peak_flop_per_s, length(gpu_pattern)) AS gpu_flop_per_s
    FROM (SELECT DISTINCT gpu_model FROM hardware WHERE n_gpus > 0)
    JOIN v_gpu_peaks ON regexp_matches(gpu_model, '(?i)\b' || regexp_escape(gpu_pattern) || '(\b|-)')
    GROUP BY gpu_model
)
SELECT h.*, g.gpu_read_bytes_per_s, g.gpu_flop_per_s
FROM hardware AS h
LEFT JOIN gpus AS g USING (gpu_model);
