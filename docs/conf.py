# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Sphinx settings of the site. ``make docs`` builds it with the repository as source folder, so that pages outside docs
belong to it and links between all of them hold as they do in a checkout."""

from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.apidoc import main as apidoc

from verl_uae.versions import __version__

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api"
"""Written anew by every build: a page for each package, with all that is public in its modules."""

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
# Pages of packages have hundreds of objects, and every page repeats the tree.
toc_object_entries = False

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# A name in "Raises:" may be that of several re-exported classes.
suppress_warnings = ["ref.python"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
# Modules that need packages of other environments.
autodoc_mock_imports = ["lmms_eval", "vllm"]


def setup(app: Sphinx) -> None:
    """Connect what this site needs beyond the extensions."""
    app.connect("builder-inited", _write_api)
    app.connect("doctree-read", _keep_folders)
    # Before napoleon's, at 500.
    app.connect("autodoc-process-docstring", _no_type, priority=400)


def _write_api(app: Sphinx) -> None:
    apidoc(["-q", "--force", "--remove-old", "--module-first", "--no-toc", "-o", str(API), str(ROOT / "verl_uae")])


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
