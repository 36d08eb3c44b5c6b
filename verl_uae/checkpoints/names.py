# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Names of the files and folders of a training checkpoint and of a model folder. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

# ------------------------------------------------------------ a run, in trainer.default_local_dir

#: verl's file with the number of the newest step; what the run has reached, for the lines that end the command; what
#: the process of the run that uses the folder has locked; all that its processes printed.
TRACKER, SUMMARY, LOCK = "latest_checkpointed_iteration.txt", "uae_summary.json", "uae_run.lock"
LOG = "uae_log.txt"

#: The page of a run, with its curves.
RUN_PAGE = "index.html"

#: Name of the run for trackers that go on with it.
TRACKED_RUN = "uae_tracked_run.txt"

# ------------------------------------------------------------ a step folder, global_step_<N>/

STEP_PREFIX = "global_step_"

#: Says that the folder is complete; written last.
MARKER = "uae_complete.json"

#: The resolved configuration of the run, and the settings that its validation captions and draws with.
RUN_CONFIG, RUN_INFERENCE = "uae_run.yaml", "uae_inference.json"

#: verl's: the captioner's state, the transformers folder in it, and the place in the data; rank and alpha of adapters.
ACTOR, HUGGINGFACE, DATA_STATE = "actor", "huggingface", "data.pt"
LORA_META = "lora_train_meta.json"

#: State of the trained decoder, and its weights as a decoder folder; of a captioner trained in the cold start, and its
#: weights as a transformers folder; beside the state of a model the one that the run started from.
POLICY_FOLDER, EXPORT_FOLDER = "decoder_policy", "decoder"
CAPTIONER_STATE, CAPTIONER = "captioner_policy", "captioner"
BASE_FILE = "base.json"

#: Running statistics of the rewards.
SIGNALS_FILE = "reward_signals.json"

# ------------------------------------------------------------ a model folder

MODEL_INDEX, MANIFEST, CARD = "model_index.json", "manifest.json", "README.md"
#: What the card shows.
CARD_PICTURES = "pictures.png"
TRANSFORMER, VAE, SCHEDULER, CONDITIONER = "transformer", "vae", "scheduler", "conditioner"

#: Entry of the index for what the family of the decoder reads, which stock pipelines keep at the top of theirs.
FAMILY_OPTIONS = "family_options"

#: Beside ``CAPTIONER``: the model whose text-only states are the condition, where it is not the captioner.
LANGUAGE_MODEL = "language_model"

#: Of the libraries: configurations of a component, of a scheduler and of generation; of these at least one is beside a
#: processor or tokenizer; an adapter's configuration and weights.
CONFIG, SCHEDULER_CONFIG, GENERATION_CONFIG = "config.json", "scheduler_config.json", "generation_config.json"
PROCESSOR_FILES = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Former name of a folder in a step or model folder -> its name.
RENAMED_FOLDERS = {"encoder": CAPTIONER, "encoder_policy": CAPTIONER_STATE}

#: As verl writes the number.
_STEP = re.compile(rf"{STEP_PREFIX}(0|[1-9][0-9]{{0,17}})", re.ASCII)


def step_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"{STEP_PREFIX}{step}"


def step_of(folder: str | Path) -> int | None:
    """Step of a step folder; None for any other name."""
    found = _STEP.fullmatch(Path(folder).name)
    return int(found.group(1)) if found else None
