-- The fastest that one sequence can be generated when every token reads all weights once: read bandwidth over bytes.
-- @p_weight_bytes [B] Bytes of the weights read for a token: the file without its token embedding, unless that is tied.
-- @p_read_bytes_per_s [B/s] Read bandwidth of the memory that holds them.
CREATE MACRO roofline_tok_per_s(p_weight_bytes, p_read_bytes_per_s) AS
    CAST(p_read_bytes_per_s AS DOUBLE) / nullif(CAST(p_weight_bytes AS DOUBLE), 0);
