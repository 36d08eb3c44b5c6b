# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The section ``uae:``, put together from the sections of its owners.

Hydra checks types and unknown keys against it when the config is composed, before Ray starts. Defaults that depend on
the model or the machine live in the yaml groups; what is in the dataclasses is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from verl_uae.chain.config import ConditionerConfig, DecoderConfig
from verl_uae.checkpoints.config import CheckpointConfig
from verl_uae.config import STAGES
from verl_uae.reward.config import RewardConfig
from verl_uae.settings import CAPTIONING, DECODING, EXPLORING, SUPERVISED, key
from verl_uae.stages.cold_start.config import ColdStartConfig
from verl_uae.stages.common.config import PanelConfig, SupervisionConfig, TrainConfig
from verl_uae.stages.g4u.config import G4UConfig, RolloutExtrasConfig
from verl_uae.stages.pretrain.config import PretrainConfig
from verl_uae.stages.u4g.config import U4GConfig
from verl_uae.stages.unified.config import UnifiedConfig


@dataclass
class UAEConfig:
    """The ``uae:`` section."""

    stage: str = key("g4u", choices=STAGES)
    """Training stage; set by the config name."""

    seed: int = 42
    """Run seed; every random number is derived from it, the step, the sample and its purpose."""

    screen: str = key("auto", choices=("auto", "short", "all"))
    """What a command shows of what its processes print. short: a line per step, phases, warnings of this package and
    errors, while everything goes into ``uae_log.txt`` in ``trainer.default_local_dir``. all: everything, and no such
    file. auto: short on a terminal, all into a pipe or a file."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    panel: PanelConfig = field(default_factory=PanelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    train: TrainConfig = key(factory=TrainConfig, stages=DECODING)
    pretrain: PretrainConfig = key(factory=PretrainConfig, stages=SUPERVISED)
    cold_start: ColdStartConfig = key(factory=ColdStartConfig, stages=("cold_start",))
    g4u: G4UConfig = key(factory=G4UConfig, stages=CAPTIONING)
    rollout: RolloutExtrasConfig = key(factory=RolloutExtrasConfig, stages=CAPTIONING)
    u4g: U4GConfig = key(factory=U4GConfig, stages=EXPLORING)
    unified: UnifiedConfig = key(factory=UnifiedConfig, stages=("unified",))


def register_schema() -> None:
    """Make the schema known to Hydra as ``uae/schema``."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="uae", name="schema", node=UAEConfig, provider="verl_uae")
