#!/usr/bin/env bash
# Sourced by the scripts beside it: which stage, and the training command on GPUs.
set -euo pipefail

RECIPE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHON="${PYTHON:-python3}"

# choose_stage "$@": sets STAGE, a folder that has config/. Anything else ends the script and names those there are.
choose_stage() {
    local config
    STAGE="${1:-}"
    for config in "${RECIPE_DIR}"/*/config; do
        if [[ "${config}" == "${RECIPE_DIR}/${STAGE}/config" ]]; then
            return
        fi
    done
    echo "${STAGE:+unknown stage ${STAGE}; }usage: $0 STAGE [overrides], STAGE one of:" \
        "$(cd "${RECIPE_DIR}" && dirname -- */config | paste -s -d ' ' -)" >&2
    exit 2
}

# train_with CONFIG: sets TRAIN, the training command with what every stage must be given, and makes OUTPUT_DIR.
train_with() {
    local files="${TRAIN_FILE:?path of train.parquet, see: verl-uae data pack}"
    local held_out="${VAL_FILE:?path of val.parquet}"
    local decoder="${DECODER_PATH:?decoder folder, see ${RECIPE_DIR}/${STAGE}/README.md}"
    if [[ -n "${ENCODER_PATH:-}" ]]; then
        echo "ENCODER_PATH is called CAPTIONER_PATH now" >&2
        exit 2
    fi
    OUTPUT_DIR="${OUTPUT_DIR:-outputs/$1}"
    mkdir -p "${OUTPUT_DIR}"
    # shellcheck disable=SC2034  # The scripts that source this run it.
    TRAIN=(
        "${PYTHON}" -m verl.trainer.main_ppo
        --config-dir "${RECIPE_DIR}/${STAGE}/config"
        --config-name "$1"
        data.train_files="${files}"
        data.val_files="${held_out}"
        actor_rollout_ref.model.path="${CAPTIONER_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
        uae.decoder.path="${decoder}"
        trainer.default_local_dir="${OUTPUT_DIR}"
    )
}
