#!/usr/bin/env bash
# A stage on one node of 8 GPUs of 80 GB. Arguments after the stage are Hydra overrides.
#
#   TRAIN_FILE=data/train.parquet VAL_FILE=data/val.parquet DECODER_PATH=/models/uae-decoder \
#       bash recipes/uae/run.sh g4u trainer.total_training_steps=1000
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

choose_stage "$@"
shift
train_with "${STAGE}_qwen2_5_vl_3b_sd35_large"
exec "${TRAIN[@]}" "$@"
