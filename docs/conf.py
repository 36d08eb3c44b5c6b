# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Sphinx settings of the site. ``make docs`` builds it with the repository as source folder, so that pages outside docs
belong to it and links between all of them hold as they do in a checkout."""

import ast
import shutil
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from verl_uae.versions import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, API = "verl_uae", ROOT / "docs" / "api"
"""What is described, and where its pages are written anew by every build."""
ELSEWHERE = ("verl_uae.bench.lmms.model", "verl_uae.caption_server.vllm_cpu")
"""Modules that import packages of other environments: named without a page."""

project = "verl_uae"
copyright = "2026, The verl_uae authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
]
root_doc = "docs/index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
include_patterns = ["*.md", *(f"{folder}/**" for folder in ("docs", "recipes", "rewards", "examples", "benchmarks"))]
html_theme = "furo"
html_title = f"verl_uae {release}"
default_role = "literal"
toc_object_entries = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# A name in "Raises:" may be that of several re-exported classes.
suppress_warnings = ["ref.python"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}


def setup(app: Sphinx) -> None:
    """Connect what this site needs beyond the extensions."""
    app.connect("builder-inited", _write_api)
    app.connect("doctree-read", _keep_folders)
    # Before napoleon's, at 500.
    app.connect("autodoc-process-docstring", _no_type, priority=400)


def _write_api(app: Sphinx) -> None:
    """A page for each module, and one with the first sentence of them all. The pages are in no tree of contents, which
    every page of the site would repeat."""
    shutil.rmtree(API, ignore_errors=True)
    API.mkdir()
    rows = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if about is None:
            # An empty one.
            continue
        about = " ".join(about.partition("\n\n")[0].split())
        if name in ELSEWHERE:
            rows.append(f"* {name}: {about}")
            continue
        (API / f"{name}.rst").write_text(f":orphan:\n\n{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n")
        rows.append(f"* [{name}]({name}.rst): {about}")
    text = "# API\n\nEvery module, by the first sentence of what it says of itself.\n\n" + "\n".join(rows) + "\n"
    (API / "index.md").write_text(text)


def _keep_folders(app: Sphinx, tree: Any) -> None:
    """Links to folders, which have no page, become their text."""
    here = Path(tree["source"]).parent
    for node in list(tree.findall(pending_xref)):
        if node["reftype"] == "myst" and (here / node["reftarget"]).is_dir():
            node.replace_self(node[0])


def _no_type(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes the words before a colon for the type of an attribute, but not behind an empty line."""
    if what in ("attribute", "data", "property") and lines:
        lines.insert(0, "")
