# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from verl_uae.data.tar import expand_shards, open_url, webdataset
from verl_uae.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a-00.tar", "a-01.tar", "b.tar", "c.txt"):
        (tmp_path / name).touch()
    return tmp_path


def test_patterns_are_expanded_and_sorted(folder: Path) -> None:
    def names(*patterns: str) -> list[str]:
        return [Path(url).name for url in expand_shards([f"{folder}/{pattern}" for pattern in patterns])]

    assert names("*.tar") == ["a-00.tar", "a-01.tar", "b.tar"]
    assert names("b.tar", "a-{00..01}.tar", "a-*.tar") == ["a-00.tar", "a-01.tar", "b.tar"]
    urls = expand_shards(["https://example.org/x-{08..10}.tar"])
    assert urls == [f"https://example.org/x-{number}.tar" for number in ("08", "09", "10")]


@pytest.mark.parametrize("name", ["a{1,2}.tar", "a[1].tar", "b?.tar", "a:b.tar"])
def test_a_file_that_is_there_is_no_pattern(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert expand_shards([name]) == [name]


@pytest.mark.parametrize(
    "url", ["pipe:touch {ran}", "PIPE:touch {ran}", "s3://x/a.tar", "file:/x.tar", "ssh:x", "-", "hf://x", "gs://x"]
)
def test_what_could_run_a_command_is_refused(url: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(DataError, match="refused: shards are local files or http"):
        expand_shards([url.replace("{ran}", str(ran))])
    assert not ran.exists()


def test_webdataset_itself_runs_no_command_either(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    webdataset()
    from webdataset.autodecode import unpickle_loads
    from webdataset.gopen import gopen

    with pytest.raises(ValueError, match="cannot open pipe URLs"):
        gopen(f"pipe:touch {ran}")

    with pytest.raises(ValueError, match="security"):
        unpickle_loads(b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(ran))
    # A path is opened as a path, whatever it looks like.
    with pytest.raises(FileNotFoundError):
        open_url(f"pipe:touch {ran}")
    assert not ran.exists()


def test_missing_files_and_packages_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern in (f"{folder}/none.tar", f"{folder}/a-{{00..02}}.tar", f"{folder}/z*.tar"):
        with pytest.raises(DataError, match="no such file"):
            expand_shards([pattern])
    with pytest.raises(DataError, match="at least one tar shard"):
        expand_shards([])
    with pytest.raises(DataError, match="braces do not match"):
        expand_shards([f"{folder}/a-{{00..01.tar"])
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ConfigError, match="curl"):
        expand_shards(["https://example.org/x.tar"])
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(ConfigError, match=r"pip install 'webdataset>=1\.0\.2\'"):
        webdataset()
