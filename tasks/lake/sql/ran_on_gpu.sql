-- Whether a model ran on a GPU, as far as backend and layers tell; an unknown backend with layers to offload counts.
-- @p_n_gpus GPUs of the server.
-- @p_backend Backends as llama-bench reports them.
-- @p_ngl Layers asked to be offloaded.
CREATE MACRO ran_on_gpu(p_n_gpus, p_backend, p_ngl) AS
    coalesce(p_n_gpus, 0) > 0 AND coalesce(p_ngl, -1) <> 0
    AND regexp_matches(coalesce(p_backend, 'CUDA'), 'CUDA|ROCm|Vulkan|SYCL');
