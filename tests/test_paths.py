# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from verl_uae.errors import CheckpointError, ConfigError, DataError
from verl_uae.paths import (
    RAY_FOLDER_KEY,
    SOCKET_PATH_MAX,
    argument_path,
    data_cache,
    existing_file,
    existing_folder,
    existing_place,
    expand,
    home_folder,
    hub_cache,
    hub_problem,
    is_hub_id,
    model_source,
    output_folder,
    override,
    ray_folder,
    reason_of,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that is the home folder too, with folders ``model``, ``a b`` and ``owner/name`` and a file."""
    for folder in ("model", "a b", "owner/name"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "owner" / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_expand_understands_home_file_urls_and_trailing_slashes(place: Path) -> None:
    written = ["~/model", "~/model/", f"file://{place}/model", f"file://localhost{place}/model//", f"{place}//model"]
    assert {expand(text) for text in written} == {place / "model"}
    assert expand(f"file://{place}/a%20b") == place / "a b"
    assert expand("model/") == Path("model") and expand("/") == Path("/")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model", "model"),
        ("model/", "model"),
        ("./model", "model"),
        ("~/model", "{place}/model"),
        ("file://{place}/model/", "{place}/model"),
        ("a b", "a b"),
        ("owner/name", "owner/name"),
        ("owner/name/", "owner/name"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("a/b", "a/b"),
    ],
)
def test_a_model_is_a_folder_or_a_hub_id(place: Path, text: str, wanted: str) -> None:
    assert model_source(text.format(place=place)) == wanted.format(place=place)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("DECODER", "is no folder in {place}, and a hub id is owner/name; give one of the two"),
        ("gpt2", "a hub id is owner/name"),
        ("/no", "there is no such folder"),
        ("./no", "there is no such folder in {place}"),
        (".no", "there is no such folder in {place}"),
        ("~/no", "there is no such folder"),
        ("~nobody-here/model", "there is no such folder"),
        ("no/", "there is no such folder in {place}"),
        ("owner/other/", "there is no such folder in {place}"),
        ("runs/g4u/decoder", "there is no such folder in {place}"),
        ("$HOME/model", "there is no such folder in {place}"),
        ("my models/decoder", "there is no such folder in {place}"),
        ("owner/file", "is a file, and must be a folder"),
        ("owner/file/x", "cannot be read: Not a directory"),
        ("file:///no/model", "there is no such folder"),
        ("s3://bucket/model", "copy it to a folder first"),
        ("hdfs://a/model", "copy it to a folder first"),
        ("", "is empty; give a folder"),
        (" ", "is empty; give a folder"),
        ("x" * 300, "is no folder in"),
        ("/" + "x" * 300, "cannot be read: File name too long"),
    ],
)
def test_everything_else_is_refused_with_the_reason(place: Path, text: str, why: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises(ConfigError) as named:
        model_source(text, "uae.decoder.path")
    assert named.value.key == "uae.decoder.path"
    assert str(named.value).startswith(f"uae.decoder.path: {text or repr('')}: ")
    assert why.format(place=place) in str(named.value)
    with pytest.raises(CheckpointError) as unnamed:
        model_source(text)
    assert why.format(place=place) in str(unnamed.value)


def test_a_path_object_is_never_a_hub_id(place: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        model_source(Path("Qwen/Qwen2.5-VL-3B-Instruct"))
    assert model_source(Path("model")) == "model"


def test_files_and_folders_are_told_apart(place: Path) -> None:
    assert existing_file("~/owner/file") == place / "owner" / "file"
    assert existing_folder("~/owner/") == place / "owner"
    assert [existing_place(text) for text in ("~/owner/", "~/owner/file")] == [
        place / "owner",
        place / "owner" / "file",
    ]
    with pytest.raises(ConfigError, match=r"^--prompts: no: there is no such file or folder in"):
        existing_place("no", "--prompts")
    with pytest.raises(DataError, match="owner: is a folder, and must be a file"):
        existing_file("owner")
    with pytest.raises(DataError, match="there is no such file in"):
        existing_file("no.parquet")
    os.mkfifo(place / "pipe")
    with pytest.raises(DataError, match="is a pipe or a device"):
        existing_file("pipe")
    with pytest.raises(ConfigError, match=r"^--prompt-file: no\.txt: there is no such file in"):
        existing_file("no.txt", "--prompt-file")
    with pytest.raises(DataError, match="is no file of this machine"):
        existing_file("s3://bucket/a.parquet")


def test_an_output_folder_is_one_that_can_be_made(place: Path) -> None:
    assert output_folder("~/new/deep/") == place / "new" / "deep" and not (place / "new").exists()
    assert output_folder("new") == Path("new")
    assert not [path for path in place.iterdir() if path.name.startswith(".verl_uae")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("owner/file/run", "owner/file is in the way: it is no folder"),
        ("/proc/run", "/proc cannot be written"),
        ("s3://bucket/run", "is no folder of this machine"),
        ("", "is empty; give a folder"),
    ],
)
def test_an_output_folder_that_cannot_be_made_is_refused(place: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        output_folder(text, "trainer.default_local_dir")


@pytest.mark.parametrize("text", ["", "  ", "s3://bucket/x", "hdfs://a/b", "https://host/x"])
def test_a_path_of_the_command_line_is_one_of_this_machine(text: str) -> None:
    """An unset variable of a shell would be the current folder, a URL a folder called ``s3:``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=argument_path)
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--out", text])
    assert raised.value.code == 2


def test_a_path_of_the_command_line_is_expanded(place: Path) -> None:
    assert argument_path("~/model/") == place / "model" and argument_path(f"file://{place}/a%20b") == place / "a b"


def test_a_link_that_leads_nowhere_is_a_folder_that_is_gone(place: Path) -> None:
    (place / "owner" / "gone").symlink_to(place / "nothing")
    assert is_hub_id("owner/other") and not is_hub_id("owner/gone")
    with pytest.raises(CheckpointError, match="owner/gone: there is no such folder"):
        model_source("owner/gone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub to ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_what_is_not_cached_cannot_be_had_offline(cache: Path) -> None:
    assert hub_problem("owner/name") == (
        "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub; give the path of a folder that holds its files"
    )
    assert "is no hub id" in str(hub_problem("a/b/c"))


def _answered(kind: type[Exception], code: int) -> Exception:
    return kind("...", response=httpx.Response(code, request=httpx.Request("GET", constants.ENDPOINT)))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (_answered(RepositoryNotFoundError, 401), "is not at https://.*/owner/name; a private one needs"),
        (_answered(GatedRepoError, 403), "is gated: accept its terms at"),
        (_answered(RevisionNotFoundError, 404), "has no revision v9"),
        (EntryNotFoundError("..."), "has no config.json"),
        (
            httpx.ConnectError("Name or service not known"),
            r"cannot be reached \(ConnectError\); give the path of a folder",
        ),
        (httpx.ReadTimeout("..."), r"cannot be reached \(ReadTimeout\)"),
        (OSError(28, "No space left on device"), "cannot be fetched: .*No space left on device"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_each_error_of_the_hub_has_its_own_reason(error: Exception, why: str, wrapped: bool) -> None:
    if wrapped:  # As huggingface_hub hands on what kept it from looking, when the cache has nothing either.
        outer = LocalEntryNotFoundError("cannot find the snapshot folder")
        outer.__cause__ = error
        error = outer
    assert re.search(why, reason_of(error, "owner/name", file="config.json", revision="v9"))


SESSION = len("/session_2026-01-01_00-00-00_000000_") + len("/sockets/plasma_store")


def folder_of(length: int) -> str:
    return "/tmp/" + "r" * (length - len("/tmp/"))


@pytest.fixture
def longest() -> int:
    """Bytes of the longest folder in which a Ray of this process can live."""
    return SOCKET_PATH_MAX - SESSION - len(str(os.getpid()))


def test_the_limit_is_the_one_at_which_ray_fails(longest: int) -> None:
    assert ray_folder(folder_of(longest)) == folder_of(longest)
    with pytest.raises(ConfigError, match=f"has {longest + 1} bytes.* of at most {longest} bytes") as refused:
        ray_folder(folder_of(longest + 1))
    assert refused.value.key == RAY_FOLDER_KEY
    # In a process of its own: this one may be connected to Ray.
    code = (
        "import os, ray\n"
        f"folder = '/tmp/' + 'r' * ({SOCKET_PATH_MAX - SESSION + 1 - len('/tmp/')} - len(str(os.getpid())))\n"
        "ray.init(address='local', _temp_dir=folder, include_dashboard=False, num_cpus=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert f"AF_UNIX path length cannot exceed {SOCKET_PATH_MAX} bytes" in done.stderr


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_variable_that_set_the_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, longest: int, variable: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, folder_of(longest - len("/ray") + 1))
    with pytest.raises(
        ConfigError, match=f"set {variable} to a folder of at most {longest - len('/ray')} bytes"
    ) as refused:
        ray_folder()
    assert refused.value.key == variable
    monkeypatch.setenv(variable, folder_of(longest - len("/ray")))
    assert ray_folder().endswith("/ray")
    monkeypatch.setenv(variable, "/proc/none")
    with pytest.raises(ConfigError, match="cannot be written"):
        ray_folder()


@pytest.mark.parametrize(("home", "problem"), [("/no/such/home", "is not there"), ("/proc", "cannot be written")])
def test_a_home_that_is_none(monkeypatch: pytest.MonkeyPatch, home: str, problem: str) -> None:
    monkeypatch.setenv("HOME", home)
    with pytest.raises(ConfigError, match=f"^HOME: {home}.*{problem}"):
        home_folder()


def test_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == str(tmp_path) and not list(tmp_path.iterdir())


def test_a_cache_of_the_hub_that_is_only_read_must_be_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_cache() == str(tmp_path / "hub") and not list(tmp_path.iterdir())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc")
    with pytest.raises(ConfigError, match=r"^HF_HUB_CACHE or HF_HOME: /proc: /proc cannot be written"):
        hub_cache()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_cache() == "/proc (offline)"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/none")
    with pytest.raises(ConfigError):
        hub_cache()


def test_the_cache_of_data_files_is_there_or_can_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert data_cache() == tmp_path / "datasets" / "verl_uae" and not list(tmp_path.iterdir())
    monkeypatch.setenv("HF_DATASETS_CACHE", "/proc/none")
    with pytest.raises(
        ConfigError, match=r"^HF_DATASETS_CACHE or HF_HOME: /proc/none/verl_uae: /proc cannot be written"
    ):
        data_cache()
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.setattr(constants, "HF_HOME", "/proc/none")
    with pytest.raises(ConfigError, match="/proc/none/datasets/verl_uae"):
        data_cache()


WRITTEN = [
    "run",
    "a b",
    "a=b",
    "a,b",
    "it's",
    'a"b',
    "\u00fc",
    "(a)",
    "[a]",
    "{a: b}",
    "~/a",
    "7",
    "1e5",
    "null",
    "True",
    "-inf",
]
WRITTEN += ["#a", "a;b", ".", "..", " a ", "", "\t", "a\nb", "owner/name", "1/2", "$HOME", "nan/"]
# Backslashes before quotes and ends, which Hydra reads as escapes.
WRITTEN += ["".join(letters) for size in (1, 2, 3, 4) for letters in itertools.product("\\'\"a", repeat=size)]


def test_a_path_of_an_override_is_read_as_it_is_written() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([override("key", text) for text in WRITTEN])
    assert [one.value() for one in parsed] == WRITTEN
    assert override("key", "a/b-c_1.parquet") == "key=a/b-c_1.parquet"
