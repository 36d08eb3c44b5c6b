# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""House rules that a linter does not know: sizes, fault boundaries, dangerous calls."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.source import PACKAGE, ROOT, modules, relative, tree

MAX_FILE, MEDIAN_FILE = 600, 200
MAX_FUNCTION, P90_FUNCTION = 100, 40
MAX_BROAD_HANDLERS = 22


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> Iterator[tuple[str, int]]:
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{relative(path)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    sizes = {relative(path): lines(path) for path in modules()}
    assert not {name: size for name, size in sizes.items() if size > MAX_FILE}
    assert statistics.median(size for name, size in sizes.items() if not name.endswith("__init__.py")) <= MEDIAN_FILE


def test_functions_are_short() -> None:
    sizes = dict(functions())
    assert not {name: size for name, size in sizes.items() if size > MAX_FUNCTION}
    assert statistics.quantiles(sizes.values(), n=10)[-1] <= P90_FUNCTION


def test_every_file_has_the_licence_header() -> None:
    header = "# Copyright 2026 The verl_uae authors\n# SPDX-License-Identifier: Apache-2.0\n"
    folders = (PACKAGE, ROOT / "tests", ROOT / "rewards", ROOT / "examples", ROOT / "recipes", ROOT / "benchmarks")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    bare = [str(path) for path in files if path.stat().st_size and not path.read_text("utf-8").startswith(header)]
    assert len(files) > 100 and not bare


def broad_handlers() -> Iterator[tuple[Path, ast.ExceptHandler]]:
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                names = "" if node.type is None else ast.unparse(node.type)
                if node.type is None or "Exception" in names.split(".")[-1:] or names in ("Exception", "BaseException"):
                    yield path, node


def test_broad_handlers_are_few_and_each_has_its_reason() -> None:
    """A comment on the line before or after ``except``, unless the handler raises again."""
    found = [
        (path, node)
        for path, node in broad_handlers()
        if not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in node.body)
    ]
    assert 0 < len(found) <= MAX_BROAD_HANDLERS, [f"{relative(path)}:{node.lineno}" for path, node in found]
    for path, node in found:
        text = path.read_text(encoding="utf-8").splitlines()
        around = (text[node.lineno - 2].strip(), text[node.lineno].strip())
        assert any(line.startswith("#") for line in around), f"{relative(path)}:{node.lineno} has no reason"


FORBIDDEN_CALLS = ("eval", "exec", "compile", "__import__", "yaml.load", "pickle.load", "pickle.loads", "os.system")
FORBIDDEN_IMPORTS = ("pickle", "cloudpickle", "dill", "marshal", "shelve")
RANDOM_CALLS = tuple(f"torch.{name}" for name in ("randn", "rand", "randint", "randperm", "multinomial", "normal"))


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def dangers(path: Path) -> Iterator[tuple[int, str]]:
    """Line and what is wrong there."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_IMPORTS:
            yield node.lineno, node.module
    for call in calls(path):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        wrong = {
            name: name in FORBIDDEN_CALLS,
            "shell": keywords.get("shell") not in (None, "False"),
            "trust_remote_code": keywords.get("trust_remote_code") not in (None, "False"),
            "torch.load without weights_only": name == "torch.load" and keywords.get("weights_only") != "True",
            "print": name == "print" and path.name not in ("cli.py", "__main__.py"),
        }
        yield from ((call.lineno, reason) for reason, found in wrong.items() if found)


def random_calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of what draws from or seeds the global generator; a builder may seed in torch.random.fork_rng."""
    seeds = "fork_rng" in path.read_text(encoding="utf-8") or relative(path) == "plugin/cpu_platform.py"
    for call in calls(path):
        name, keywords = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
        drawn = name in RANDOM_CALLS and "generator" not in keywords
        seeded = name.startswith(("np.random.seed", "numpy.random.seed", "random.seed"))
        if drawn or seeded or (name == "torch.manual_seed" and not seeds):
            yield call.lineno, name


@pytest.mark.parametrize("scan", [dangers, random_calls])
def test_no_module_does_what_none_may(scan: Callable[[Path], Iterator[tuple[int, str]]]) -> None:
    assert not [f"{relative(path)}:{line} {reason}" for path in modules() for line, reason in scan(path)]


def test_the_scans_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.source.PACKAGE", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle\nfrom dill import load\neval('1')\nrun('ls', shell=True)\nprint(1)\ntorch.load('x')\n"
        "f(trust_remote_code=yes)\ntorch.randn(2)\nrandom.seed(1)\ntorch.manual_seed(0)\ntorch.rand(2, generator=g)\n"
    )
    assert sorted(dangers(bad)) == [
        (1, "pickle"),
        (2, "dill"),
        (3, "eval"),
        (4, "shell"),
        (5, "print"),
        (6, "torch.load without weights_only"),
        (7, "trust_remote_code"),
    ]
    assert list(random_calls(bad)) == [(8, "torch.randn"), (9, "random.seed"), (10, "torch.manual_seed")]
