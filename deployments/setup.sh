#!/bin/sh
# Puts onto the Prefect server of PREFECT_API_URL what sweeps on workers need, and again after each upgrade. Arguments
# are those of `tokensweep automations`: --notify slack-webhook/ops.
set -eu
cd "$(dirname "$0")/.."
# Each worker fills in its own: the folder of the code here need not be theirs.
unset TOKENSWEEP_CHECKOUT
prefect --no-prompt work-pool create tokensweep --type process --overwrite \
  --base-job-template deployments/work-pools/process.json
prefect --no-prompt block register -m tasks.vendors.blocks
prefect --no-prompt deploy --all
tokensweep limits
tokensweep automations "$@"
