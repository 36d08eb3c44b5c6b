# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""33 photographs that come with packages, collected into one folder for ``verl-uae bench discriminate``.

Seven are in the wheels of scikit-image 0.26, matplotlib 3.10 and scikit-learn 1.9, 26 in three packages of Debian 12:

    pip install scikit-image matplotlib
    pip download --no-deps scikit-learn && unzip -q scikit_learn-*.whl -d SOURCES
    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds
    for file in *.deb; do dpkg-deb -x "$file" SOURCES; done
    python -m benchmarks.photographs SOURCES OUT

The photographs themselves are not part of this repository; ``docs/results/discrimination.json`` has their digests.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

from PIL import Image

from verl_uae.data.limits import DEFAULT_LIMITS

_DEBIAN = "usr/share/backgrounds"

#: Path below the sources or below the installed packages, and licence as the package states it.
PHOTOGRAPHS: dict[str, str] = {
    "skimage/data/astronaut.png": "public domain (NASA)",
    "skimage/data/chelsea.png": "CC0",
    "skimage/data/coffee.png": "CC0",
    "skimage/data/rocket.jpg": "public domain (SpaceX)",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": "public domain (US Navy)",
    "sklearn/datasets/images/china.jpg": "CC BY 2.0",
    "sklearn/datasets/images/flower.jpg": "CC BY 2.0",
    f"{_DEBIAN}/Bridge_by_Sander_Klootwijk.jpg": "CC BY-SA 4.0",
    f"{_DEBIAN}/Dragonfly_by_Bolly.jpg": "CC BY-SA 4.0",
    f"{_DEBIAN}/Picture_0B_by_freespace.jpg": "CC BY 4.0",
    f"{_DEBIAN}/Picture_1A_by_freespace.jpg": "CC BY 4.0",
    f"{_DEBIAN}/Wine_by_Jakkub_Mede.jpg": "CC BY 4.0",
    f"{_DEBIAN}/aitzgorri_by_Aitzol_Berasategi.jpg": "CC BY 4.0",
    f"{_DEBIAN}/free_by_Peter_Nerlich.jpg": "CC BY-SA 4.0",
    f"{_DEBIAN}/friends_by_Aitzol_Berasategi.jpg": "CC BY 4.0",
    f"{_DEBIAN}/greentock_by_Peter_Nerlich.jpg": "CC BY-SA 4.0",
    f"{_DEBIAN}/life_by_Aitzol_Berasategi.jpg": "CC BY 4.0",
    f"{_DEBIAN}/picosdeeuropa_by_Aitzol_Berasategi.jpg": "CC BY 4.0",
    f"{_DEBIAN}/seeding_by_Clements_Engelhardt.jpg": "CC0",
    f"{_DEBIAN}/sunset_by_Aitzol_Berasategi.jpg": "CC BY 4.0",
    f"{_DEBIAN}/Kleiber_by_Lukas_Baubkus.jpg": "CC BY-SA 3.0",
} | {
    f"{_DEBIAN}/mate/nature/{name}.jpg": "GPL-2+"
    for name in (
        "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow",
        "LadyBird", "RainDrops", "Storm", "TwoWings", "Wood", "YellowFlower",
    )
}  # fmt: skip


def find(path: str, sources: Path) -> Path:
    """A photograph below the sources, or in an installed package."""
    if (sources / path).is_file():
        return sources / path
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package) if not path.startswith(_DEBIAN) else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / rest).is_file():
            return Path(folder) / rest
    raise SystemExit(f"{path} is neither below {sources} nor installed")


def bring(source: Path, target: Path) -> None:
    """Copy a photograph; one over the limit of ``decode_image`` is halved, by box filter, and written as PNG."""
    with Image.open(source) as picture:
        if picture.width * picture.height > DEFAULT_LIMITS.max_pixels:
            picture.convert("RGB").reduce(2).save(target.with_suffix(".png"))
            return
    shutil.copyfile(source, target)


def main() -> None:
    """Bring all of them."""
    parser = argparse.ArgumentParser(description="photographs of packages into one folder")
    parser.add_argument("sources", type=Path, help="folder with the unpacked packages")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in PHOTOGRAPHS:
        bring(find(path, args.sources), args.out / Path(path).name)
    print(f"{len(PHOTOGRAPHS)} photographs in {args.out}")


if __name__ == "__main__":
    main()
