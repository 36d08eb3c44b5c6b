# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import ray
from PIL import Image

from tests.samples import caption, scored
from verl_uae.chain.records import Draw, Outcome, Sample
from verl_uae.errors import DecoderError
from verl_uae.stages.g4u.stream import StreamClient, StreamQueue, start_dispatcher

#: Minutes: many processes of Ray are started, each with all that a run imports.
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


@ray.remote
class Decoder:
    """Answers with the length of the caption, and remembers the size of every micro-batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def redraw(self, draws: list[Draw]) -> list[Outcome]:
        if any(draw.sample.caption.text == "die" for draw in draws):
            import os

            os._exit(1)
        if any(draw.sample.caption.text == "raise" for draw in draws):
            raise ArithmeticError("mine")
        if any(draw.sample.caption.text == "hang" for draw in draws):
            time.sleep(8)
        if any(draw.sample.caption.text == "unsent" for draw in draws):
            raise DecoderError(0, "has not got the weights")
        self.sizes.append(len(draws))
        time.sleep(0.02 * len(draws))
        return [scored(float(len(draw.sample.caption.text))) for draw in draws]

    def ready(self) -> bool:
        return True

    def seen(self) -> list[int]:
        return self.sizes

    def forget(self) -> None:
        self.sizes = []


def start(*names: str, restarts: int = 0) -> list[str]:
    options = {"num_cpus": 0.1, "max_restarts": restarts}
    handles = [Decoder.options(name=name, **options).remote() for name in names]  # type: ignore[attr-defined]
    # Kept alive by their handles.
    HANDLES.extend(handles)
    ray.get([handle.seen.remote() for handle in handles])
    return list(names)


HANDLES: list[Any] = []


@pytest.fixture(scope="module")
def pair(ray_cluster: None) -> list[str]:
    return start("decoder_0", "decoder_1")


@pytest.fixture
def decoders(pair: list[str]) -> list[str]:
    """Two decoders that have not seen anything."""
    ray.get([ray.get_actor(name).forget.remote() for name in pair])
    return pair


def ask(text: str) -> Draw:
    return Draw(Sample(Image.new("RGB", (4, 4)), caption(text)), ("k",))


def sizes(names: list[str]) -> list[list[int]]:
    return ray.get([ray.get_actor(name).seen.remote() for name in names])


async def score_all(names: list[str], captions: list[str], **settings: Any) -> list[Outcome]:
    client = StreamQueue(names, **settings)
    return list(await asyncio.gather(*(client.score(ask(text)) for text in captions)))


def test_full_batches_go_at_once_and_answers_find_their_caption(decoders: list[str]) -> None:
    captions = ["x" * n for n in range(1, 13)]
    started = time.monotonic()
    outcomes = asyncio.run(score_all(decoders[:1], captions, max_batch=3, max_wait_s=60.0, timeout_s=60.0))
    assert time.monotonic() - started < 30, "no batch waited"
    assert [entry.record.value for entry in outcomes] == [float(n) for n in range(1, 13)]
    assert sizes(decoders) == [[3, 3, 3, 3], []]


def test_a_full_batch_is_shared_among_the_idle(decoders: list[str]) -> None:
    outcomes = asyncio.run(
        score_all(decoders, ["a", "bb", "ccc", "dddd"], max_batch=4, max_wait_s=60.0, timeout_s=60.0)
    )
    assert [entry.record.value for entry in outcomes] == [1.0, 2.0, 3.0, 4.0]
    assert sizes(decoders) == [[2], [2]]


def test_the_rest_goes_after_the_wait(decoders: list[str]) -> None:
    outcomes = asyncio.run(score_all(decoders, ["a", "bb"], max_batch=8, max_wait_s=0.05, timeout_s=60.0))
    assert [entry.record.value for entry in outcomes] == [1.0, 2.0]
    assert sizes(decoders) == [[1], [1]]


def test_a_fault_costs_its_micro_batch_and_is_an_outcome(decoders: list[str]) -> None:
    outcomes = asyncio.run(
        score_all(decoders[:1], ["a", "b", "raise", "d"], max_batch=2, max_wait_s=60.0, timeout_s=60.0)
    )
    assert [str(entry.record.status) for entry in outcomes] == ["ok", "ok", "error", "error"]
    assert all(entry.record.value is None and "ArithmeticError" in entry.record.reason for entry in outcomes[2:])


def test_a_decoder_that_dies_costs_its_micro_batch(ray_cluster: None) -> None:
    outcomes = asyncio.run(score_all(start("mortal"), ["a", "die"], max_batch=2, max_wait_s=60.0, timeout_s=60.0))
    assert [str(entry.record.status) for entry in outcomes] == ["error", "error"]
    assert all(entry.record.value is None and "Actor" in entry.record.reason for entry in outcomes)


def test_a_decoder_that_does_not_answer_costs_its_micro_batch_and_gets_no_other(decoders: list[str]) -> None:
    async def main() -> tuple[list[Outcome], list[int]]:
        client = StreamQueue(decoders, max_batch=1, max_wait_s=60.0, timeout_s=3.0)
        found = await one_after_another(client, ["hang", *"abc"])
        away = list(client.returning)
        # It has answered by now, late, and works again.
        await asyncio.gather(*client.returning.values())
        return found, [*away, *sorted(client.idle)]

    outcomes, ranks = asyncio.run(main())
    assert statuses(outcomes) == ["timeout", "ok", "ok", "ok"] and ranks == [0, 0, 1]
    assert outcomes[0].record.reason == "decoder rank 0: no answer in 3 s"


async def one_after_another(client: StreamQueue, captions: list[str]) -> list[Outcome]:
    return [await client.score(ask(text)) for text in captions]


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [str(entry.record.status) for entry in outcomes]


def test_a_dead_decoder_draws_no_captions_from_the_others(ray_cluster: None) -> None:
    """It has nothing to do and so looks idle."""

    async def main() -> list[str]:
        client = StreamQueue(start("first", "second"), max_batch=1, max_wait_s=60.0, timeout_s=60.0)
        return statuses(await one_after_another(client, ["a", "die", *"bcdefgh"]))

    assert asyncio.run(main()) == ["ok", "error", *["ok"] * 7]


def test_a_decoder_that_lacks_its_weights_is_asked_again_when_it_is_ready(decoders: list[str]) -> None:
    async def main() -> tuple[list[str], list[int]]:
        client = StreamQueue(decoders, max_batch=1, max_wait_s=60.0, timeout_s=60.0)
        found = statuses(await one_after_another(client, ["unsent", "a"]))
        return found, [*client.idle, *client.returning]

    found, ranks = asyncio.run(main())
    assert found == ["error", "ok"] and sorted(ranks) == [0, 1]


def test_captions_wait_for_the_only_decoder_while_it_is_started_again(ray_cluster: None) -> None:
    async def main() -> list[str]:
        client = StreamQueue(start("again", restarts=1), max_batch=1, max_wait_s=60.0, timeout_s=60.0)
        return statuses(await one_after_another(client, ["a", "die", "b", "c"]))

    assert asyncio.run(main()) == ["ok", "error", "ok", "ok"]


def test_nobody_waits_for_a_decoder_that_is_dead_for_good(ray_cluster: None) -> None:
    async def main() -> list[Outcome]:
        client = StreamQueue(start("gone"), max_batch=1, max_wait_s=60.0, timeout_s=60.0)
        return await one_after_another(client, ["die", "b"])

    outcomes = asyncio.run(main())
    assert statuses(outcomes) == ["error", "error"]
    assert "every decoder rank is dead" in outcomes[1].record.reason


def test_a_caller_that_gave_up_hurts_nobody(decoders: list[str]) -> None:
    async def main() -> float:
        client = StreamQueue(decoders, max_batch=2, max_wait_s=60.0, timeout_s=60.0)
        late = asyncio.ensure_future(client.score(ask("a")))
        await asyncio.sleep(0)
        late.cancel()
        return (await client.score(ask("bb"))).record.value  # type: ignore[return-value]

    assert asyncio.run(main()) == 2.0


@ray.remote
class AgentLoop:
    """A process with captions of its own."""

    def __init__(self, dispatcher: str) -> None:
        self.client = StreamClient(dispatcher)

    async def score(self, captions: list[str]) -> list[Outcome]:
        return list(await asyncio.gather(*(self.client.score(ask(text)) for text in captions)))


def of_eight_processes(names: list[str], captions: list[list[str]], **settings: Any) -> list[list[Outcome]]:
    """Outcomes of captions that eight processes have at the same time."""
    name = f"dispatcher of {names[0]}"
    handle = start_dispatcher(name, names, **settings)
    loops = [AgentLoop.options(num_cpus=0.1).remote(name) for _ in captions]  # type: ignore[attr-defined]
    found = ray.get([loop.score.remote(some) for loop, some in zip(loops, captions, strict=True)])
    for actor in (handle, *loops):
        ray.kill(actor)
    return found


def test_captions_of_all_processes_are_spread_evenly(ray_cluster: None) -> None:
    """Each process alone does not know what the others have sent where."""
    names = start("even_0", "even_1", "even_2", "even_3")
    captions = [["x" * (4 * process + n + 1) for n in range(4)] for process in range(8)]
    found = of_eight_processes(names, captions, max_batch=8, max_wait_s=0.05, timeout_s=60.0)
    assert [[entry.record.value for entry in some] for some in found] == [
        [float(len(c)) for c in some] for some in captions
    ]
    loads = [sum(batches) for batches in sizes(names)]
    assert sum(loads) == 32 and max(loads) <= 1.5 * 8, loads


def test_captions_collect_while_all_decoders_are_at_work(ray_cluster: None) -> None:
    async def main(names: list[str]) -> None:
        queue = StreamQueue(names, max_batch=8, max_wait_s=0.0, timeout_s=60.0)
        await asyncio.gather(*(queue.score(ask("x" * 5)) for _ in range(9)))

    names = start("only")
    asyncio.run(main(names))
    assert sizes(names) == [[1, 8]]


def test_a_dispatcher_that_dies_loses_no_caption(ray_cluster: None) -> None:
    names = start("slow")
    handle = start_dispatcher("mortal dispatcher", names, max_batch=1, max_wait_s=0.0, timeout_s=60.0)
    loop = AgentLoop.options(num_cpus=0.1).remote("mortal dispatcher")  # type: ignore[attr-defined]
    asked = loop.score.remote(["x"] * 30)
    deadline = time.monotonic() + 60
    while not sizes(names)[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    ray.kill(handle, no_restart=False)
    assert statuses(ray.get(asked)) == ["ok"] * 30


def test_a_dispatcher_that_cannot_answer_costs_captions_and_says_why(ray_cluster: None) -> None:
    handle = start_dispatcher("gone dispatcher", start("idle"), max_batch=1, max_wait_s=0.0, timeout_s=60.0)
    loop = AgentLoop.options(num_cpus=0.1).remote("gone dispatcher")  # type: ignore[attr-defined]
    assert statuses(ray.get(loop.score.remote(["x"]))) == ["ok"]
    ray.kill(handle)
    (lost,) = ray.get(loop.score.remote(["x"]))
    assert str(lost.record.status) == "error" and lost.record.reason.startswith(
        "dispatcher of the streamed schedule: Actor"
    )
