#!/usr/bin/env bash
# G4U and U4G in turns on one node of 8 GPUs of 80 GB. Further arguments are Hydra overrides.
#
#   TRAIN_FILE=data/train.parquet VAL_FILE=data/val.parquet DECODER_PATH=/models/uae-decoder \
#       bash recipes/uae/unified/run_qwen2_5_vl_3b_sd35_large_1x8.sh trainer.total_training_steps=1000
set -euo pipefail

TRAIN_FILE="${TRAIN_FILE:?path of train.parquet, see: verl-uae data pack}"
VAL_FILE="${VAL_FILE:?path of val.parquet}"
DECODER_PATH="${DECODER_PATH:?decoder folder, see README.md}"
ENCODER_PATH="${ENCODER_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
OUTPUT_DIR="${OUTPUT_DIR:-outputs/unified_qwen2_5_vl_3b_sd35_large}"
PYTHON="${PYTHON:-python3}"
RECIPE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

mkdir -p "${OUTPUT_DIR}"

exec "${PYTHON}" -m verl.trainer.main_ppo \
    --config-dir "${RECIPE_DIR}/config" \
    --config-name unified_qwen2_5_vl_3b_sd35_large \
    data.train_files="${TRAIN_FILE}" \
    data.val_files="${VAL_FILE}" \
    actor_rollout_ref.model.path="${ENCODER_PATH}" \
    uae.decoder.path="${DECODER_PATH}" \
    trainer.default_local_dir="${OUTPUT_DIR}" \
    trainer.nnodes=1 \
    trainer.n_gpus_per_node=8 \
    "$@"
