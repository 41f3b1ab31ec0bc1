-- What a million tokens cost on each server, in three kinds, cheapest blended first: `prompt` at the speed of pp,
-- `output` at the speed of tg, `blended` for requests of this shape one after another. All speeds are those of a single
-- sequence in llama-bench (`throughput`); a server that batches many users gives more tokens per second. Where the
-- length was not measured, the measured one nearest to it by ratio is taken and named.
-- @p_model Name of the model.
-- @p_prompt_tokens [tokens] Prompt of a request.
-- @p_output_tokens [tokens] Answer of a request.
CREATE MACRO token_cost(p_model, p_prompt_tokens, p_output_tokens) AS TABLE
WITH nearest AS (
    SELECT vendor, server, place, spot, weights, task, n_tokens, tok_per_s_median, price_usd_per_hour, price_read_at
    FROM v_latest
    WHERE model = p_model AND price_usd_per_hour IS NOT NULL
    QUALIFY row_number() OVER (
        PARTITION BY vendor, server, weights, task
        ORDER BY abs(ln(n_tokens / if(task = 'pp', p_prompt_tokens, p_output_tokens))), n_tokens
    ) = 1
),
speeds AS (
    SELECT
        vendor, server, weights,
        any_value(place) AS place,
        any_value(spot) FILTER (task = 'tg') AS spot,
        any_value(price_usd_per_hour) FILTER (task = 'tg') AS usd_per_hour,
        any_value(price_read_at) FILTER (task = 'tg') AS price_read_at,
        any_value(tok_per_s_median) FILTER (task = 'pp') AS pp,
        any_value(n_tokens) FILTER (task = 'pp') AS pp_n,
        any_value(tok_per_s_median) FILTER (task = 'tg') AS tg,
        any_value(n_tokens) FILTER (task = 'tg') AS tg_n
    FROM nearest
    GROUP BY ALL
    HAVING pp IS NOT NULL AND tg IS NOT NULL
)
SELECT
    s.vendor,
    s.server,
    s.place,
    s.spot,
    s.weights,
    k.kind,
    'single sequence' AS throughput,
    CASE k.kind
        WHEN 'prompt' THEN s.pp
        WHEN 'output' THEN s.tg
        ELSE (p_prompt_tokens + p_output_tokens) / (p_prompt_tokens / s.pp + p_output_tokens / s.tg)
    END AS tok_per_s,
    usd_per_mtok(s.usd_per_hour, tok_per_s) AS usd_per_mtok,
    s.pp_n AS pp_n_tokens,
    s.tg_n AS tg_n_tokens,
    s.usd_per_hour AS price_usd_per_hour,
    s.price_read_at
FROM speeds AS s
CROSS JOIN (VALUES ('prompt'), ('output'), ('blended')) AS k (kind)
ORDER BY usd_per_mtok_blended(s.usd_per_hour, s.pp, s.tg, p_prompt_tokens, p_output_tokens), s.vendor, s.server, k.kind;
