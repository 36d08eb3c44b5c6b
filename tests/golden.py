# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every stage computes, bit for bit: a change that is meant to move code and no number is held to it.

    python -m tests.golden record FOLDER             runs everything, writes FOLDER/golden.json
    python -m tests.golden compare BEFORE AFTER      every difference of two records; exit code 1 if there is one

Three steps of every stage through the user's command with all metrics, and captions and pictures of the pipeline, from
models of a seed. Floats are written as hex. Records of two machines, or of two versions of torch, need not agree.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.world import build_model, build_world, metrics, train
from verl_uae import UAEPipeline
from verl_uae.data.schema import first_pictures
from verl_uae.seeding import generator

STEPS = 3
STAGES = ("pretrain", "cold_start", "g4u", "u4g", "unified")
FILE = "golden.json"
#: Metrics of time and of memory, and of the machine.
_MEASURED = re.compile(r"timing|perf/|memory|throughput|time_per|per_second|overhead|seconds|_s$")


def stage(name: str, world: Path, out: Path) -> dict[str, dict[str, str]]:
    """Metrics of a stage by step and name.

    Raises:
        RuntimeError: the command failed.
    """
    result = train(
        world,
        out,
        [f"trainer.total_training_steps={STEPS}", f"trainer.test_freq={STEPS}", "trainer.val_before_train=true"],
        config=f"uae_{name}",
        timeout=3600,
    )
    if result.returncode:
        raise RuntimeError(f"uae_{name} ended with {result.returncode}: see {out}/log.txt")
    return {
        str(step): {key: _exact(value) for key, value in sorted(record.items()) if not _MEASURED.search(key)}
        for step, record in sorted(metrics(out).items())
    }


def pictures(world: Path) -> dict[str, dict[str, str]]:
    """Caption and digest of the pixels for two held-out pictures, as the pipeline makes them."""
    pipe = UAEPipeline.from_pretrained(str(build_model(world)))
    found = {}
    for row, picture in enumerate(first_pictures(world / "data" / "val.parquet", 2)):
        output = pipe.reconstruct(
            picture.decode(),
            caption_generator=generator(0, "caption", row),
            generator=generator(0, "noise", row),
            output_type="pt",
        )
        pixels = output.images.contiguous().numpy().tobytes()
        found[str(row)] = {"caption": output.captions[0], "pixels": hashlib.sha256(pixels).hexdigest()}
    return found


def _exact(value: Any) -> str:
    return float(value).hex() if isinstance(value, int | float) else repr(value)


def record(folder: Path) -> None:
    """Run everything and write the record."""
    world = build_world(folder / "world")
    found = {name: stage(name, world, folder / name) for name in STAGES}
    text = json.dumps({**found, "pictures": pictures(world)}, indent=1, sort_keys=True)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def differences(before: dict[str, Any], after: dict[str, Any], where: str = "") -> Iterator[str]:
    """A line for every value that is in one record only, or other there."""
    for key in sorted(before.keys() | after.keys()):
        place, (old, new) = f"{where}{key}", (before.get(key), after.get(key))
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{place}: ")
        elif old != new:
            yield f"{place}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return "absent" if value is None else "there"
    try:
        return f"{value} ({float.fromhex(value):.6g})"
    except ValueError:
        return str(value)


def main(command: str, *paths: str) -> int:
    """The two commands above."""
    if command == "record":
        record(Path(paths[0]))
        return 0
    before, after = (json.loads(Path(path, FILE).read_text(encoding="utf-8")) for path in paths)
    lines = list(differences(before, after))
    sys.stdout.write("\n".join(lines or ["the same, bit for bit"]) + "\n")
    return int(bool(lines))


if __name__ == "__main__":
    if [len(sys.argv), *sys.argv[1:2]] not in ([3, "record"], [4, "compare"]):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
