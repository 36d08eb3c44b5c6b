#!/usr/bin/env bash
# A stage on the built-in scenes, on a CPU. Arguments after the stage are Hydra overrides.
#
# g4u is the whole chain: tiny models, data, training, report. The others need captioner/, decoder/ and data/ of that
# chain in SCENES_DIR: `verl-uae quickstart outputs/quickstart` makes them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

choose_stage "$@"
shift
SEED="${SEED:-0}"

if [[ "${STAGE}" == g4u ]]; then
    exec verl-uae quickstart --steps "${STEPS:-60}" --seed "${SEED}" "${OUTPUT_DIR:-outputs/quickstart}" "$@"
fi

SCENES_DIR="${SCENES_DIR:-outputs/quickstart}"
OUTPUT_DIR="${OUTPUT_DIR:-outputs/${STAGE}_scenes}"
if [[ ! -d "${SCENES_DIR}/decoder" ]]; then
    echo "${SCENES_DIR} has no decoder/: run verl-uae quickstart ${SCENES_DIR} first, or set SCENES_DIR" >&2
    exit 1
fi
SCENES_DIR="$(cd "${SCENES_DIR}" && pwd)"
mkdir -p "${OUTPUT_DIR}"

SETTINGS=(
    uae_home="${SCENES_DIR}"
    uae.seed="${SEED}"
    trainer.default_local_dir="${OUTPUT_DIR}"
    hydra.run.dir="${OUTPUT_DIR}/hydra"
)
if [[ -n "${STEPS:-}" ]]; then
    SETTINGS+=(trainer.total_training_steps="${STEPS}")
fi
if [[ "${STAGE}" == unified && -n "${TURN:-}" ]]; then
    SETTINGS+=(uae.unified.g4u_steps="${TURN}" uae.unified.u4g_steps="${TURN}")
fi

exec "${PYTHON}" -m verl.trainer.main_ppo \
    --config-dir "${RECIPE_DIR}/${STAGE}/config" \
    --config-name "${STAGE}_scenes" \
    "${SETTINGS[@]}" \
    "$@"
