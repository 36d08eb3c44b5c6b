# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Every page that this package writes, made of the scenes by the code that writes it, and how it looks in a browser."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.bench.judge.server import Judges, longer, serving
from tests.bench.results import make_result, same_columns
from tests.browser import Browser
from tests.composing import composed
from verl_uae.bench.discriminate import discrimination_page, read_discrimination
from verl_uae.bench.judge.contest import CAPTION, load_prompt, read_contest
from verl_uae.bench.judge.judges import Judge, Limits
from verl_uae.bench.judge.protocol import AnswerCache, judge_contest
from verl_uae.bench.judge.result import judge_result
from verl_uae.bench.judge.result import write_report as write_judged
from verl_uae.bench.pairs import PicturePair
from verl_uae.bench.unified import write_report as write_unified
from verl_uae.data.images import encode_shown, to_pil
from verl_uae.files import write_text
from verl_uae.scenes.evaluate import Evaluation, held_out_scenes
from verl_uae.scenes.grammar import FULL, caption
from verl_uae.scenes.quickstart import COLUMNS, LOG_FILE, METRICS, write_report
from verl_uae.scenes.render import render_float
from verl_uae.seeding import normal
from verl_uae.stages.common.panel import PanelRow, PanelWriter
from verl_uae.stages.common.run_page import RunPage

ROOT = Path(__file__).parents[1]
#: CSS pixels: a phone and a desktop.
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
COUNT = 8


def write_pages(folder: Path) -> dict[str, Path]:
    """All pages, by name, below a folder."""
    scenes = held_out_scenes(COUNT, 0)
    source_B3HW = render_float(scenes)
    drawn_B3HW = (source_B3HW + 0.15 * normal(tuple(source_B3HW.shape), 0, "browser")).clamp(0, 1)
    said, short = ([caption(scene, levels) for scene in scenes] for levels in (FULL, frozenset()))
    run = folder / "runs" / "g4u"
    run.mkdir(parents=True)
    (run / LOG_FILE).touch()
    (run / METRICS).write_text("".join(json.dumps({"step": step, "data": _metrics(step)}) + "\n" for step in range(60)))
    writer = PanelWriter(str(run / "panels"), str(run / "index.html"))
    encoded = [[encode_shown(one) for one in pictures] for pictures in (source_B3HW, drawn_B3HW)]
    terms = {"efficientnet_lite0": 0.71, "pixel": 0.93, "ssim": 0.81}
    rows = [
        PanelRow(original, text, drawn, 0.9, terms, drawn) for original, drawn, text in zip(*encoded, said, strict=True)
    ]
    first, _ = (writer.write(step, rows[:4]) for step in (30, 60))
    config = composed("hardware=cpu", "preset=scenes", f"trainer.default_local_dir={run}")
    line = (
        "python -m verl.trainer.main_ppo --config-name uae_g4u hardware=cpu preset=scenes uae_home=outputs/quickstart"
    )
    RunPage(config, str(run / METRICS), line).update(now=True, ended=True)
    both = [
        Evaluation(dict.fromkeys(COLUMNS, figure), scenes, texts, source_B3HW, drawn_B3HW, torch.full((COUNT,), figure))
        for figure, texts in ((0.5, short), (0.9, said))
    ]
    about = {"facts": {"seed": 0, "steps": 60}, "commands": {"Training command": line}}
    report = write_report(folder / "report.html", *both, run=run, **about)
    for index, (original, drawn) in enumerate(zip(source_B3HW, drawn_B3HW, strict=True)):
        to_pil(original).resize((512, 512)).save(folder / f"{index}.png")
        to_pil(drawn).resize((512, 512)).save(folder / f"recon_{index}.png")
    return {
        "quickstart": report,
        "run": run / "index.html",
        "panel": first,
        "bench": _unified(folder, said),
        "judge": _judge(folder, said, short),
        "discriminate": _discriminate(folder),
    }


def _metrics(step: int) -> dict[str, float]:
    risen = 1 - math.exp(-step / 15)
    return {
        "val-core/scenes/reward/mean@1": 0.5 + 0.4 * risen,
        "reward/score/mean": 0.5 + 0.4 * risen + 0.02 * math.sin(step),
        "actor/loss": 0.05 * math.sin(step),
        "actor/grad_norm": 1.5 - risen,
        "caption/words/mean": 6 + 4 * risen,
        "timing_s/step": 1.2 + 0.1 * math.sin(step * step),
    }


def _unified(folder: Path, captions: list[str]) -> Path:
    values = [0.98 - 0.05 * index for index in range(COUNT)]
    content = make_result(same_columns(values), captions)
    pairs = [
        PicturePair(folder / pair["name"], folder / pair["reference"], pair["reference"], pair["sha256"])
        for pair in content["verl_uae"]["pairs"]
    ]
    path = folder / "bench.html"
    write_unified(path, content, pairs, count=2, command="verl-uae bench unified IMAGES --model MODEL --out OUT")
    return path


def _judge(folder: Path, *candidates: list[str]) -> Path:
    images = folder / "images"
    images.mkdir()
    paths = []
    for name, captions in zip(("trained", "before"), candidates, strict=True):
        paths.append(folder / f"{name}.jsonl")
        lines = (json.dumps({"file": f"{index}.png", "caption": text}) for index, text in enumerate(captions))
        paths[-1].write_text("".join(f"{line}\n" for line in lines))
    for index in range(COUNT):
        shutil.copy(folder / f"{index}.png", images)
    contest = read_contest(images, *map(str, paths), CAPTION)
    prompt = load_prompt(None, CAPTION)
    with serving(Judges({"longer": longer})) as server, AnswerCache(folder / "answers.jsonl") as cache:
        judges = [Judge("longer", server.base_url, "longer")]
        judged = asyncio.run(judge_contest(contest, judges, prompt, cache, limits=Limits(timeout=30.0)))
    path = folder / "judge.html"
    content = judge_result(judged, prompt, side=512, resamples=100)
    write_judged(path, content, judged, count=2, command="verl-uae bench judge IMAGES trained.jsonl before.jsonl")
    return path


def _discriminate(folder: Path) -> Path:
    content = read_discrimination(ROOT / "docs" / "results" / "discrimination.json")
    path = folder / "discriminate.html"
    write_text(path, discrimination_page(content))
    return path


@dataclass(frozen=True, slots=True)
class Look:
    """A page in a browser."""

    name: str
    width: int
    scheme: str
    wider_by: int
    """How far it reaches beyond the window, CSS pixels."""
    without_pixels: int
    """Pictures that show nothing."""
    faults: list[str]
    """What the browser complains of."""
    contrast: float
    """Of text and background, as WCAG 2.2 defines it."""


_CONTRAST = """() => {
  const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const back = light(getComputedStyle(document.body).backgroundColor)
  const ratios = [...document.querySelectorAll("body *")].filter(one => one.innerText)
    .map(one => light(getComputedStyle(one).color)).map(v => (Math.max(v, back) + 0.05) / (Math.min(v, back) + 0.05))
  return Math.min(...ratios)
}"""


def looks(browser: Browser, pages: Mapping[str, Path], shots: Path | None = None) -> Iterator[Look]:
    """Open every page in both widths and both schemes; with ``shots`` keep what a light window shows at first."""
    for name, path in pages.items():
        for width in WIDTHS:
            for scheme in SCHEMES:
                browser.emulate(width, scheme)
                browser.driver.get(path.resolve().as_uri())
                script = browser.driver.execute_script
                wider = script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
                empty = script("return [...document.images].filter(one => !one.naturalWidth).length")
                yield Look(name, width, scheme, wider, empty, browser.faults(), script(f"return ({_CONTRAST})()"))
                if shots is not None and scheme == "light":
                    browser.driver.save_screenshot(str(shots / f"{name}_{width}.png"))
