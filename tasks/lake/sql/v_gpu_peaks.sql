-- What the makers' data sheets say of GPUs: the ceiling that no measurement can pass. Dense FP16 with tensor cores.
-- @gpu_pattern Part of the name that the driver gives; the longest that matches counts.
-- @peak_read_bytes_per_s [B/s] Memory bandwidth.
-- @peak_flop_per_s [FLOP/s] Dense half precision operations.
CREATE VIEW v_gpu_peaks AS
SELECT gpu_pattern, CAST(gb_per_s * 1e9 AS DOUBLE) AS peak_read_bytes_per_s, CAST(tflops * 1e12 AS DOUBLE) AS peak_flop_per_s
FROM (
    VALUES
        ('K80', 240.6, 4.1), ('M60', 160.4, 4.8), ('P4', 192.3, 5.5), ('P40', 347.1, 11.8), ('P100', 732.2, 21.2),
        ('V100', 900.0, 125.0), ('T4', 320.1, 65.1), ('T4G', 320.1, 65.1), ('RTX 6000', 672.0, 130.5),
        ('RTX 6000 Ada', 960.0, 364.2),
        ('A10', 600.2, 125.0), ('A10G', 600.2, 70.0), ('A16', 200.0, 17.9), ('A40', 695.8, 149.7),
        ('A100', 1555.0, 312.0), ('A100-SXM4-80GB', 2039.0, 312.0), ('A100 80GB PCIe', 1935.0, 312.0),
        ('RTX A6000', 768.0, 154.8), ('L4', 300.1, 121.0), ('L40', 864.0, 181.0), ('L40S', 864.0, 362.0),
        ('RTX 3090', 936.2, 142.0), ('RTX 4090', 1008.0, 330.3), ('RTX PRO 6000', 1792.0, 503.8),
        ('H100', 3352.0, 989.4), ('H100 PCIe', 2039.0, 756.5), ('H100 NVL', 3938.0, 835.5), ('H200', 4890.0, 989.4),
        ('GH200', 4890.0, 989.4), ('B200', 8000.0, 2250.0), ('MI210', 1638.4, 181.0), ('MI300X', 5325.0, 1307.4)
) AS sheet (gpu_pattern, gb_per_s, tflops);
