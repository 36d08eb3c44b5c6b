# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.conditioner.length=null``: the number of text positions, chosen once at the start of a run.

Where pads are text to the decoder, as in SD3, the number is part of the model, and the same for the whole run: what it
was trained with before anything else, else what holds the captions of the data.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_uae.config.path_keys import is_shards
from verl_uae.config.run_folder import resumed_folder
from verl_uae.errors import ConfigError
from verl_uae.paths import expand, is_hub_id, is_url
from verl_uae.settings import SUPERVISED
from verl_uae.waiting import saying

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Lengths are multiples of this, as kernels of attention like them.
MULTIPLE = 64
#: The longest that is chosen.
LONGEST = 4096
#: Captions that are read, at most, and of how many one may be longer; those are cut and counted.
CAPTIONS, ONE_OF = 100_000, 1000
_AT_ONCE = 256


def resolve_length(config: DictConfig) -> None:
    """Put a number where ``uae.conditioner.length`` is null, and say where it is from.

    Args:
        config: the whole composed configuration, valid, with models and data in place.

    Raises:
        ConfigError: a decoder that has to be told the number is not a folder of this machine.
        DataError: a data file cannot be read.
    """
    uae = config.uae
    if uae.conditioner.length is not None:
        return
    with saying("uae.conditioner.length to be chosen from the data"):
        length, why, _ = _chosen(config)
    uae.conditioner.length = length
    logger.info("uae.conditioner.length=%d: %s", length, why)


def length_words(config: DictConfig) -> str:
    """How many text positions a run has, and which captions do not fit into them.

    Args:
        config: as of :func:`resolve_length`; not changed.

    Raises:
        ConfigError, DataError: as of :func:`resolve_length`.
    """
    from verl_uae.families import family_of

    uae = config.uae
    given = uae.conditioner.length
    length, why, lengths = _chosen(config) if given is None else (int(given), "given", None)
    words = f"{length} text positions, {why}"
    if any(is_hub_id(value) or is_url(value) for value in (uae.decoder.path, uae.conditioner.path)):
        return f"{words}; captions were not compared with them, since models are not on this machine"
    if lengths is None:
        with saying("the captions to be counted"):
            lengths = _lengths(config, family_of(uae.decoder.path, length=LONGEST, role=uae.conditioner.role))
    cut = sum(found > length for found in lengths)
    if len(lengths) == 1:
        return f"{words}; the longest caption takes {lengths[0]}{', and is cut' if cut else ''}"
    return f"{words}; {cut} of {len(lengths)} captions are longer, and cut"


def _chosen(config: DictConfig) -> tuple[int, str, list[int] | None]:
    """Number, where it is from, and text positions of the captions where they were counted for it."""
    # Imported here: torch and diffusers are not needed to read the rest of a configuration.
    from verl_uae.checkpoints.inference import read_index, read_run_settings
    from verl_uae.families import family_of

    name = "condition_length"
    resumed = resumed_folder(config)
    if resumed is not None and name in (known := read_run_settings(resumed) or {}):
        return int(known[name]), f"as in {resumed}", None
    path, conditioner = config.uae.decoder.path, config.uae.conditioner.path
    for value in (path, conditioner):
        if is_hub_id(value) or is_url(value):
            raise ConfigError("uae.conditioner.length", f"{value} is not a folder of this machine; give a number")
    if name in (known := read_index(Path(path))):
        return int(known[name]), f"what {path} was trained with", None
    family = family_of(path, length=LONGEST, role=config.uae.conditioner.role)
    if not family.needs_projector:
        # Published with a limit, and pads cost nothing or are part of what was published.
        return family.length, f"the most that {family.name} reads", None
    lengths = _lengths(config, family)
    longest = lengths[-1 - len(lengths) // ONE_OF]
    chosen = min(LONGEST, -(-longest // MULTIPLE) * MULTIPLE)
    cut = sum(length > chosen for length in lengths)
    what = f"{len(lengths)} captions of the data, of which {cut} are cut" if len(lengths) > 1 else "the longest caption"
    return chosen, f"holds {what}", lengths


def _lengths(config: DictConfig, family: Any) -> list[int]:
    """Text positions of captions, template included, in rising order: those of the data where it has them, else the
    longest that can be written."""
    from verl_uae.checkpoints.load import load_tokenizer

    tokenizer = load_tokenizer(config.uae.conditioner.path, code=True)

    def positions(captions: Iterable[str]) -> list[int]:
        tokens = family.tokenize(tokenizer, list(captions))
        # What is longer than the longest that is chosen has been cut here already.
        return (tokens.attend_BT.sum(1) + tokens.truncated_B).tolist()

    written = config.uae.stage != "u4g" or config.uae.u4g.captions.source != "column"
    if config.uae.stage not in SUPERVISED and written:
        return [positions([""])[0] + int(config.data.max_response_length)]
    captions = itertools.islice(_captions(config), CAPTIONS)
    found: list[int] = []
    while some := list(itertools.islice(captions, _AT_ONCE)):
        found += positions(some)
    if not found:
        raise ConfigError("data.train_files", "has no caption, which uae.conditioner.length=null has to be chosen from")
    return sorted(found)


def _captions(config: DictConfig) -> Iterator[str]:
    """Of the training data, in its order."""
    from verl_uae.data.frame import column_of
    from verl_uae.data.pairs import Pair, pair_of
    from verl_uae.data.rows import CheckSettings
    from verl_uae.data.tar import expand_shards, read_samples

    files: Any = config.data.train_files
    names = [str(name) for name in (OmegaConf.to_object(files) if OmegaConf.is_list(files) else [files])]  # type: ignore[union-attr]
    if is_shards(names):
        limits = CheckSettings.from_config(config.data).image_limits
        for url in expand_shards(names):
            for sample in read_samples(url, limits.max_bytes):
                pair = pair_of(sample, url, limits)
                if isinstance(pair, Pair):
                    yield pair.caption
        return
    for name in names:
        for info in column_of(str(expand(name)), "extra_info"):
            caption = info.get("caption") if isinstance(info, dict) else None
            # A row without one is a bad row, and is told of where rows are checked.
            if isinstance(caption, str) and caption.strip():
                yield caption
