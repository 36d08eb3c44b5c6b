# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Workers of agent loops for captions against verl's own: what is written, and in how many requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, agent_loop_tq
from verl.workers.rollout.replica import TokenOutput

from tests.captioners import tiny
from verl_uae.chain.records import CAPTION_FIELD, Envelope
from verl_uae.data.dataset import UAEDataset
from verl_uae.engines.model_config import CaptionerConfig
from verl_uae.stages.g4u import caption_loops
from verl_uae.stages.g4u.agent_loop import INPUTS, CaptionAgentLoop, PromptCache
from verl_uae.stages.g4u.caption_loops import CaptionAgentLoopWorker, QueueWriter
from verl_uae.stages.g4u.captioning import CAPTION_SLACK_S, SupervisedCaptions

VerlsWorker = AgentLoopWorkerTQ.__ray_actor_class__


class Queue:
    """Stands for the TransferQueue: keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.refused: set[str] = set()

    async def async_kv_batch_put(self, **request: Any) -> None:
        self.requests.append(request)
        await asyncio.sleep(0.01)
        if self.refused.intersection(request["keys"]):
            raise ArithmeticError("mine")

    async def async_kv_put(self, *, key: str, tag: dict[str, Any], **request: Any) -> None:
        await self.async_kv_batch_put(keys=[key], tags=[tag], fields=None, **request)

    def rows(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Fields and tag of every row by key."""
        found = {}
        for request in self.requests:
            fields = {} if request["fields"] is None else request["fields"]
            columns = {name: _cells(column) for name, column in fields.items()}
            for place, (key, tag) in enumerate(zip(request["keys"], request["tags"], strict=True)):
                found[key] = ({name: column[place] for name, column in columns.items()}, tag)
        return found


def _cells(column: Any) -> list[Any]:
    if isinstance(column, torch.Tensor):
        return list(column.unbind(0))
    return [getattr(cell, "data", cell) for cell in column]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(caption_loops, "tq", made)
    return made


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, Envelope):
        return bool(one.content == other.content)
    return bool(one == other)


# ------------------------------------------------------------ rows that are written together


def tags(count: int, *, start: int = 0) -> list[tuple[str, str, None, dict[str, Any]]]:
    return [("train", f"k{number}", None, {"number": number}) for number in range(start, start + count)]


def test_what_comes_while_a_request_is_on_its_way_goes_with_the_next(queue: Queue) -> None:
    async def main() -> None:
        writer = QueueWriter(max_rows=4)
        first = asyncio.ensure_future(writer.put(*tags(1)[0]))
        await asyncio.sleep(0.005)
        assert [request["keys"] for request in queue.requests] == [["k0"]], "alone it is written at once"
        await asyncio.gather(first, *(writer.put(*row) for row in tags(6, start=1)))

    asyncio.run(main())
    assert [request["keys"] for request in queue.requests] == [["k0"], ["k1", "k2", "k3", "k4"], ["k5", "k6"]]
    assert [request["tags"] for request in queue.requests][2] == [{"number": 5}, {"number": 6}]


def test_rows_of_different_fields_and_partitions_are_not_mixed(queue: Queue) -> None:
    a, b = {"x": torch.arange(3)}, {"x": torch.arange(2), "y": "text"}

    async def main() -> None:
        writer = QueueWriter()
        rows = [("train", "a0", a), ("train", "b0", b), ("val", "a1", a), ("train", "a2", {"x": torch.arange(5)})]
        await asyncio.gather(*(writer.put(partition, key, fields, {}) for partition, key, fields in rows))

    asyncio.run(main())
    places = [(request["partition_id"], request["keys"]) for request in queue.requests]
    assert places == [("train", ["a0", "a2"]), ("train", ["b0"]), ("val", ["a1"])]
    found = queue.rows()
    assert torch.equal(found["a2"][0]["x"], torch.arange(5)) and torch.equal(found["a0"][0]["x"], torch.arange(3))
    assert found["b0"][0]["y"] == "text" and isinstance(queue.requests[0]["fields"], TensorDict)


def test_a_request_that_fails_fails_its_rows_and_no_others(queue: Queue) -> None:
    queue.refused = {"k1"}

    async def main() -> list[Any]:
        writer = QueueWriter(max_rows=2)
        done = await asyncio.gather(*(writer.put(*row) for row in tags(4)), return_exceptions=True)
        cancelled = asyncio.ensure_future(writer.put(*tags(1, start=7)[0]))
        await asyncio.sleep(0)
        cancelled.cancel()
        await writer.put(*tags(1, start=8)[0])
        return done

    done = asyncio.run(main())
    assert [type(answer) for answer in done] == [ArithmeticError, ArithmeticError, type(None), type(None)]
    assert "k8" in queue.rows()


# ------------------------------------------------------------ against verl's worker


def worker(kind: Any, folder: Path) -> Any:
    """A worker without Ray and servers: only what the methods under test read."""
    made = object.__new__(kind)
    model = CaptionerConfig(path=str(folder))
    made.processor, made.tokenizer = model.processor, model.tokenizer
    made.mm_processor_kwargs, made.reward_loop_worker_handles, made.distillation_enabled = {}, None, False
    rollout = {"n": 2, "val_kwargs": {"n": 1}}
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
    if kind is CaptionAgentLoopWorker:
        made.prepare()
    return made


class Server:
    """Stands for verl's client of caption servers: answers with the captions that it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    async def generate(self, *, sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        if not sampling_params["text"]:
            raise ArithmeticError("a caption that fails has other fields")
        ids = [*self.tokenizer(sampling_params["text"])["input_ids"], self.tokenizer.eos_token_id]
        steps = {"global_steps": 4, "min_global_steps": 3, "max_global_steps": 4}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields=steps)


def agent_loop(made: Any) -> CaptionAgentLoop:
    rollout = {
        "name": "hf",
        "prompt_length": 256,
        "response_length": 16,
        "calculate_log_probs": True,
        "full_determinism": False,
    }
    uae = {"seed": 7, "rollout": {"timeout_s": 60.0, "seeded": True}}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "uae": uae})
    return CaptionAgentLoop(
        DictConfigWrap(config),
        Server(made.tokenizer),  # type: ignore[arg-type]
        made.tokenizer,
        made.processor,
        UAEDataset,
        DictConfigWrap(OmegaConf.create({})),
        hf_model_type=made.family,
    )


@pytest.mark.parametrize("family", tiny.NAMES)
def test_captions_of_a_prompt_are_written_as_verl_writes_them(
    family: str, tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(family, tmp_path)
    ours, verls = worker(CaptionAgentLoopWorker, folder), worker(VerlsWorker, folder)
    ours.family = family
    monkeypatch.setattr(CaptionAgentLoop, "_prompts", PromptCache(8))
    images = [Image.new("RGB", (48, 32), "red"), Image.effect_noise((64, 64), 90.0).convert("RGB")]
    written = [
        (0, 0, "a red circle"),
        (0, 1, "a"),
        (1, 0, "a blue square and a red circle"),
        (0, 2, "a blue circle"),
        (1, 1, ""),
    ]
    process, calls = type(ours.processor).__call__, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return process(self, *args, **kwargs)

    monkeypatch.setattr(type(ours.processor), "__call__", counted)

    async def write(made: Any, loop: CaptionAgentLoop) -> None:
        runs = []
        for number, member, text in written:
            content = [{"type": "image", "image": images[number]}, {"type": "text", "text": "describe"}]
            row = {"uid": f"u{number}", "session_id": member, "global_steps": 5}
            row["raw_prompt"] = [{"role": "user", "content": content}]
            output = await loop.run({"text": text}, **row)
            assert output.extra_fields[CAPTION_FIELD].content.text == text
            output.metrics.generate_sequences = 1.5
            if made is verls:
                assert output.multi_modal_data is not None
                output.multi_modal_data.pop(INPUTS, None)
            runs.append((output, row))
        await asyncio.gather(*(made._agent_loop_postprocess(output, False, **row) for output, row in runs))

    reference = Queue()

    async def main() -> None:
        # The loop belongs to the event loop in which it is made.
        loop = agent_loop(ours)
        await write(ours, loop)
        assert len(calls) == 2 + 1, "once per prompt, and for what has none"
        monkeypatch.setattr(agent_loop_tq, "tq", reference)
        await write(verls, loop)
        assert len(calls) == 3 + len(written), "verl does so for every caption"

    asyncio.run(main())
    assert (len(queue.requests), len(reference.requests)) == (2, 5), "what was ready together went together"
    found, expected = queue.rows(), reference.rows()
    assert sorted(found) == sorted(expected)
    for key, (fields, tag) in expected.items():
        assert tag == found[key][1]
        assert sorted(fields) == sorted(found[key][0])
        assert [name for name in fields if not equal(fields[name], found[key][0][name])] == [], key


def test_prompts_that_differ_in_a_further_picture_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker(CaptionAgentLoopWorker, tiny.save("qwen2_5_vl", tmp_path))
    made.family = "qwen2_5_vl"
    monkeypatch.setattr(CaptionAgentLoop, "_prompts", PromptCache(8))

    async def pixels(loop: CaptionAgentLoop, second: str) -> torch.Tensor:
        pictures = [{"type": "image", "image": Image.new("RGB", (48, 32), colour)} for colour in ("red", second)]
        prompt = [{"role": "user", "content": [*pictures, {"type": "text", "text": "describe"}]}]
        row = {"uid": second, "session_id": 0, "global_steps": 5, "raw_prompt": prompt}
        output = await loop.run({"text": "a red circle"}, **row)
        assert output.multi_modal_data is not None
        return output.multi_modal_data[INPUTS].made["pixel_values"]

    async def main() -> None:
        loop = agent_loop(made)
        blue, green = await pixels(loop, "blue"), await pixels(loop, "green")
        half = len(blue) // 2
        assert torch.equal(blue[:half], green[:half]) and not torch.equal(blue[half:], green[half:])

    asyncio.run(main())


@pytest.mark.parametrize(("validate", "row", "members", "greedy"), [
    (False, {}, 2, False),
    (True, {}, 1, False),
    (False, {"__rollout_n__": 3, "__do_sample__": False}, 3, True),
])  # fmt: skip
def test_the_end_of_a_prompt_is_told_after_all_its_captions(
    validate: bool, row: dict[str, Any], members: int, greedy: bool, tmp_path: Path, queue: Queue
) -> None:
    made = worker(CaptionAgentLoopWorker, tiny.save("qwen2_5_vl", tmp_path))
    asked: list[tuple[int, dict[str, Any]]] = []

    async def session(params: dict[str, Any], *, session_id: int, uid: str, **_: Any) -> None:
        asked.append((session_id, params))
        await made._writer.put("val" if validate else "train", f"{uid}_{session_id}_0", None, {})
        if uid == "broken" and session_id == 0:
            raise ArithmeticError("mine")

    made._run_agent_loop = session

    async def main(uid: str) -> None:
        await made._run_prompt({"uid": uid, **row}, {"temperature": 0.7}, {"validate": validate})

    asyncio.run(main("u"))
    expected = {"top_p": 1.0, "top_k": -1, "temperature": 0} if greedy else {"temperature": 0.7}
    assert asked == [(member, expected) for member in range(members)]
    assert queue.requests[-1]["keys"] == ["u"] and queue.requests[-1]["tags"] == [{"status": "finished"}]
    assert {request["partition_id"] for request in queue.requests} == {"val" if validate else "train"}
    asyncio.run(main("broken"))
    assert queue.requests[-1]["keys"] == ["broken"] and queue.requests[-1]["tags"] == [{"status": "failure"}]
    assert len(queue.rows()) == 2 * (members + 1), "one that fails does not keep the others from being written"


def test_settled_is_when_nothing_is_written(tmp_path: Path) -> None:
    made = object.__new__(CaptionAgentLoopWorker)
    made.background_tasks = set()
    done: list[str] = []

    async def write(name: str, seconds: float, then: Any = None) -> None:
        await asyncio.sleep(seconds)
        done.append(name)
        if then is not None:
            start(*then)

    def start(*args: Any) -> None:
        task = asyncio.get_running_loop().create_task(write(*args))
        made.background_tasks.add(task)
        task.add_done_callback(made.background_tasks.discard)

    async def main() -> None:
        await made.settle()
        start("a", 0.02, ("b", 0.02))
        await made.settle()

    asyncio.run(main())
    assert done == ["a", "b"]


def test_the_queue_is_asked_when_the_captions_are_written_and_both_waits_are_supervised() -> None:
    done: list[Any] = []

    @contextlib.contextmanager
    def phase(doing: str, limit_s: float, key: str) -> Iterator[None]:
        done.append((doing, limit_s))
        yield
        done.append("over")

    buffer = SimpleNamespace(sample=lambda **asked: done.append(asked) or "batch")
    settings = OmegaConf.create({"decoder": {"schedule": "phased"}, "rollout": {"timeout_s": 600.0}})
    captions = SupervisedCaptions(buffer, settings, lambda: SimpleNamespace(phase=phase), done.append)  # type: ignore[arg-type]
    assert captions.sample(partition_id="train") == "batch"
    assert done == [("the captions", 600.0 + CAPTION_SLACK_S), 600.0, {"partition_id": "train"}, "over"]
