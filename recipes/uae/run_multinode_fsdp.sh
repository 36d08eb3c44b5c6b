#!/usr/bin/env bash
# A stage on two or more nodes of 8 GPUs of 80 GB. Arguments after the stage are Hydra overrides.
#
# On all nodes the same environment and the same paths (shared storage), and the same secret in ~/.ray/auth_token or
# RAY_AUTH_TOKEN: `ray get-auth-token --generate` on node 0 makes one. Then:
#
#   node 0:  NODE_RANK=0 HEAD_ADDRESS=10.0.0.1 TRAIN_FILE=... VAL_FILE=... DECODER_PATH=... \
#                bash recipes/uae/run_multinode_fsdp.sh g4u
#   others:  NODE_RANK=1 HEAD_ADDRESS=10.0.0.1 bash recipes/uae/run_multinode_fsdp.sh g4u
#
# The others stay in the foreground until node 0 stops the cluster or they are interrupted. NNODES, 2 by default, is how
# many there are: the stage has a yaml of that many nodes in its config/, because the ranks must divide the batch.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

NODE_RANK="${NODE_RANK:?0 on the node that starts the training, 1 and up on the others}"
HEAD_ADDRESS="${HEAD_ADDRESS:?address of node 0}"
RAY_PORT="${RAY_PORT:-6379}"
NNODES="${NNODES:-2}"
GPUS_PER_NODE=8

choose_stage "$@"
shift
CONFIG="${STAGE}_qwen2_5_vl_3b_sd35_large_${NNODES}nodes"
if [[ ! -f "${RECIPE_DIR}/${STAGE}/config/${CONFIG}.yaml" ]]; then
    echo "NNODES=${NNODES}: no ${RECIPE_DIR}/${STAGE}/config/${CONFIG}.yaml; write it in the shape of its neighbour" >&2
    exit 2
fi

# A Ray that was ever started on node 0 alone leaves a secret there, and a head that finds one asks the others for it.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
SECRET="${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}"
if [[ "${RAY_AUTH_MODE}" == token && -z "${RAY_AUTH_TOKEN:-}" && ! -f "${SECRET}" ]]; then
    echo "no secret of the cluster: \`ray get-auth-token --generate\` on node 0, and the same ${SECRET} on the others" >&2
    exit 2
fi

if [[ "${NODE_RANK}" != 0 ]]; then
    exec ray start --address="${HEAD_ADDRESS}:${RAY_PORT}" --num-gpus="${GPUS_PER_NODE}" --block
fi

train_with "${CONFIG}"
# A head that fails halfway leaves processes too.
trap 'ray stop' EXIT
ray start --head --node-ip-address="${HEAD_ADDRESS}" --port="${RAY_PORT}" --num-gpus="${GPUS_PER_NODE}" || {
    echo "no head at HEAD_ADDRESS=${HEAD_ADDRESS}: is it an address of this machine, and port ${RAY_PORT} free?" >&2
    exit 1
}

# The training command fails at once if another node is not there yet.
until "${PYTHON}" -c "
import sys
import ray
ray.init(address='auto', logging_level='ERROR')
sys.exit(ray.cluster_resources().get('GPU', 0) < ${NNODES} * ${GPUS_PER_NODE})
"; do
    echo "waiting for ${NNODES} nodes of ${GPUS_PER_NODE} GPUs"
    sleep 5
done

"${TRAIN[@]}" ++ray_kwargs.ray_init.address=auto "$@"
