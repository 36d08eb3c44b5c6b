# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The tasks run by lmms-eval itself, with the tiny captioner and local tables that have the data sets' columns."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.lmms.test_captioner import GROUP, entry_point
from tests.chain.conftest import picture
from tests.source import ROOT
from verl_uae import UAEPipeline
from verl_uae.bench.lmms import TASKS
from verl_uae.cli import main

pytestmark = pytest.mark.slow
pytest.importorskip("lmms_eval", reason="lmms-eval is not a dependency: docs/other_benches.md")

MMT_QUESTION = "what colour is it?"

#: A side that neither qwen-vl-utils (multiples of 28) nor the tiny processor (of 16) changes.
SIDE = 112

#: Before lmms-eval, as everywhere beside a CPU build of torch: see compat.ensure_torchvision.
RUN = "import verl_uae; from lmms_eval.__main__ import cli_evaluate; cli_evaluate()"


def ocr_rows(said: dict[int, str]) -> list[dict[str, Any]]:
    """Two of three rows accept a word of what the captioner says; the last is of another group."""
    first, second, third = said
    accepted = {first: [said[first].split()[0]], second: ["zzz"], third: ["zzz", said[third].split()[-1].upper()]}
    kinds = {first: "Regular Text Recognition", second: "Handwriting Recognition", third: "Doc-oriented VQA"}
    return [
        {
            "dataset": "x",
            "question": "read it",
            "question_type": kinds[n],
            "answer": accepted[n],
            "image": picture(n, SIDE, SIDE),
        }
        for n in said
    ]


def mmt_rows() -> list[dict[str, Any]]:
    return [
        {"index": n, "image": picture(n), "question": MMT_QUESTION, "A": "red", "B": "blue", "answer": "A",
         "l2-category": category, "split": "VAL"}
        for n, category in enumerate(["ocr", "ocr", "counting"])
    ]  # fmt: skip


def pope_rows() -> list[dict[str, Any]]:
    return [
        {"question_id": str(n), "image": picture(n), "question": "is it red?", "answer": answer, "category": "random"}
        for n, answer in enumerate(["yes", "no"])
    ]


def write_task(root: Path, task: str, split: str, rows: list[dict[str, Any]]) -> None:
    """The task file as it is, over a local table instead of the hub's."""
    from datasets import Dataset, Image

    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(root / f"{task}.parquet")
    (root / f"local_{task}.yaml").write_text(
        f"include: {TASKS / task}.yaml\ntask: local_{task}\ndataset_path: parquet\n"
        f"dataset_kwargs:\n  data_files:\n    {split}: {root / task}.parquet\n"
    )


def environment(root: Path) -> dict[str, str]:
    """Variables of a process in which the package's entry point is installed, whatever is installed here."""
    info = root / "site" / "uae_plugin-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: uae-plugin\nVersion: 1\n")
    group = ast.literal_eval(GROUP.removeprefix("[project.entry-points.").removesuffix("]"))
    (info / "entry_points.txt").write_text(f"[{group}]\n{' = '.join(entry_point())}\n")
    path = os.pathsep.join([str(root / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(root / "hf")}


def evaluate(root: Path, model: Path, tasks: str, *words: str, variables: dict[str, str]) -> dict[str, Any]:
    """The content of the result file."""
    pixels = f"min_pixels=256,max_pixels={SIDE * SIDE}"
    words = (
        "--model", "uae", "--model_args", f"pretrained={model},device_map=cpu,{pixels}", "--device", "cpu",
        "--tasks", tasks, "--include_path", str(root), "--output_path", str(root / "out"), *words,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", RUN, *words], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (found,) = (root / "out").rglob("*_results.json")
    return json.loads(found.rename(root / f"{tasks}.json").read_text())


@pytest.fixture
def said(pipe: UAEPipeline) -> dict[int, str]:
    """What the captioner itself says to three pictures, in the precision lmms-eval loads it in."""
    pipe.captioner.to(torch.bfloat16)
    pipe.processor.image_processor.size = {"shortest_edge": 256, "longest_edge": SIDE * SIDE}
    captions: dict[int, str] = {}
    for n in range(20):
        image = picture(n, SIDE, SIDE)
        (caption,) = pipe.caption(image, prompt="<image>read it", system="", max_new_tokens=128)
        if caption and len(captions) < 3:
            captions[n] = caption
    return captions


def test_lmms_eval_runs_the_captioner_and_the_guard_reads_what_it_writes(
    model_folder: Path,
    said: dict[int, str],
    tmp_path: Path,
) -> None:
    write_task(tmp_path, "uae_ocrbench", "test", ocr_rows(said))
    write_task(tmp_path, "uae_mmt_val", "val", mmt_rows())
    write_task(tmp_path, "uae_pope", "test", pope_rows())
    (tmp_path / "local.yaml").write_text(
        "group: local\ntask:\n  - local_uae_ocrbench\n  - local_uae_mmt_val\n  - local_uae_pope\n"
    )
    variables = environment(tmp_path)
    content = evaluate(tmp_path, model_folder, "local", variables=variables)
    results = content["results"]
    assert content["config"]["model_backend"] == "lmms_eval.models.chat.qwen2_5_vl.Qwen2_5_VL (chat)"
    assert results["local_uae_ocrbench"]["accuracy,none"] == pytest.approx(2 / 3)
    assert results["local_uae_ocrbench"]["recognition,none"] == 0.5
    assert results["local_uae_ocrbench"]["document_vqa,none"] == 1.0
    # Its words are those of scenes: no letter, no yes, no no.
    assert results["local_uae_mmt_val"]["unanswered,none"] == results["local_uae_pope"]["unanswered,none"] == 1.0
    assert {"ocr,none", "counting,none"} <= results["local_uae_mmt_val"].keys()
    assert "localization,none" not in results["local_uae_mmt_val"] and results["local_uae_pope"]["f1,none"] == 0.0
    assert content["n-samples"]["local_uae_mmt_val"] == {"original": 3, "effective": 3}
    lost = json.loads(json.dumps(content))
    lost["results"]["local_uae_ocrbench"]["accuracy,none"] = 1 / 3
    (tmp_path / "lost.json").write_text(json.dumps(lost))
    guard = ["bench", "guard", str(tmp_path / "local.json"), "--watch", "local_uae_ocrbench:accuracy"]
    assert main([*guard, "--max-drop", "33", str(tmp_path / "lost.json")]) == 1
    assert main([*guard, "--max-drop", "34", str(tmp_path / "lost.json")]) == 0


def test_lmms_eval_resolves_the_groups() -> None:
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS))
    assert {"uae_understanding", "uae_ocr_guard"} <= set(manager.all_groups)
    assert {"uae_mmt_val", "uae_pope", "uae_ocrbench", "mmmu_val"} <= set(manager.all_subtasks)
