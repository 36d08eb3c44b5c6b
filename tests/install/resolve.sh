#!/usr/bin/env bash
# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
# Resolves what README tells people to install, for every Python this package supports, from an empty environment.
# Nothing is installed: metadata alone is read, and what would have to be compiled, as flash-attn, fails.
# Usage: resolve.sh [PYTHON_VERSION ...]; needs network and about a minute. UV names another uv than the one it fetches.
set -euo pipefail
cd "$(dirname "$0")/../.."
versions=("${@:-3.10}")
[ $# -gt 0 ] || versions=(3.10 3.11 3.12)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${UV:-}" ]; then
    "${PYTHON:-python3}" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
    UV="$work/venv/bin/uv"
fi
# A build of one of these takes an hour and needs what an isolated build does not have.
heavy=(--only-binary flash-attn --only-binary torch --only-binary vllm --only-binary transformer-engine)

resolve() { # VERSION NAME OPTION...
    local version=$1 name=$2
    shift 2
    if "$UV" pip compile --quiet --no-config --python-version "$version" --python-platform x86_64-manylinux_2_28 \
        "${heavy[@]}" --output-file "$work/$name.txt" pyproject.toml "$@" 2>"$work/err"; then
        echo "ok   python $version, $name: $(grep -cE '^[a-zA-Z]' "$work/$name.txt") packages," \
            "$(grep -E '^(torch|vllm|transformers|diffusers)==' "$work/$name.txt" | tr '\n' ' ')"
    else
        echo "FAIL python $version, $name"
        cat "$work/err"
        return 1
    fi
}

status=0
for version in "${versions[@]}"; do
    resolve "$version" base || status=1
    resolve "$version" gpu --extra gpu || status=1
    resolve "$version" gpu+all --extra gpu --extra ocr --extra webdataset --extra bench --extra demo || status=1
    resolve "$version" dev-cpu --extra dev --constraint constraints/cpu.txt || status=1
    # The step after the extra: the source must be there, and must fit the torch that the extra brings.
    echo "flash-attn==2.8.3" >"$work/flash.in"
    if "$UV" pip compile --quiet --no-config --no-deps --python-version "$version" --output-file "$work/flash.txt" \
        "$work/flash.in" 2>"$work/err"; then
        echo "ok   python $version, flash-attn==2.8.3 is on the index"
    else
        echo "FAIL python $version, flash-attn==2.8.3"
        cat "$work/err"
        status=1
    fi
done
exit $status
