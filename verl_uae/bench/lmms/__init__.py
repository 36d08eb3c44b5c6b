# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""lmms-eval: a UAE folder's captioner as a model, task files for understanding, and the guard on what RL unlearns.

lmms-eval is not a dependency. It finds the model by the entry point ``lmms_eval.models`` and the tasks by
``--include_path``; only :mod:`~verl_uae.bench.lmms.model` and :func:`~verl_uae.bench.lmms.plugin.manifest` import it.
"""

from __future__ import annotations

from pathlib import Path

#: Folder for ``--include_path``.
TASKS = Path(__file__).parent / "tasks"
