# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe as verl-recipe takes it, checked by the rules that verl-recipe states.

    python recipes/upstream.py OUT --repository https://github.com/OWNER/verl_uae --ref v0.1.0 --verl-commit COMMIT

writes ``OUT/uae``, with links that leave the folder made addresses of the repository at that ref and with the commit of
verl's tag, and prints what is missing and the row for the table of verl-recipe's own README. Exit code 1: something is
missing.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "uae"
REQUIRED = "REQUIRED_VERL.txt"

#: Ways to name a version of verl, of verl-recipe's install_verl.sh -> the keys that it reads.
MODES = {
    "rolling": (),
    "rolling_with_baseline": (),
    "mixed": (),
    "pinned_tag": ("TAG", "COMMIT", "PIP_INSTALL"),
    "pinned_commit": ("COMMIT",),
    "reproduction_commit": ("COMMIT",),
}

#: Parts of the names of scripts that start training; each has one.
BACKENDS = ("fsdp", "megatron")

_LINK = re.compile(r"\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def write(out: Path, repository: str, ref: str, commit: str) -> Path:
    """The recipe's folder in ``out``, with links that hold there.

    Args:
        out: folder, made if missing; a recipe that is in it is replaced.
        repository: address, without a slash at its end.
        ref: tag or commit of it.
        commit: of the tag of verl.

    Raises:
        SystemExit: what is in the folder's place is no copy of the recipe, or nothing can be written there.
    """
    folder = out / RECIPE.name
    if folder.resolve() == RECIPE:
        raise SystemExit(f"{folder} is the recipe itself: give another OUT")
    if folder.is_symlink() or (folder.exists() and not (folder / REQUIRED).is_file()):
        raise SystemExit(f"{folder} is no recipe, or a link to one: give another OUT")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written: {error.strerror or error}") from error
    for page in folder.rglob("*.md"):
        home = RECIPE.joinpath(page.relative_to(folder)).parent.relative_to(ROOT).as_posix()

        def moved(link: re.Match[str], home: str = home) -> str:
            place = posixpath.normpath(posixpath.join(home, link["target"]))
            if "://" in link["target"] or place.startswith("recipes/uae"):
                return link[0]
            return f"]({repository}/blob/{ref}/{place}{link['anchor'] or ''})"

        page.write_text(_LINK.sub(moved, page.read_text(encoding="utf-8")), encoding="utf-8")
    required = folder / REQUIRED
    lines = required.read_text(encoding="utf-8").splitlines()
    tag = next((number for number, line in enumerate(lines) if line.startswith("TAG=")), len(lines) - 1)
    lines.insert(tag + 1, f"COMMIT={commit}")
    required.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def missing(folder: Path) -> Iterator[str]:
    """What keeps a folder from being a recipe, a line each."""
    readme, required = folder / "README.md", folder / REQUIRED
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    section = re.search(r"^## Required `?verl`? version$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None:
        yield "README.md: no section 'Required `verl` version'"
    elif f"]({REQUIRED})" not in section[1]:
        yield f"README.md: the section 'Required `verl` version' has no link to {REQUIRED}"
    if required.is_file():
        yield from _version(required)
    else:
        yield f"{REQUIRED}: there is none"
    for page in sorted(folder.rglob("*.md")):
        for link in _LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / link["target"]).resolve()
            if "://" not in link["target"] and not (target.exists() and target.is_relative_to(folder.resolve())):
                yield f"{page.relative_to(folder)}: {link['target']} leads out of the recipe, or nowhere"
    for script in sorted(folder.rglob("run_*.sh")):
        if not any(backend in script.name for backend in BACKENDS):
            yield f"{script.relative_to(folder)}: its name has no backend, one of {', '.join(BACKENDS)}"
    if "results" not in text.lower():
        yield "README.md: no word of results, which the template of a pull request asks for"


def _version(required: Path) -> Iterator[str]:
    lines = [line for line in required.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    values = dict(line.partition("=")[::2] for line in lines)
    if values.get("MODE") not in MODES:
        yield f"{REQUIRED}: MODE={values.get('MODE')}, must be one of {', '.join(MODES)}"
    for key in ("UPSTREAM", *MODES.get(values.get("MODE", ""), ())):
        if not values.get(key):
            yield f"{REQUIRED}: no {key}"
    if "COMMIT" in values and not re.fullmatch(r"[0-9a-f]{40}", values["COMMIT"]):
        yield f"{REQUIRED}: COMMIT must be 40 hexadecimal digits"


def row(repository: str) -> str:
    """Of the table in verl-recipe's README."""
    return (
        f"| [uae](uae/README.md) | Unified-GRPO ([arXiv 2509.09666](https://arxiv.org/abs/2509.09666)): captioner and "
        f"diffusion decoder as an auto-encoder | [verl-uae]({repository}) |"
    )


def main() -> int:
    """Write, check and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--repository", required=True, help="address of this repository")
    parser.add_argument("--ref", required=True, help="tag or commit that the links name")
    parser.add_argument("--verl-commit", required=True, metavar="COMMIT", help="of the tag: git ls-remote UPSTREAM TAG")
    options = parser.parse_args()
    for name in ("repository", "ref", "verl_commit"):
        if not getattr(options, name).strip():
            parser.error(f"--{name.replace('_', '-')} is empty")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"{options.out} is no folder")
    repository = options.repository.rstrip("/")
    found = list(missing(write(options.out, repository, options.ref, options.verl_commit)))
    sys.stdout.write("\n".join([*(f"missing: {line}" for line in found), "row:", row(repository)]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
