# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardTerm, get_reward, reward_names
from verl_uae.reward.registry import BUILT_IN, check_term_class
from verl_uae.reward.term import check_arguments

KEY = "uae.reward.terms[3].params"
JUDGE = "rewards/preference_pair.py"


class Everything:
    def __init__(
        self,
        number: float = 1.0,
        whole: int = 1,
        text: str | None = None,
        flag: bool = False,
        choice: Literal["a", 2] = "a",
        scales: tuple[int, ...] = (1,),
        names: Sequence[str] = (),
        table: Mapping[str, Any] | None = None,
        folder: Path = Path(),
        **rest: Any,
    ) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "good", "bad", "wanted"),
    [
        ("number", [2, 2.5, -1e-3], ["2", None, True, [2.0]], "a number"),
        ("whole", [2, -1], [2.0, "2", None, True], "a whole number"),
        ("text", ["", "x", None, Path("x")], [3, True, ["x"]], "text or null"),
        ("flag", [True, False], [1, "true", None], "true or false"),
        ("choice", ["a", 2], ["b", 2.0, None, ["a"]], "'a' or 2"),
        ("scales", [[1, 2], (4,), []], [4, "12", [1.5], ["a"], None], "a list, each a whole number"),
        ("names", [["a"], []], ["ab", [1]], "a list, each text"),
        ("table", [{}, {"a": 1}, None], [3, "x", ["a"]], "a mapping or null"),
        ("folder", ["anything", 3, None], [], ""),
        ("another", ["anything", 3, None], [], ""),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_key(name: str, good: list, bad: list, wanted: str) -> None:
    for value in good:
        check_arguments(Everything, {name: value}, KEY)
    for value in bad:
        with pytest.raises(ConfigError) as error:
            check_arguments(Everything, {name: value}, KEY)
        assert (error.value.key, error.value.message) == (f"{KEY}.{name}", f"must be {wanted}, got {value!r}")


@pytest.mark.parametrize(
    ("term", "taken"),
    [("ssim", "SSIM takes none"), ("lpips", "LPIPS takes backbone, net: Literal['alex', 'vgg'] = 'alex'")],
)
def test_what_a_term_takes_is_listed_with_its_choices(term: str, taken: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_arguments(get_reward(term), {"windw": 4, **({"backbone": "x"} if term == "lpips" else {})}, KEY)
    assert error.value.message.endswith(f"unexpected keyword argument 'windw'; {taken}")


def test_annotations_that_cannot_be_read_check_nothing() -> None:
    class Mine:
        def __init__(self, size: OnlyForTypeCheckers) -> None:  # type: ignore[name-defined] # noqa: F821
            pass

    check_arguments(Mine, {"size": object()}, KEY)
    with pytest.raises(ConfigError, match="missing a required argument: 'size'; Mine takes"):
        check_arguments(Mine, {}, KEY)


@pytest.mark.parametrize(
    ("term", "params", "argument"),
    [
        ("pixel", {"k": "steep"}, "k"),
        ("pixel", {"scales": 4}, "scales"),
        ("psnr", {"max_db": None}, "max_db"),
        ("caption_length", {"low": 1, "high": "many"}, "high"),
        ("repetition", {"n": 1.5}, "n"),
        ("ocr_guard", {"without_text": "one"}, "without_text"),
        ("clip", {"mode": "map"}, "mode"),
        ("clip", {"revision": 1234567}, "revision"),
        ("dinov2", {"dtype": "fp16"}, "dtype"),
        ("siglip2", {"mode": "map"}, "mode"),
        ("efficientnet_lite0", {"mode": "map"}, "mode"),
        ("lpips", {"backbone": "alexnet.safetensors", "net": "squeeze"}, "net"),
        ("dreamsim", {"weights": 3}, "weights"),
        ("image_text_clip", {"dtype": "half"}, "dtype"),
        ("preference", {"path": JUDGE, "num_threads": "all"}, "num_threads"),
        ("custom", {"path": JUDGE, "name": "prefer", "reward_kwargs": 3}, "reward_kwargs"),
    ],
)
def test_built_in_terms_refuse_before_anything_is_loaded(term: str, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(KEY)}\.{argument}: must be "):
        get_reward(term).check_params(params, KEY)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_term_keeps_the_contract(name: str) -> None:
    check_term_class(get_reward(name))


def test_score_is_required() -> None:
    with pytest.raises(TypeError, match="score"):
        RewardTerm()  # type: ignore[abstract]
    assert set(BUILT_IN) <= set(reward_names())
