# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""HTML pages from the templates beside this module: every value is escaped, and pictures are inside the page."""

from __future__ import annotations

import base64
import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL import Image

#: Longest side of pictures that lose nothing in a page, pixels: JPEG rings around the edges of small drawings, and of
#: large ones a page would be tens of megabytes.
SHARP_SIDE = 128

_PNG = b"\x89PNG"


def render_page(template: str, **values: Any) -> str:
    """The page of a template in ``verl_uae/templates``, which may extend ``page.html``.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not there.
    """
    return _environment().get_template(template).render(values)


def link(target: str | os.PathLike[str], page: str | os.PathLike[str]) -> str:
    """Address of a file for a page in another file, relative to it."""
    return quote(os.path.relpath(target, Path(page).parent))


def data_uri(image: Image.Image, side: int | None = None, form: str | None = None) -> str:
    """A picture as a URI that holds it (RFC 2397).

    Args:
        image: RGB.
        side: longest side, pixels; larger pictures are made smaller in proportion.
        form: ``JPEG`` or ``PNG``; None: the latter for pictures of at most :data:`SHARP_SIDE` pixels.
    """
    if side is not None:
        image = image.copy()
        image.thumbnail((side, side))
    encoded = io.BytesIO()
    image.save(encoded, form or ("PNG" if max(image.size) <= SHARP_SIDE else "JPEG"), quality=90)
    return encoded_uri(encoded.getvalue())


def encoded_uri(data: bytes) -> str:
    """The same of a picture that is encoded already, as JPEG or PNG."""
    form = "png" if data.startswith(_PNG) else "jpeg"
    return f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("verl_uae"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
