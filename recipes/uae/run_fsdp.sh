#!/usr/bin/env bash
# A stage on one node: of 8 GPUs of 80 GB, or what the yaml says that CONFIG names in the stage's config/. Arguments after
# the stage are Hydra overrides.
#
#   TRAIN_FILE=data/train.parquet VAL_FILE=data/val.parquet DECODER_PATH=/models/uae-decoder \
#       bash recipes/uae/run_fsdp.sh g4u trainer.total_training_steps=1000
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

choose_stage "$@"
shift
CONFIG="${CONFIG:-${STAGE}_qwen2_5_vl_3b_sd35_large}"
if [[ ! -f "${RECIPE_DIR}/${STAGE}/config/${CONFIG}.yaml" ]]; then
    echo "CONFIG=${CONFIG}: no ${RECIPE_DIR}/${STAGE}/config/${CONFIG}.yaml" >&2
    exit 2
fi
train_with "${CONFIG}"
exec "${TRAIN[@]}" "$@"
