-- On which servers a model fits, by their newest hardware row: its file and a tenth more, against memory and VRAM.
-- `measured` tells whether a cell of it was ever measured there.
-- @p_model Name of the model.
CREATE MACRO fits(p_model) AS TABLE
WITH m AS (SELECT max(model_bytes) AS model_bytes FROM cells WHERE model = p_model),
h AS (
    SELECT h.*, r.started_at
    FROM hardware AS h
    JOIN server_runs AS r USING (sweep_id, server_run_id)
    QUALIFY row_number() OVER (PARTITION BY h.vendor, h.server ORDER BY r.started_at DESC, h.server_run_id DESC) = 1
),
done AS (SELECT DISTINCT vendor, server FROM cells WHERE model = p_model AND outcome = 'measured')
SELECT
    h.vendor,
    h.server,
    m.model_bytes,
    h.memory_total_bytes,
    h.vram_total_bytes,
    m.model_bytes * 1.1 <= h.memory_total_bytes AS fits_memory,
    m.model_bytes * 1.1 <= coalesce(h.vram_total_bytes, 0) AS fits_vram,
    d.server IS NOT NULL AS measured
FROM h
CROSS JOIN m
LEFT JOIN done AS d ON d.vendor = h.vendor AND d.server = h.server
WHERE m.model_bytes IS NOT NULL
ORDER BY fits_vram DESC, fits_memory DESC, h.vendor, h.server;
