# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from verl_uae.config.run_folder import resumed_folder, validate_resume
from verl_uae.errors import ConfigError


def config(root: Path, ranks: int, mode: str = "auto", path: str | Path | None = None, nodes: int = 1) -> DictConfig:
    trainer = {"n_gpus_per_node": ranks // nodes, "nnodes": nodes, "resume_mode": mode}
    return OmegaConf.create(
        {
            "trainer": {
                **trainer,
                "default_local_dir": str(root),
                "resume_from_path": None if path is None else str(path),
            }
        }
    )


def step(root: Path, number: int, *files: str, complete: bool = True) -> Path:
    """A step folder with empty files, marked complete."""
    folder = root / f"global_step_{number}"
    for name in (*files, "data.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    if complete:
        marker = {"step": number, "files": dict.fromkeys((*files, "data.pt"), 0)}
        (folder / "uae_complete.json").write_text(json.dumps(marker))
    return folder


SHARDS = [
    ("actor", "model_world_size_{}_rank_0.pt"),
    ("decoder_policy", "optim_world_size_{}_rank_1.pt"),
    ("decoder_policy", "shadows_world_size_{}_rank_0.pt"),
    ("captioner_policy", "extra_state_world_size_{}_rank_3.pt"),
]


@pytest.mark.parametrize(("part", "name"), SHARDS)
@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_another_number_of_ranks_is_refused_by_the_names_of_the_shards(
    tmp_path: Path, mode: str, part: str, name: str
) -> None:
    folder = step(tmp_path, 2, f"{part}/{name.format(4)}")
    validate_resume(config(tmp_path, 4, mode, folder))
    validate_resume(config(tmp_path, 4, mode, folder, nodes=2))
    with pytest.raises(ConfigError) as caught:
        validate_resume(config(tmp_path, 2, mode, folder))
    assert str(caught.value).startswith(
        f"trainer.n_gpus_per_node: {folder / part} was written by 4 ranks, this run has 2"
    )
    assert f"verl-uae export {folder}" in str(caught.value)
    validate_resume(config(tmp_path, 2, "disable", folder))


def test_what_names_no_ranks_is_read_by_any(tmp_path: Path) -> None:
    folder = step(tmp_path, 2, "actor/dist_ckpt/__0_0.distcp", "decoder/model.safetensors")
    validate_resume(config(tmp_path, 3, "auto"))
    assert resumed_folder(config(tmp_path, 3, "auto")) == folder


def test_auto_goes_on_from_the_newest_complete_step(tmp_path: Path) -> None:
    assert resumed_folder(config(tmp_path / "none", 1)) is None
    first = step(tmp_path, 9, "actor/model_world_size_1_rank_0.pt")
    step(tmp_path, 10, "actor/model_world_size_8_rank_0.pt", complete=False)
    (tmp_path / "global_step_x").mkdir()
    assert resumed_folder(config(tmp_path, 1)) == first
    validate_resume(config(tmp_path, 1))


@pytest.mark.parametrize(
    "name", ["global_step_", "global_step_x", "global_step_²", "global_step_03", "step_3", "", None]
)
def test_a_folder_whose_number_verl_could_not_read_is_refused(tmp_path: Path, name: str | None) -> None:
    path = tmp_path / name if name else name
    with pytest.raises(ConfigError, match=r"^trainer\.resume_from_path: must be a folder global_step_<N>, got"):
        resumed_folder(config(tmp_path, 1, "resume_path", path))


def test_a_trailing_slash_and_a_home_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = step(tmp_path, 3)
    for text in (f"{folder}/", "~/global_step_3/", f"file://{folder}"):
        assert resumed_folder(config(tmp_path, 1, "resume_path", text)) == folder
    with pytest.raises(ConfigError, match=re.escape("~/global_step_4: there is no such folder")):
        resumed_folder(config(tmp_path, 1, "resume_path", "~/global_step_4"))
