# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Heavy registrations, imported by verl through ``actor_rollout_ref.model.external_lib``.

verl imports this module in the task runner, in every training worker and in every agent-loop worker.
"""

from verl_uae import caption_server as _hf
from verl_uae.engines import captioner as _captioner  # noqa: F401
from verl_uae.stages.g4u import agent_loop as _agent_loop  # noqa: F401

_hf.register()
