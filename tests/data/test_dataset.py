# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn, get_dataset_class
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_uae.compat import ensure_torchvision
from verl_uae.data.dataset import UAEDataset
from verl_uae.data.images import decode_image, image_digest
from verl_uae.data.rows import CheckSettings
from verl_uae.data.schema import make_row, row_schema
from verl_uae.errors import ConfigError, DataError
from verl_uae.scenes.tokenizer import build_processor

PROMPT = [{"role": "user", "content": "<image>describe"}]


@pytest.fixture(scope="module")
def processor() -> Any:
    ensure_torchvision()
    return build_processor()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def rows(make_picture: Callable, make_bytes: Callable) -> list[dict]:
    sizes = [(32, 32), (48, 32), (64, 96), (40, 40)]
    return [
        make_row(make_bytes(make_picture(*size, seed)), index=seed, split="train", sha256="", prompt=PROMPT)
        for seed, size in enumerate(sizes)
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_rows(rows: list[dict], name: str = "train.parquet") -> Path:
        pq.write_table(pa.Table.from_pylist(rows, schema=row_schema()), tmp_path / name)
        return tmp_path / name

    return write_rows


def load(files: Path | list[Path], processor: Any, max_samples: int = -1, **options: Any) -> UAEDataset:
    config = OmegaConf.create({"max_prompt_length": 64, "filter_overlong_prompts": False, **options})
    paths = [str(file) for file in files] if isinstance(files, list) else str(files)
    tokenizer = getattr(processor, "tokenizer", None)
    return UAEDataset(paths, tokenizer, config, processor, max_samples)


def test_verl_finds_the_class() -> None:
    custom = {"custom_cls": {"path": "pkg://verl_uae.data.dataset", "name": "UAEDataset"}}
    assert get_dataset_class(OmegaConf.create(custom)) is UAEDataset


def test_rollout_sees_the_same_prompt_as_with_verls_dataset(rows: list[dict], write: Callable, processor: Any) -> None:
    file = write(rows)
    ours = load(file, processor)
    config = OmegaConf.create({"filter_overlong_prompts": False})
    theirs = RLHFDataset(str(file), processor.tokenizer, config, processor)
    assert len(ours) == len(theirs) == len(rows)
    for mine, stock in zip(map(ours.__getitem__, range(4)), map(theirs.__getitem__, range(4)), strict=True):
        assert set(mine) == set(stock)
        built = []
        for dataset, row in ((UAEDataset, mine), (RLHFDataset, stock)):
            images, videos, audios = asyncio.run(
                dataset.process_multi_modal_info(row["raw_prompt"], image_patch_size=8, config=config)
            )
            assert videos is None and audios is None
            text = processor.apply_chat_template(row["raw_prompt"], tokenize=False, add_generation_prompt=True)
            built.append(build_multimodal_processor_inputs(processor, text=[text], images=images))
        assert built[0]["input_ids"].tolist() == built[1]["input_ids"].tolist()
        assert built[0]["pixel_values"].equal(built[1]["pixel_values"])
        assert mine["index"] == stock["index"] and mine["reward_model"] == stock["reward_model"]


def test_row_carries_pictures_once_and_no_encoded_bytes(rows: list[dict], write: Callable, processor: Any) -> None:
    dataset = load(write(rows), processor)
    row = dataset[2]
    (item, text) = row["raw_prompt"][0]["content"]
    assert set(item) == {"type", "image"} and text == {"type": "text", "text": "describe"}
    assert type(item["image"]) is Image.Image and item["image"].size == (64, 96) and item["image"].mode == "RGB"
    assert row["prompt"] == PROMPT and "images" not in row
    assert row["extra_info"]["sha256"] == image_digest(item["image"])
    batch = collate_fn([dataset[item] for item in range(len(dataset))])
    assert batch["raw_prompt"].shape == (4,) and batch["dummy_tensor"].shape == (4, 1)


def test_the_digest_is_that_of_the_pixels_whatever_the_file_says(
    rows: list[dict], write: Callable, processor: Any
) -> None:
    for row in rows:
        row["extra_info"]["sha256"] = "of the encoded bytes, and of all rows the same"
    dataset = load(write(rows), processor)
    digests = [dataset[number]["extra_info"]["sha256"] for number in range(len(dataset))]
    assert digests == [image_digest(decode_image(row["images"][0])) for row in rows] and len(set(digests)) == len(rows)


def _spoil(rows: list[dict], make_bytes: Callable, make_picture: Callable) -> dict[int, str]:
    """Turn rows 1.. of eight into bad ones; returns row -> a piece of its reason."""
    spoilt = [json.loads(json.dumps({**row, "images": None})) | {"images": [dict(row["images"][0])]} for row in rows]
    spoilt += [dict(row, images=[dict(row["images"][0])]) for row in map(dict, spoilt)]
    spoilt[1]["images"][0]["bytes"] = rows[1]["images"][0]["bytes"][:100]
    spoilt[2]["images"][0]["bytes"] = make_bytes(make_picture(), "GIF")
    spoilt[3]["images"][0] = {"bytes": None, "path": "../elsewhere.png"}
    spoilt[4]["images"] = []
    spoilt[5]["prompt"] = [{"role": "user", "content": "describe"}]
    spoilt[6]["prompt"] = [{"role": "user", "content": "<image>describe <|image_pad|>"}]
    rows[:] = spoilt
    return {
        1: "images: ",
        2: "format GIF",
        3: "leaves its folder",
        4: "column images: must be a list with at least one picture",
        5: "column prompt: 1 pictures but the marks []",
        6: "special token <|image_pad|>",
    }


def test_bad_rows_are_left_out_counted_and_listed(
    rows: list[dict], write: Callable, processor: Any, make_bytes: Callable, make_picture: Callable, tmp_path, caplog
) -> None:
    reasons = _spoil(rows, make_bytes, make_picture)
    file = write(rows)
    with caplog.at_level(logging.WARNING, "verl_uae.data.dataset"):
        dataset = load(file, processor, uae_max_bad_share=0.75, uae_quarantine_dir=str(tmp_path / "run"))
    assert len(dataset) == 2 and [dataset[item]["index"] for item in range(2)] == [0, 3]
    assert "6 of 8 rows are bad" in caplog.text and "train.parquet, row 1: column images" in caplog.text
    (listed,) = (tmp_path / "run").iterdir()
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [(entry["file"], entry["row"]) for entry in entries] == [(str(file), row) for row in reasons]
    for entry in entries:
        assert reasons[entry["row"]] in entry["reason"]


def test_too_many_bad_rows_stop_the_run(
    rows: list[dict], write: Callable, processor: Any, make_bytes: Callable, make_picture: Callable
) -> None:
    _spoil(rows, make_bytes, make_picture)
    with pytest.raises(DataError, match=r"train\.parquet: 6 of 8 rows are bad, more than data\.uae_max_bad_share=0\.1"):
        load(write(rows), processor)
    for row in rows:
        row["images"] = []
    with pytest.raises(DataError, match="no usable row: 8 rows, 8 bad"):
        load(write(rows), processor, uae_max_bad_share=1.0)


def test_rows_of_several_files_are_named_by_file(rows: list[dict], write: Callable, processor: Any) -> None:
    first = write(rows, "a.parquet")
    broken = [dict(row) for row in rows]
    broken[2] = {**rows[2], "images": [{"bytes": b"GIF89a", "path": None}]}
    second = write(broken, "b.parquet")
    with pytest.raises(DataError, match=r"first: \S*b\.parquet, row 2: column images: format GIF"):
        load([first, second], processor, uae_max_bad_share=0.0)
    assert len(load([first, second], processor, uae_max_bad_share=0.2)) == 7


@pytest.mark.parametrize("mode", ["full", "header", "off", False])
def test_verify_modes(mode: str | bool, rows: list[dict], write: Callable, processor: Any) -> None:
    whole = rows[1]["images"][0]["bytes"]
    rows[1]["images"] = [{"bytes": whole[: len(whole) // 2], "path": None}]  # good header, missing pixels
    rows[2]["images"] = [{"bytes": b"<html>", "path": None}]
    dataset = load(write(rows), processor, uae_verify_images=mode, uae_max_bad_share=0.5)
    assert len(dataset) == {"full": 2, "header": 3}.get(mode, 4)
    if mode != "full":
        with pytest.raises(DataError, match=r"train\.parquet, row 1: OSError"):
            dataset[1]


def test_prompt_length_is_exact(rows: list[dict], write: Callable) -> None:
    ensure_torchvision()
    processor = build_processor()
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 10**6}
    # Twelve tokens with a 32 x 32 picture, four of them image tokens; one image token stands for 16 x 16 pixels.
    lengths = [8 + 4, 8 + 3 * 2, 8 + 4 * 6, 8 + 2 * 2]
    file = write(rows)
    assert len(load(file, processor, max_prompt_length=max(lengths))) == 4
    for limit in (14, 13, 12):
        kept = [index for index, length in enumerate(lengths) if length <= limit]
        dataset = load(file, processor, max_prompt_length=limit, filter_overlong_prompts=True)
        assert [dataset[item]["index"] for item in range(len(dataset))] == kept
    # verl's own filter agrees.
    config = OmegaConf.create(
        {"max_prompt_length": 13, "filter_overlong_prompts": True, "filter_overlong_prompts_workers": None}
    )
    assert [row["index"] for row in RLHFDataset(str(file), processor.tokenizer, config, processor)] == [0, 3]


@pytest.mark.parametrize("truncation", ["error", "left", "right", "middle"])
def test_no_picture_is_ever_cut(truncation: str, rows: list[dict], write: Callable, processor: Any) -> None:
    first = r" \(\S*, row 0: prompt of 12 tokens, data\.max_prompt_length is 9\)"
    remedy = r"; raise data\.max_prompt_length to 12 or use smaller pictures"
    message = f"4 of 4 rows are too long{first}{remedy}, or set data.filter_overlong_prompts=true"
    with pytest.raises(DataError, match=message):
        load(write(rows), processor, max_prompt_length=9, truncation=truncation)
    with pytest.raises(DataError, match=f"no usable row: 4 rows, 0 bad, 4 too long{first}{remedy}$"):
        load(write(rows), processor, max_prompt_length=9, filter_overlong_prompts=True)


def test_max_samples_picks_the_rows_verl_picks(rows: list[dict], write: Callable, processor: Any) -> None:
    file = write(rows)
    options = {"shuffle": True, "seed": 3, "filter_overlong_prompts": False}
    stock = RLHFDataset(str(file), processor.tokenizer, OmegaConf.create(options), processor, 2)
    ours = load(file, processor, 2, **options)
    assert [row["index"] for row in map(ours.__getitem__, range(2))] == [stock[item]["index"] for item in range(2)]
    plain = load(file, processor, 2)
    assert [plain[item]["index"] for item in range(2)] == [0, 1]


def test_pictures_decoded_by_datasets_are_kept_out(rows: list[dict], tmp_path: Path, processor: Any) -> None:
    """A file with the Image feature would be opened by `datasets` itself, in any format."""
    feature = datasets.Features.from_arrow_schema(row_schema())
    feature["images"] = datasets.List(datasets.Image())
    with Image.open(io.BytesIO(rows[3]["images"][0]["bytes"])) as img:
        img.save(bitmap := io.BytesIO(), "BMP")
    rows[2]["images"] = [{"bytes": b"<html>", "path": None}]
    rows[3]["images"] = [{"bytes": bitmap.getvalue(), "path": None}]
    file = tmp_path / "hub.parquet"
    datasets.Dataset.from_list(rows, features=feature).to_parquet(file)
    assert isinstance(datasets.load_dataset("parquet", data_files=str(file))["train"][3]["images"][0], Image.Image)
    with pytest.raises(DataError, match=r"2 of 4 rows are bad.* row 2: column images: format markup"):
        load(file, processor)
    assert len(load(file, processor, uae_max_bad_share=0.5)) == 2


def test_pictures_by_path_stay_in_their_folder(
    rows: list[dict], write: Callable, processor: Any, make_picture: Callable, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    make_picture(32, 32, 7).save(tmp_path / "sub" / "x.png")
    rows[1]["images"] = [{"bytes": None, "path": "sub/x.png"}]
    file = write(rows)
    picture = load(file, processor)[1]["raw_prompt"][0]["content"][0]["image"]
    assert image_digest(picture) == image_digest(make_picture(32, 32, 7))
    with pytest.raises(DataError, match="row 1: column images: FileNotFoundError"):
        load(file, processor, uae_image_root=str(tmp_path / "sub"))


def test_size_options_of_a_picture_reach_qwen_and_are_bounded(rows: list[dict], tmp_path: Path, processor: Any) -> None:
    def dataset(**options: int) -> UAEDataset:
        cells = [[{**row["images"][0], **options}] for row in rows]
        table = pa.Table.from_pylist([{**row, "images": cell} for row, cell in zip(rows, cells, strict=True)])
        pq.write_table(table, tmp_path / "sized.parquet")
        return load(tmp_path / "sized.parquet", processor)

    item = dataset(max_pixels=1024)[2]["raw_prompt"][0]["content"][0]
    assert item["max_pixels"] == 1024 and set(item) == {"type", "image", "max_pixels"}
    (image,), _, _ = UAEDataset._process_multi_modal_info([{"content": [item]}], 8, None)
    assert image.width * image.height <= 1024
    with pytest.raises(DataError, match="enlarged to 1000000000 pixels"):
        dataset(min_pixels=10**9)
    with pytest.raises(DataError, match="go together"):
        dataset(resized_width=64)
    with pytest.raises(DataError, match="max_pixels must be a positive integer"):
        dataset(max_pixels=-1)


def test_limits_are_settings(rows: list[dict], write: Callable, processor: Any) -> None:
    with pytest.raises(DataError, match="row 2: column images: 64 x 96 pixels, limit 5000"):
        load(write(rows), processor, uae_image_limits={"max_pixels": 5000})


def test_works_through_a_data_loader_and_after_resume(rows: list[dict], write: Callable, processor: Any) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    dataset = load(write(rows), processor)
    loader = StatefulDataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate_fn)
    indices = [index for batch in loader for index in batch["index"]]
    assert indices == [0, 1, 2, 3]
    dataset.resume_dataset_state()
    assert len(dataset) == 4 and dataset[3]["index"] == 3


def test_split_keeps_the_class_and_the_origin(rows: list[dict], write: Callable, processor: Any) -> None:
    halves = load(write(rows), processor).split(2)
    assert [[half[item]["index"] for item in range(2)] for half in halves] == [[0, 1], [2, 3]]
    assert all(type(half) is UAEDataset for half in halves)
    with pytest.raises(ValueError, match="num_splits"):
        halves[0].split(3)


def test_without_processor_rows_can_be_checked_but_not_used(rows: list[dict], write: Callable) -> None:
    dataset = load(write(rows), None)
    assert len(dataset) == 4
    with pytest.raises(ConfigError, match=r"actor_rollout_ref\.model\.path"):
        dataset[0]


def test_unreadable_files_are_named(tmp_path: Path, rows: list[dict], write: Callable, processor: Any) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "x.csv").write_text("a,b")
    for name, reason in (("bad.parquet", "cannot be read"), ("none.parquet", "cannot be read"), ("x.csv", "must be")):
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            load(tmp_path / name, processor)
    with pytest.raises(DataError, match=r"train\.parquet: column pictures is missing"):
        load(write(rows), processor, image_key="pictures")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uae_verify_images", "sometimes"),
        ("uae_max_bad_share", 1.5),
        ("uae_max_bad_share", "x"),
        ("uae_max_bad_share", [0.1]),
        ("uae_threads", 0),
        ("uae_threads", "2"),
        ("uae_log_first", 2.5),
        ("uae_verify_image", "full"),
        ("uae_image_limits", {"max_pixel": 3}),
        ("uae_image_limits", {"max_pixels": 10**12}),
    ],
)
def test_impossible_settings_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"data.{key}"):
        CheckSettings.from_config(OmegaConf.create({"prompt_key": "prompt", key: value}))
    assert CheckSettings.from_config(OmegaConf.create({"uae_threads": None, "seed": 1})) == CheckSettings()


def test_hostile_pictures_cost_their_rows_only(
    hostile_inputs: list, make_picture: Callable, make_bytes: Callable, write: Callable, tmp_path: Path
) -> None:
    inputs = [entry for entry in hostile_inputs if len(entry[1]) < 2**20]
    rows = [
        make_row(data, index=index, split="train", sha256="", prompt=PROMPT)
        for index, (_, data, _) in enumerate(inputs)
    ]
    dataset = load(write(rows), None, uae_max_bad_share=1.0, uae_quarantine_dir=str(tmp_path / "q"))
    (listed,) = (tmp_path / "q").iterdir()
    bad = {json.loads(line)["row"] for line in listed.read_text().splitlines()}
    assert {index for index, (_, _, must_refuse) in enumerate(inputs) if must_refuse} <= bad
    kept = {row["uae_row"] for chunk in dataset.dataframe.chunks() for row in chunk}
    assert len(dataset) + len(bad) == len(inputs) and kept == set(range(len(inputs))) - bad
