-- US dollars for a million tokens of requests with this many prompt and output tokens, one request after another:
-- the prompt at the speed of pp, the answer at the speed of tg. Null where a speed is 0 or not known.
-- @p_usd_per_hour [USD/h] Price of the server.
-- @p_pp_tok_per_s [tok/s] Speed of prompt processing.
-- @p_tg_tok_per_s [tok/s] Speed of text generation.
-- @p_prompt_tokens [tokens] Prompt of a request.
-- @p_output_tokens [tokens] Answer of a request.
CREATE MACRO usd_per_mtok_blended(p_usd_per_hour, p_pp_tok_per_s, p_tg_tok_per_s, p_prompt_tokens, p_output_tokens) AS
    usd_per_mtok(
        p_usd_per_hour,
        (p_prompt_tokens + p_output_tokens)
        / (p_prompt_tokens / nullif(p_pp_tok_per_s, 0) + p_output_tokens / nullif(p_tg_tok_per_s, 0))
    );
