# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io

import jinja2
import numpy as np
import pytest
from PIL import Image

from tests.chain.conftest import picture
from verl_uae.pages import data_uri, render_page


def test_pictures_are_inside_and_not_larger_than_needed() -> None:
    sizes = []
    for original in (picture(0, 640, 400), picture(1, 40, 30)):
        uri = data_uri(original, 320)
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        sizes.append(image.size)
        difference = np.asarray(original.resize(image.size), dtype=float) - np.asarray(image, dtype=float)
        assert np.abs(difference).mean() < 12
    assert sizes == [(320, 200), (40, 30)]


def test_values_are_escaped_and_none_may_be_missing() -> None:
    assert "<title>&lt;script&gt; &amp;</title>" in render_page("page.html", title="<script> &")
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render_page("page.html")
