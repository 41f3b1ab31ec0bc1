-- What a speed needs at least. Text generation: bytes per second, since every token reads the weights once; three
-- quarters of a file below 2 GB count, nine tenths of a larger one, since a token embedding need not be read. Prompt
-- processing: 2 operations per parameter and token. Null for mixtures of experts, which read a part of their weights.
-- @p_task pp or tg.
-- @p_tok_per_s [tok/s] The speed.
-- @p_model_bytes [B] Size of the file.
-- @p_n_params Parameters.
-- @p_arch Architecture named in the GGUF header.
CREATE MACRO roofline_needed(p_task, p_tok_per_s, p_model_bytes, p_n_params, p_arch) AS
    CASE
        WHEN regexp_matches(coalesce(p_arch, ''), 'moe|mixtral|deepseek') THEN NULL
        WHEN p_task = 'pp' THEN 2.0 * p_n_params * p_tok_per_s
        ELSE p_model_bytes * if(p_model_bytes < 2e9, 0.75, 0.9) * p_tok_per_s
    END;
