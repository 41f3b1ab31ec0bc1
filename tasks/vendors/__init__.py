"""Opening each vendor: credentials from Prefect blocks or the environment, options from TOKENSWEEP_<VENDOR>_*."""
