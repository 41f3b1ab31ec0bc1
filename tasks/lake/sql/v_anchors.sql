-- The same short test of the smallest model at the start, the middle and the end of a server run: did the server keep its
-- speed while it was measured? Beyond 5 % its numbers are not of one machine.
-- @start_tok_per_s [tok/s] Median at the start.
-- @middle_tok_per_s [tok/s] In the middle, when half of the models were done.
-- @end_tok_per_s [tok/s] At the end.
-- @drift_ratio The one that lies farthest from the start, over the start.
-- @drifted It lies more than 5 % off, and its repeats do not reach those of the start.
-- @n_anchors How many of them were measured.
-- of: variants
CREATE VIEW v_anchors AS
SELECT
    sweep_id,
    server_run_id,
    vendor,
    server,
    model,
    task,
    max(tok_per_s_median) FILTER (WHERE label = 'start') AS start_tok_per_s,
    max(tok_per_s_median) FILTER (WHERE label = 'middle') AS middle_tok_per_s,
    max(tok_per_s_median) FILTER (WHERE label = 'end') AS end_tok_per_s,
    arg_max(tok_per_s_median, abs(tok_per_s_median / start_median - 1)) / any_value(start_median) AS drift_ratio,
    bool_or(
        abs(tok_per_s_median / start_median - 1) > 0.05
        AND NOT (tok_per_s_min <= start_max AND start_min <= tok_per_s_max)
    ) AS drifted,
    count(tok_per_s_median) AS n_anchors
FROM (
    SELECT
        *,
        max(tok_per_s_median) FILTER (WHERE label = 'start') OVER anchors AS start_median,
        max(tok_per_s_min) FILTER (WHERE label = 'start') OVER anchors AS start_min,
        max(tok_per_s_max) FILTER (WHERE label = 'start') OVER anchors AS start_max
    FROM variants
    WHERE kind = 'anchor' AND tok_per_s_median IS NOT NULL
    WINDOW anchors AS (PARTITION BY sweep_id, server_run_id, model, task)
)
GROUP BY ALL;
