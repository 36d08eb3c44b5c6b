# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The page without a browser, over HTTP; and once in headless Chromium."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.conftest import picture
from verl_uae.demo.page import build_page, launch, load_gradio, similarity_table
from verl_uae.demo.session import DemoSession
from verl_uae.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def page(session: DemoSession) -> Any:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    return build_page(session)


@pytest.fixture(scope="module")
def address(page: Any) -> Iterator[str]:
    yield launch(page, host="127.0.0.1", port=None, block=False)
    page.close()


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
    pytest.importorskip("selenium", reason="selenium is not installed")
    binary, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver_path is None:
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    picture(0, 256, 256).save(tmp_path / "scene.png")
    from tests.demo.browser import Browser

    with Browser(binary, driver_path, tmp_path / "profile") as browser:
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
