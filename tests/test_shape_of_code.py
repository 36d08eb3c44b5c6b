# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""House rules that a linter does not know: sizes, fault boundaries, dangerous calls, mirrored tests."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source import PACKAGE, ROOT, modules, relative, tree

MAX_FILE, MEDIAN_FILE = 600, 200
MAX_FUNCTION, P90_FUNCTION = 120, 40
MAX_BROAD_HANDLERS = 20

#: Modules without a test file of their own, and what runs them instead.
UNMIRRORED = {
    "config/__init__.py": "empty",
    "trainer/decoders.py": "needs Ray and a GPU pool: tests/e2e/test_schedules.py and test_faults.py",
    "reward/terms/__init__.py": "empty",
    "data/limits.py": "tests/data/test_images.py",
    "rollout/hf/adapter.py": "needs verl's worker: tests/e2e",
    "rollout/hf/replica.py": "needs verl's worker: tests/e2e",
    "rollout/vllm_cpu.py": "needs vLLM: tests/vllm",
    "scenes/learn/g4u.py": "minutes of training: make learn-g4u",
    "scenes/learn/runs.py": "starts the training command: make learn-u4g",
    "scenes/report.py": "the page of scenes/quickstart.py",
}


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
    folders = (PACKAGE, ROOT / "tests", ROOT / "rewards", ROOT / "examples", ROOT / "recipes")
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


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_no_dangerous_calls(path: Path) -> None:
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not set(names) & set(FORBIDDEN_IMPORTS), f"{relative(path)}:{node.lineno}"  # type: ignore[attr-defined]
    for call in calls(path):
        name, where = ast.unparse(call.func), f"{relative(path)}:{call.lineno}"
        assert name not in FORBIDDEN_CALLS, f"{where} calls {name}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("shell") in (None, "False"), where
        assert keywords.get("trust_remote_code") in (None, "False"), where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if name == "print":
            assert path.name in ("cli.py", "__main__.py"), f"{where} prints"


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_the_global_generator_is_not_used(path: Path) -> None:
    """Named generators only; a builder may seed inside torch.random.fork_rng."""
    text = path.read_text(encoding="utf-8")
    for call in calls(path):
        name, where = ast.unparse(call.func), f"{relative(path)}:{call.lineno}"
        keywords = {keyword.arg for keyword in call.keywords}
        if name in (
            "torch.randn",
            "torch.rand",
            "torch.randint",
            "torch.randperm",
            "torch.multinomial",
            "torch.normal",
        ):
            assert "generator" in keywords, f"{where} {name} without a generator"
        assert not name.startswith(("np.random.seed", "numpy.random.seed", "random.seed")), where
        if name == "torch.manual_seed":
            assert "fork_rng" in text or relative(path) == "engine/cpu_platform.py", where


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_has_a_mirrored_test_file(path: Path) -> None:
    name = relative(path)
    test = ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.name}")
    if name in UNMIRRORED:
        assert not test.is_file(), f"{name} has a test now: take it off the list"
        return
    if path.name == "__init__.py":
        assert len(tree(path).body) <= 30, f"{name} has code of its own"
        return
    # flow/ode.py may also be tested as flow/test_ode_on_cpu.py, verl's name for what its CPU job runs.
    assert test.is_file() or test.with_name(f"{test.stem}_on_cpu.py").is_file(), f"no {test.relative_to(ROOT)}"


def test_the_list_of_exceptions_is_not_stale() -> None:
    assert not [name for name in UNMIRRORED if not (PACKAGE / name).is_file()]
    assert len(UNMIRRORED) <= 12
