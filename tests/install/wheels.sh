#!/usr/bin/env bash
# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
# Builds wheel and source archive and, in a clean environment of every Python that is here, installs the wheel as a user
# does (the archive with the newest), asks the doctor and trains a step of G4U away from the checkout.
# Usage: wheels.sh [PYTHON ...]; needs network, 3 GB of disk and five minutes for each Python.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
pythons=("${@:-python3.10}")
[ $# -gt 0 ] || pythons=(python3.10 python3.11 python3.12)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
python3 -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build
"$work/build/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
status=0
for python in "${pythons[@]}"; do
    venv=$work/venv
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" 2>"$work/err"; then
        echo "none $python is not here"
        continue
    fi
    package=$(ls "$work"/dist/*.whl)
    [ "$python" != "${pythons[-1]}" ] || package=$(ls "$work"/dist/*.tar.gz)
    if (
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints/cpu.txt" "$package"
        mkdir -p "$work/home" && cd "$work/home"
        "$venv/bin/verl-uae" doctor --hardware cpu
        "$venv/bin/verl-uae" train g4u --out "$work/run" --steps 1 preset=tiny ++ray_kwargs.ray_init.address=local
    ) >"$work/log" 2>&1; then
        echo "ok   $("$venv/bin/python" --version), $(basename "$package"): doctor, one step of G4U"
    else
        echo "FAIL $("$venv/bin/python" --version), $(basename "$package")"
        tail -n 40 "$work/log"
        status=1
    fi
    rm -rf "$work/run" "$work/home"
done
exit $status
