# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from verl_uae.data.images import image_digest
from verl_uae.data.schema import row_problem, row_schema
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.grammar import caption_facts
from verl_uae.scenes.render import all_scenes, render


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("scenes"), train=40, val=10, seed=5)


@pytest.mark.parametrize(("split", "rows"), [("train", 40), ("val", 10)])
def test_rows_hold_what_they_claim(files, split, rows):
    assert set(row_schema().names) <= set(pq.read_schema(files[split]).names)
    table = pq.read_table(files[split]).to_pylist()
    assert [row["extra_info"]["index"] for row in table] == list(range(rows))
    scenes = {scene.to_json(): scene for scene in all_scenes()}
    for row in table:
        assert row_problem(row) is None
        assert row["data_source"] == "uae_scenes"
        assert row["prompt"] == [{"role": "user", "content": "<image>describe"}]
        scene = scenes[row["reward_model"]["ground_truth"]]
        assert scene.split == split == row["extra_info"]["split"]
        image = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        assert image.format == "PNG" and (render(scene) == image).all()
        assert row["extra_info"]["sha256"] == image_digest(image.convert("RGB"))
        facts = caption_facts(scene, row["extra_info"]["caption"])
        assert facts.full_detail and facts.true


def test_rows_depend_on_the_seed_and_on_nothing_else(files, tmp_path):
    tables = [
        pq.read_table(write_dataset(tmp_path / str(i), train=40, val=10, seed=seed)["train"])
        for i, seed in enumerate((5, 6))
    ]
    assert tables[0].equals(pq.read_table(files["train"])) and not tables[1].equals(tables[0])


def test_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="val must be at least 1"):
        write_dataset(tmp_path, train=1, val=0)
    assert not list(tmp_path.iterdir())
