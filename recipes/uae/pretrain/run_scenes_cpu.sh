#!/usr/bin/env bash
# Pre-training of the decoder on the built-in scenes, on a CPU. Further arguments are Hydra overrides.
#
# SCENES_DIR holds encoder/, decoder/ and data/ of a cold start: `verl-uae quickstart outputs/quickstart` makes them.
set -euo pipefail

SCENES_DIR="${SCENES_DIR:-outputs/quickstart}"
OUTPUT_DIR="${OUTPUT_DIR:-outputs/pretrain_scenes}"
STEPS="${STEPS:-60}"
SEED="${SEED:-0}"
PYTHON="${PYTHON:-python3}"

if [[ ! -d "${SCENES_DIR}/decoder" ]]; then
    echo "${SCENES_DIR} has no decoder/: run verl-uae quickstart ${SCENES_DIR} first, or set SCENES_DIR" >&2
    exit 1
fi
SCENES_DIR="$(cd "${SCENES_DIR}" && pwd)"
mkdir -p "${OUTPUT_DIR}"

exec "${PYTHON}" -m verl.trainer.main_ppo \
    --config-name uae_pretrain \
    hardware=cpu \
    preset=scenes_pretrain \
    uae_home="${SCENES_DIR}" \
    uae.seed="${SEED}" \
    trainer.total_training_steps="${STEPS}" \
    trainer.save_freq="${STEPS}" \
    trainer.default_local_dir="${OUTPUT_DIR}" \
    hydra.run.dir="${OUTPUT_DIR}/hydra" \
    "$@"
