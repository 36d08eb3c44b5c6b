#!/usr/bin/env bash
# The whole chain on the built-in scenes, on a CPU: models, data, cold start, training, report.
# Further arguments are Hydra overrides of the training command.
set -euo pipefail

OUTPUT_DIR="${OUTPUT_DIR:-outputs/quickstart}"
STEPS="${STEPS:-60}"
SEED="${SEED:-0}"

exec verl-uae quickstart --steps "${STEPS}" --seed "${SEED}" "${OUTPUT_DIR}" "$@"
