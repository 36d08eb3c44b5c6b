# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a run: what it does, its curves so far, and links to its panels and steps."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from omegaconf import DictConfig

from verl_uae.checkpoints.manifest import PACKAGES
from verl_uae.checkpoints.names import RUN_PAGE
from verl_uae.checkpoints.step import complete_steps
from verl_uae.curves import MetricsFiles, charts
from verl_uae.errors import describe
from verl_uae.files import write_text
from verl_uae.pages import link, render_page
from verl_uae.stages.common.banner import banner
from verl_uae.stages.common.panel import written
from verl_uae.versions import in_one_line, versions

logger = logging.getLogger(__name__)

#: Least seconds between two pages, but for validations and the end.
EVERY_S = 30.0


class RunPage:
    """Writes the page into the folder of a run, where it appears whole.

    Args:
        config: of the run.
        metrics: file of verl's logger ``file``; None where the run has none, and so no curves.
        command: that started the run, where it is known.
    """

    def __init__(self, config: DictConfig, metrics: str | None, command: str | None) -> None:
        self._folder, self._panels = Path(config.trainer.default_local_dir), Path(config.uae.panel.dir)
        self._metrics = None if metrics is None else MetricsFiles(metrics)
        self._facts = {**banner(config), "versions": in_one_line(versions(PACKAGES))}
        self._command = command
        self._written = -math.inf

    def update(self, *, now: bool = False, ended: bool = False) -> None:
        """Write it where the last one is older than :data:`EVERY_S`, or ``now``. What keeps it from being written costs
        the page alone."""
        if not now and time.monotonic() - self._written < EVERY_S:
            return
        self._written = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / RUN_PAGE, self._render(ended))
        except Exception as error:
            # Fault boundary: files of somebody else may lie in the folder, and nothing of a page is worth a run.
            logger.warning("the page of the run was not written: %s", describe(error))

    def _render(self, ended: bool) -> str:
        page = self._folder / RUN_PAGE
        links = [(step, link(path, page)) for step, path in written(self._panels).items()]
        steps = complete_steps(self._folder)
        return render_page(
            "run.html",
            title=f"{self._facts['stage'].partition(',')[0]}, {self._folder.name}",
            facts={**self._facts, **({"saved steps": ", ".join(map(str, steps))} if steps else {})},
            command=self._command,
            charts=charts(self._metrics.rows() if self._metrics else {}),
            logged=self._metrics is not None,
            panels=links,
            ended=ended,
        )
