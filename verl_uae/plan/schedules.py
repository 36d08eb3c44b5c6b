# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of a run on a simulated cluster, by schedule: who captions, draws, trains and waits when."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from verl_uae.plan.events import Clock, Event, Pool, Process, beside
from verl_uae.plan.load import Drawing, Load
from verl_uae.plan.servers import written

#: Steps that are simulated, and those of them that fill the pipeline and are not counted.
STEPS, WARM = 5, 1

PHASED, OWN, STREAMED, AHEAD = "phased, colocated", "phased, own pool", "streamed, own pool", "one ahead, own pool"
#: Schedules of a step with captions and drawing.
SCHEDULES = (PHASED, OWN, STREAMED, AHEAD)
#: What a step's seconds are spent on, as the process sees it that controls them, beside the names of works.
CAPTIONS, LONGEST, DRAWING, CONTROL, LINKS = (
    "captions",
    "the longest caption",
    "drawing",
    "controller",
    "links between GPUs",
)


@dataclass
class Timeline:
    """What came of a simulation."""

    step_s: float
    """Of a step in steady state."""
    spent: dict[str, float]
    """Of it, seconds by what was waited for; they add up to it."""
    use: dict[str, float]
    """Share of the time in which each pool worked."""
    drawn: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often each caption was drawn, by step and number."""


def simulate(load: Load, schedule: str = PHASED, *, steps: int = STEPS) -> Timeline:
    """Run steps until they repeat.

    Args:
        load: of a step.
        schedule: of :data:`SCHEDULES`; without captions there is one way.
        steps: that are simulated.
    """
    return _Run(load, schedule, steps).timeline()


class _Run:
    """The processes of a simulation."""

    def __init__(self, load: Load, schedule: str, steps: int) -> None:
        self.load, self.schedule, self.steps = load, schedule, steps
        self.clock = Clock()
        self.gpus = Pool("GPUs" if schedule == PHASED else "captioner", load.gpus)
        own = load.drawing is not None and schedule != PHASED
        self.decoders = Pool("decoder", load.drawing.ranks) if own and load.drawing else self.gpus
        self.links = Pool("links", 1)
        self.ends: list[float] = []
        self.spent: dict[str, float] = defaultdict(float)
        self.drawn: Counter[tuple[int, int]] = Counter()
        self.queue: _Stream | None = None

    def timeline(self) -> Timeline:
        """Run."""
        self.clock.start(self._control())
        self.clock.run()
        warm = min(WARM, self.steps - 1)
        start, end = (self.ends[warm - 1] if warm else 0.0), self.ends[-1]
        counted = self.steps - warm
        pools = [self.gpus, *([self.decoders] if self.decoders is not self.gpus else []), self.links]
        return Timeline(
            (end - start) / counted,
            {name: seconds / counted for name, seconds in self.spent.items()},
            {pool.name: pool.use(start, end) for pool in pools},
            self.drawn,
        )

    # ------------------------------------------------------------ the process that controls a run

    def _control(self) -> Process:
        if self.schedule == AHEAD:
            yield from self._captions(0)
        for step in range(self.steps):
            if self.schedule == AHEAD:
                yield from self._ahead(step)
            elif self.schedule == STREAMED:
                yield from self._streamed(step)
            else:
                if self.load.captioning is not None:
                    yield from self._waited(CAPTIONS, self.clock.start(self._captions(step)))
                if self.load.drawing is not None:
                    yield from self._waited(DRAWING, self.clock.start(self._draw(step)))
            yield from self._behind()
            self.ends.append(self.clock.now)
            if step == min(WARM, self.steps - 1) - 1:
                self.spent.clear()

    def _ahead(self, step: int) -> Process:
        """The pictures of this step beside the captions of the next: what ends last is what was waited for."""
        before, ends = self.clock.now, dict[str, float]()

        def ended(name: str, process: Process) -> Process:
            yield from process
            ends[name] = self.clock.now

        captions, drawing = ended(CAPTIONS, self._captions(step + 1)), ended(DRAWING, self._draw(step))
        yield from beside(self.clock, captions, drawing)
        self._spend(max(ends, key=lambda name: ends[name]), self.clock.now - before)

    def _streamed(self, step: int) -> Process:
        assert self.load.captioning is not None and self.load.drawing is not None
        captions = self.load.captioning.captions
        self.queue = _Stream(self.clock, self.load.drawing, self.decoders, captions, self._count)
        yield from self._waited(CAPTIONS, self.clock.start(self._captions(step)))
        yield from self._waited(DRAWING, self.queue.all_drawn)

    def _behind(self) -> Process:
        """What follows the pictures: the controller's own work, then what the ranks do that train."""
        control = self.load.control
        before = self.clock.now
        yield control.fixed_s + control.sample_s * self.load.samples
        self.spent[CONTROL] += self.clock.now - before
        for work in self.load.works:
            before, late = self.clock.now, max(0.0, work.links_s - work.compute_s)
            if work.compute_s or work.links_s:
                yield self.clock.start(self._work(work.compute_s, work.links_s, work.units))
            yield work.alone_s
            self.gpus.worked(self.clock.now - work.alone_s, self.clock.now, self.gpus.count)
            self.spent[LINKS] += late
            self.spent[work.name] += self.clock.now - before - late

    def _waited(self, name: str, end: Event) -> Process:
        before = self.clock.now
        yield end
        self._spend(name, self.clock.now - before)

    def _spend(self, name: str, seconds: float) -> None:
        if name == CAPTIONS:
            # What the servers on average waited for the last of them.
            longest = min(seconds, self.longest)
            self.spent[LONGEST] += longest
            seconds -= longest
        self.spent[name] += seconds

    # ------------------------------------------------------------ captions

    longest = 0.0
    """Seconds between the mean end of the servers and the last one, in the captions that ended last."""

    def _captions(self, step: int) -> Process:
        """Agent loops prepare one prompt after the other; each caption goes to the next server in turn."""
        captioning, control = self.load.captioning, self.load.control
        assert captioning is not None
        lengths = captioning.lengths.draw(captioning.captions, step)
        start, ends = self.clock.now, []
        for server in range(min(captioning.servers, captioning.captions)):
            numbers = range(server, captioning.captions, captioning.servers)
            found = written(
                captioning, [((number // control.agents + 1) * control.agent_s, lengths[number]) for number in numbers]
            )
            for since, until in found.worked:
                self.gpus.worked(start + since, start + until, captioning.server_gpus)
            if self.queue is not None:
                for number, end in zip(numbers, found.ends, strict=True):
                    self.clock.after(end, functools.partial(self.queue.put, step, number))
            ends.append(max(found.ends))
        yield max(ends)
        self.longest = max(ends) - sum(ends) / len(ends)

    # ------------------------------------------------------------ pictures

    def _count(self, step: int, number: int) -> None:
        self.drawn[step, number] += 1

    def _draw(self, step: int) -> Process:
        """All at once, as evenly as they can be shared out."""
        drawing = self.load.drawing
        assert drawing is not None
        captions = self.load.captioning.captions if self.load.captioning else self.load.samples
        yield drawing.move_s
        start = self.clock.now
        some, more = divmod(captions, drawing.ranks)
        for share, ranks in ((some, drawing.ranks - more), (some + 1, more)):
            if share and ranks:
                self.decoders.worked(start, start + drawing.seconds(share), ranks)
        for number in range(captions):
            self._count(step, number)
        yield drawing.seconds(some + (more > 0))

    # ------------------------------------------------------------ ranks in step with each other

    def _work(self, compute_s: float, links_s: float, units: int) -> Process:
        """A part computes while the next one arrives."""
        compute, link = compute_s / units, links_s / units
        here, free = [Event(self.clock) for _ in range(units)], [Event(self.clock) for _ in range(units + 1)]
        free[0].fire()

        def arriving() -> Process:
            for number in range(units):
                yield free[number]
                start = self.clock.now
                yield link
                self.links.worked(start, self.clock.now)
                here[number].fire()

        def computing() -> Process:
            for number in range(units):
                yield here[number]
                free[number + 1].fire()
                start = self.clock.now
                yield compute
                self.gpus.worked(start, self.clock.now, self.gpus.count)

        yield from beside(self.clock, arriving(), computing())


class _Stream:
    """The dispatcher of the streamed schedule (:class:`~verl_uae.stages.g4u.stream.StreamQueue`), without faults."""

    def __init__(
        self, clock: Clock, drawing: Drawing, pool: Pool, expected: int, count: Callable[[int, int], None]
    ) -> None:
        self.clock, self.drawing, self.pool, self.count = clock, drawing, pool, count
        self.pending: deque[tuple[float, int, int]] = deque()
        self.idle = drawing.ranks
        self.left = expected
        self.all_drawn = Event(clock)

    def put(self, step: int, number: int) -> None:
        """A caption is there."""
        due = self.clock.now + self.drawing.wait_s
        self.pending.append((due, step, number))
        self.clock.after(self.drawing.wait_s, self._dispatch)
        if len(self.pending) >= self.drawing.batch:
            self._dispatch()

    def _dispatch(self) -> None:
        due = self.pending and (len(self.pending) >= self.drawing.batch or self.pending[0][0] <= self.clock.now)
        if not due or not self.idle:
            return
        share = math.ceil(len(self.pending) / self.drawing.ranks)
        while self.pending and self.idle:
            size = min(share, self.drawing.batch, len(self.pending))
            batch = [self.pending.popleft() for _ in range(size)]
            self.idle -= 1
            self.clock.start(self._send(batch))

    def _send(self, batch: list[tuple[float, int, int]]) -> Process:
        seconds = self.drawing.seconds(len(batch))
        self.pool.worked(self.clock.now, self.clock.now + seconds)
        yield seconds
        self.idle += 1
        for _, step, number in batch:
            self.count(step, number)
        self.left -= len(batch)
        if self.left == 0:
            self.all_drawn.fire()
        self._dispatch()
