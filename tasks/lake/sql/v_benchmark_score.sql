-- The newest measurements of real weights as rows of Spare Cores' benchmark_score table, for comparison with theirs.
-- Of each source the newest: results of others that were imported do not stand before ours.
-- of: cells
-- @vendor_id Vendor, under their name for it.
-- @server_id Server type. Their id is another for gcp and hcloud: `tokensweep export sparecores --ids` translates.
-- @benchmark_id llm_speed:prompt_processing or llm_speed:text_generation.
-- @config [JSON] Model file and length, keys sorted.
-- @framework_version Commit of llama.cpp.
-- @kernel_version Kernel release of the server.
-- @score [tok/s] Mean of the per-repeat speeds.
-- @score_breakdown Always null here.
-- @note Why the CPUs of a server with a GPU made the score; null where they did not.
-- @status Always ACTIVE here.
-- @observed_at When the cell ended.
CREATE VIEW v_benchmark_score AS
SELECT
    if(c.vendor = 'hetzner', 'hcloud', c.vendor) AS vendor_id,
    c.server AS server_id,
    'llm_speed:' || CASE c.task WHEN 'pp' THEN 'prompt_processing' ELSE 'text_generation' END AS benchmark_id,
    '{"model": "' || c.model_file || '", "tokens": ' || c.n_tokens || '}' AS config,
    c.engine_commit AS framework_version,
    h.kernel AS kernel_version,
    c.tok_per_s_mean AS score,
    CAST(NULL AS VARCHAR) AS score_breakdown,
    'measured on the CPUs: ' || c.cpu_fallback AS note,
    'ACTIVE' AS status,
    coalesce(c.observed_at, c.run_started_at) AS observed_at,
    c.source
FROM v_cells AS c
LEFT JOIN hardware AS h USING (sweep_id, server_run_id)
WHERE c.weights = 'real' AND c.outcome = 'measured' AND NOT c.resumed
QUALIFY row_number() OVER (
    PARTITION BY c.vendor, c.server, c.model, c.task, c.n_tokens, c.source
    ORDER BY (coalesce(c.observed_at, c.started_at, TIMESTAMPTZ '1970-01-01'), c.server_run_id) DESC
) = 1;
