#!/usr/bin/env bash
# Pre-training of the decoder on two nodes of 8 GPUs of 80 GB. Further arguments are Hydra overrides.
#
# On both nodes the same environment and the same paths (shared storage), then:
#
#   node 0:  NODE_RANK=0 HEAD_ADDRESS=10.0.0.1 TRAIN_FILE=... VAL_FILE=... DECODER_PATH=... \
#                bash recipes/uae/pretrain/run_qwen2_5_vl_3b_sd35_large_2nodes.sh
#   node 1:  NODE_RANK=1 HEAD_ADDRESS=10.0.0.1 \
#                bash recipes/uae/pretrain/run_qwen2_5_vl_3b_sd35_large_2nodes.sh
#
# Node 1 stays in the foreground until node 0 stops the cluster or it is interrupted.
set -euo pipefail

NODE_RANK="${NODE_RANK:?0 on the node that starts the training, 1 on the other}"
HEAD_ADDRESS="${HEAD_ADDRESS:?address of node 0}"
RAY_PORT="${RAY_PORT:-6379}"
NNODES=2
GPUS_PER_NODE=8
PYTHON="${PYTHON:-python3}"
RECIPE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

if [[ "${NODE_RANK}" != 0 ]]; then
    exec ray start --address="${HEAD_ADDRESS}:${RAY_PORT}" --num-gpus="${GPUS_PER_NODE}" --block
fi

TRAIN_FILE="${TRAIN_FILE:?path of train.parquet, see: verl-uae data pack}"
VAL_FILE="${VAL_FILE:?path of val.parquet}"
DECODER_PATH="${DECODER_PATH:?decoder folder, see README.md}"
ENCODER_PATH="${ENCODER_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
OUTPUT_DIR="${OUTPUT_DIR:-outputs/pretrain_qwen2_5_vl_3b_sd35_large_2nodes}"

mkdir -p "${OUTPUT_DIR}"

ray start --head --node-ip-address="${HEAD_ADDRESS}" --port="${RAY_PORT}" --num-gpus="${GPUS_PER_NODE}"
trap 'ray stop' EXIT

# The training command fails at once if the other node is not there yet.
until "${PYTHON}" -c "
import sys
import ray
ray.init(address='auto', logging_level='ERROR')
sys.exit(ray.cluster_resources().get('GPU', 0) < ${NNODES} * ${GPUS_PER_NODE})
"; do
    echo "waiting for ${NNODES} nodes of ${GPUS_PER_NODE} GPUs"
    sleep 5
done

# The batch stays; an update gives a rank 48 x 24 / 2 updates / 16 ranks = 36 samples, which micro-batches of 8 do not
# divide.
"${PYTHON}" -m verl.trainer.main_ppo \
    --config-dir "${RECIPE_DIR}/config" \
    --config-name pretrain_qwen2_5_vl_3b_sd35_large \
    data.train_files="${TRAIN_FILE}" \
    data.val_files="${VAL_FILE}" \
    uae.policy.micro_batch_size=4 \
    actor_rollout_ref.model.path="${ENCODER_PATH}" \
    uae.decoder.path="${DECODER_PATH}" \
    trainer.default_local_dir="${OUTPUT_DIR}" \
    trainer.nnodes="${NNODES}" \
    trainer.n_gpus_per_node="${GPUS_PER_NODE}" \
    trainer.experiment_name=pretrain_qwen2_5_vl_3b_sd35_large_2nodes \
    ++ray_kwargs.ray_init.address=auto \
    "$@"
