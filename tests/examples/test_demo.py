# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: its session, its page over HTTP without a browser, and once in headless Chromium."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.demo import (
    DemoSession,
    build_page,
    default_terms,
    example_pictures,
    launch,
    load_gradio,
    main,
    parse,
    similarity_table,
)
from tests.browser import MISSING, Browser, installed
from tests.chain.conftest import picture
from verl_uae import UAEPipeline
from verl_uae.data.images import to_tensor
from verl_uae.errors import ConfigError, DecodeError
from verl_uae.reward import RewardBatch, register_reward, registry, reward_names
from verl_uae.reward.term import RewardTerm
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.dataset import write_dataset

FAST = {"steps": 3, "guidance": 2.0}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def demo_pipe(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> UAEPipeline:
    root = tmp_path_factory.mktemp("demo") / "model"
    shutil.copytree(tiny_models / "decoder", root)
    shutil.copytree(tiny_models / "captioner", root / "captioner")
    settings = {"caption_prompt": "<image>describe", "caption_system": "", "max_new_tokens": 8}
    drawing = {"num_inference_steps": 3, "guidance_scale": 2.0}
    pipe = UAEPipeline.from_pretrained(root, condition_length=20, **settings, **drawing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def session(demo_pipe: UAEPipeline) -> DemoSession:
    return DemoSession(demo_pipe, ["pixel", "ssim"])


@pytest.fixture(scope="module")
def page(session: DemoSession) -> Any:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    return build_page(session, "tiny model")


@pytest.fixture(scope="module")
def address(page: Any) -> Iterator[str]:
    yield launch(page, host="127.0.0.1", port=None)
    page.close()


def test_listens_on_this_machine_only_unless_told_otherwise() -> None:
    args = parse(["model"])
    assert args.host == "127.0.0.1" and args.terms is None


def test_the_page_begins_with_pictures_of_a_data_set(session: DemoSession, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    write_dataset(tmp_path / "data", train=3, val=2, seed=0)
    examples = example_pictures(tmp_path / "data" / "train.parquet", tmp_path)
    assert [path.name for path in examples] == ["row0.png", "row1.png", "row2.png"]
    begun = build_page(session, "my model", examples)
    shown = [block.value for block in begun.blocks.values() if getattr(block, "elem_id", None) == "source"]
    assert shown[0] is not None and "my model" in json.dumps(begun.get_config_file(), default=str)
    assert session.is_small and "pixelated" in begun.uae_look["css"]


def test_default_terms_need_no_download() -> None:
    assert set(default_terms()) <= set(reward_names())
    assert "clip" not in default_terms() and default_terms()[:2] == ["pixel", "ssim"]


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    empty = "has no transformer/" if importlib.util.find_spec("gradio") else "pip install"
    for model, expected in ((tmp_path / "none", "there is no such folder"), (tmp_path, empty)):
        assert main([str(model)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("verl-uae: ") and expected in error


def test_caption_is_the_pipelines(session: DemoSession, demo_pipe: UAEPipeline, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    assert [session.caption(tmp_path / "a.png")] == demo_pipe.caption(picture(0), max_new_tokens=8)
    sampled = {session.caption(picture(0), seed=seed, temperature=1.5) for seed in range(4)}
    assert len(sampled) > 1 and session.caption(picture(0), seed=1, temperature=1.5) in sampled
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"bad\.png"):
        session.caption(tmp_path / "bad.png")


def test_draws_compares_and_reports_progress(session: DemoSession) -> None:
    told: list[tuple[int, int]] = []
    drawing = session.draw("a red circle", picture(0), on_progress=lambda *step: told.append(step), **FAST)
    assert told == [(1, 3), (2, 3), (3, 3)] and drawing.image.size == (32, 32) and not drawing.truncated
    # The picture is the 8-bit one, the terms saw the fp32 one.
    expected = pixel_similarity(to_tensor([picture(0)], 32), to_tensor([drawing.image], 32)).item()
    assert drawing.similarity["pixel"] == pytest.approx(expected, abs=5e-3)
    assert set(drawing.similarity) == {"pixel", "ssim"}
    assert session.draw("red " * 60, None, **FAST).truncated
    assert session.draw("a red circle", None, **FAST).similarity == {}


def test_equal_seeds_share_their_noise(session: DemoSession) -> None:
    def pixels(caption: str, seed: int, image: Image.Image | None = None) -> np.ndarray:
        return np.asarray(session.draw(caption, image, seed=seed, **FAST).image).astype(int)

    assert np.array_equal(pixels("a red circle", 0), pixels("a red circle", 0, picture(3)))
    assert not np.array_equal(pixels("a red circle", 0), pixels("a red circle", 1))
    assert not np.array_equal(pixels("a red circle", 0), pixels("a blue square", 0))


def test_a_term_without_a_value_says_why_and_leaves_the_others(
    demo_pipe: UAEPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Undefined(RewardTerm):
        bounds = (0.0, 1.0)

        def score(self, batch: RewardBatch) -> torch.Tensor:
            return torch.full((len(batch),), float("nan"))

    monkeypatch.setattr(registry.REWARDS, "_claims", dict(registry.REWARDS._claims))
    register_reward("undefined")(Undefined)
    similarity = DemoSession(demo_pipe, ["undefined", "pixel"]).draw("red", picture(0), **FAST).similarity
    assert str(similarity["undefined"]).startswith("invalid") and isinstance(similarity["pixel"], float)


def test_an_unknown_term_is_refused(demo_pipe: UAEPipeline) -> None:
    with pytest.raises(ConfigError, match="beauty"):
        DemoSession(demo_pipe, ["beauty"])


def handlers(page: Any) -> dict[str, Any]:
    return {function.fn.__name__: function.fn for function in page.fns.values()}


def test_missing_gradio_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match='pip install "gradio>=6"'):
        load_gradio()


def test_table_of_similarities() -> None:
    table = similarity_table({"pixel": 0.5, "clip": "error: no weights"}).splitlines()
    assert table == ["| similarity | value |", "|---|---|", "| pixel | 0.5000 |", "| clip | error: no weights |"]
    assert similarity_table({}) == ""


def test_handlers_do_what_the_session_does(page: Any, session: DemoSession, tmp_path: Path) -> None:
    import gradio

    picture(0).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    path, silent = str(tmp_path / "a.png"), lambda *_, **__: None
    write, draw = handlers(page)["write"], handlers(page)["draw"]
    caption = write(path, 0, 0.0, progress=silent)
    assert caption == session.caption(picture(0))
    image, table, note = draw(path, caption, 1, 3, 2.0, progress=silent)
    expected = session.draw(caption, picture(0), seed=1)
    assert np.array_equal(np.asarray(image), np.asarray(expected.image))
    assert table == similarity_table(expected.similarity) and note == ""
    assert "cut" in draw(None, "red " * 60, 1, 3, 2.0, progress=silent)[2]
    for refused in (None, str(tmp_path / "bad.png")):
        with pytest.raises(gradio.Error):
            write(refused, 0, 0.0, progress=silent)


def test_is_served_here_only_and_asks_no_other_host(page: Any, address: str) -> None:
    import httpx

    assert address.startswith("http://127.0.0.1:") and page.share_url is None and page.analytics_enabled is False
    answer = httpx.get(address, trust_env=False)
    policy = answer.headers["content-security-policy"]
    sources = {word for part in policy.split(";") for word in part.split()[1:]}
    assert sources == {"'self'", "'unsafe-inline'", "'unsafe-eval'", "blob:", "data:"}
    assert "Caption" in answer.text and "fonts.googleapis.com/css" not in answer.text


@pytest.mark.slow
def test_in_a_browser(page: Any, address: str, session: DemoSession, tmp_path: Path) -> None:
    """Upload, click, wait for the reconstruction; the browser has asked no other host."""
    programs = installed()
    if programs is None:
        pytest.skip(MISSING)
    picture(0, 256, 256).save(tmp_path / "scene.png")
    with Browser(*programs, tmp_path / "profile") as browser:
        browser.open(address)
        browser.upload(tmp_path / "scene.png")
        browser.click("both")
        shown = browser.wait_for_picture("drawn")
        assert browser.text("caption") == session.caption(Image.open(tmp_path / "scene.png"))
        assert Image.open(shown).size == (32, 32)
        assert "pixel" in browser.content("similarity")
        browser.screenshot(tmp_path / "demo.png")
        assert Image.open(tmp_path / "demo.png").size[0] > 500
        assert browser.hosts() == {address.rstrip("/").removeprefix("http://")}
