# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

import pytest

from verl_uae.errors import ConfigError
from verl_uae.user_code import load_source


def test_a_file_is_announced_by_path_and_digest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.py"
    file.write_text("ANSWER = 42\n")
    with caplog.at_level(logging.INFO):
        source = load_source(str(file), "key")
    assert source.module.ANSWER == 42
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(file.resolve()) in caplog.text and source.sha256 in caplog.text
    with caplog.at_level(logging.INFO):
        load_source(str(file), "key")
        assert len(caplog.records) == 1, "once"
        file.write_text("ANSWER = 43\n")
        load_source(str(file), "key")
    assert len(caplog.records) == 2, "another file under the same name"


def test_what_runs_is_what_was_hashed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for answer in (1, 2):
        file.write_text(f"answer = {answer}\n")  # Same size, same second: a cached .pyc would not notice.
        assert load_source(str(file), "key").module.answer == answer
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize("reference", ["pkg://json.decoder", "pkg://json/decoder", "json.decoder"])
def test_packages(reference: str) -> None:
    source = load_source(reference, "key")
    assert (
        source.module is sys.modules["json.decoder"] and source.path.endswith("decoder.py") and len(source.sha256) == 64
    )


@pytest.mark.parametrize("reference", ["http://x.org/a.py", "https://x.org/a.py", "s3://b/a.py"])
def test_urls_are_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"key: .* is a URL"):
        load_source(reference, "key")


def test_what_cannot_be_loaded_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(1)\n")
    for name, message in (("broken", "ZeroDivisionError"), ("syntax", "SyntaxError"), ("leaves", "SystemExit")):
        with pytest.raises(ConfigError, match=message):
            load_source(str(tmp_path / f"{name}.py"), "key")
    assert not [name for name in sys.modules if name.startswith("verl_uae_user_broken")]
    for reference in (str(tmp_path / "absent.py"), str(tmp_path), "no.such.module", "\0.py"):
        with pytest.raises(ConfigError, match="key: "):
            load_source(reference, "key")


def test_a_world_writable_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "open.py"
    file.write_text("")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        load_source(str(file), "key")


@pytest.mark.parametrize("above", [0, 1])
def test_a_folder_that_everyone_may_write_into_is_refused_unless_it_is_sticky(tmp_path: Path, above: int) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text("x = 1\n")
    shared = [folder, folder.parent][above]
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match=f"lies in {shared}, which is writable by everyone"):
        load_source(str(folder / "mine.py"), "key")
    shared.chmod(0o1777)
    assert load_source(str(folder / "mine.py"), "key").module.x == 1
