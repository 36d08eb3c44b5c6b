# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from verl_uae.config.validate import validate
from verl_uae.errors import ConfigError
from verl_uae.reward.scorer import build_scorer, check_specs, term_specs
from verl_uae.reward.step import build_composition, build_group_scorer, build_tripwire, has_groupwise


def test_terms_of_a_config(compose, tiny_overrides: list[str]) -> None:
    terms = "[{name: pixel, weight: 0.7, params: {k: 5.0}}, {name: ssim, held_out: true, label: watched, weight: 3.0}]"
    config = compose(*tiny_overrides, f"uae.reward.terms={terms}", "uae.reward.timeout_s=7")
    summed, watched = term_specs(config)
    assert [(spec.name, spec.weight, dict(spec.params)) for spec in summed] == [("pixel", 0.7, {"k": 5.0})]
    assert [(spec.name, spec.label, spec.weight) for spec in watched] == [("ssim", "watched", 0.0)]
    scorer = build_scorer(config, "cpu")
    assert scorer.labels == ["pixel"] and [entry.label for entry in scorer._watched] == ["watched"]
    assert scorer.guard.timeout_s == 7


def test_groupwise_terms_are_the_trainers(compose, tiny_overrides) -> None:
    entry = "{name: preference, params: {path: rewards/preference_pair.py}, weight: 0.5"
    terms = f"[{{name: pixel}}, {entry}}}, {entry}, label: watched, held_out: true}}, {{name: ssim, held_out: true}}]"
    config = compose(*tiny_overrides, f"uae.reward.terms={terms}")
    scorer, groups = build_scorer(config, "cpu"), build_group_scorer(config)
    assert (scorer.labels, [entry.label for entry in scorer._watched]) == (["pixel"], ["ssim"])
    assert groups is not None and [(term.label, term.factor) for term in groups._terms] == [
        ("preference", 0.5),
        ("watched", None),
    ]
    assert has_groupwise(config) and not has_groupwise(compose(*tiny_overrides))
    assert build_group_scorer(compose(*tiny_overrides)) is None


def test_verls_custom_function_is_one_more_term(compose, tiny_overrides, make_batch, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(
            """
            def score(data_source, solution_str, ground_truth, extra_info, factor):
                return factor * len(solution_str)
            """
        )
    )
    config = compose(
        *tiny_overrides,
        f"reward.custom_reward_function.path={path}",
        "reward.custom_reward_function.name=score",
        "+reward.custom_reward_function.reward_kwargs.factor=0.5",
        "uae.reward.custom_weight=2.0",
    )
    summed, _ = term_specs(config)
    assert [(spec.name, spec.weight) for spec in summed] == [("pixel", 0.7), ("ssim", 0.3), ("custom", 2.0)]
    batch = make_batch(2)
    for record, caption in zip(build_scorer(config, "cpu").score(batch), batch.captions, strict=True):
        assert record.terms["custom"] == pytest.approx(0.5 * len(caption))
        rest = 0.7 * record.terms["pixel"] + 0.3 * record.terms["ssim"]
        assert record.value == pytest.approx(rest + 2.0 * record.terms["custom"])


def test_terms_of_a_file_are_known_by_name(compose, tiny_overrides, make_batch, tmp_path: Path) -> None:
    path = tmp_path / "terms.py"
    path.write_text(
        textwrap.dedent(
            """
            from verl_uae.reward import RewardTerm, register_reward
            @register_reward("test_build_brightness")
            class Brightness(RewardTerm):
                bounds = (0.0, 1.0)
                def score(self, batch):
                    return batch.reconstruction_B3HW.mean(dim=(1, 2, 3))
            """
        )
    )
    terms = "uae.reward.terms=[{name: test_build_brightness, weight: 2.0}]"
    with pytest.raises(ConfigError, match="unknown reward 'test_build_brightness'"):
        validate(compose(*tiny_overrides, terms))
    config = compose(*tiny_overrides, terms, f"uae.reward.files=[{path}]")
    validate(config)
    batch = make_batch(3)
    for record, picture in zip(build_scorer(config, "cpu").score(batch), batch.reconstruction_B3HW, strict=True):
        assert record.value == pytest.approx(2.0 * float(picture.mean()), rel=1e-5)
    with pytest.raises(ConfigError) as error:
        validate(compose(*tiny_overrides, f"uae.reward.files=[{path},{tmp_path}/none.py]"))
    assert error.value.key == "uae.reward.files[1]"


def test_the_direction_of_a_declared_function_counts(compose, tiny_overrides, make_batch, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(
            """
            from verl_uae.reward import reward_function
            @reward_function(bounds=(0, 50), higher_is_better=False)
            def letters(caption):
                return len(caption)
            """
        )
    )
    entry = f"{{name: custom, params: {{path: '{path}'}}"
    terms = f"[{entry}, label: a, weight: 2.0, floor: 49.0}}, {entry}, label: b, held_out: true}}]"
    config = compose(*tiny_overrides, f"uae.reward.terms={terms}")
    check_specs(*term_specs(config))
    assert [(part.label, part.factor) for part in build_composition(config).parts] == [("a", -2.0)]
    assert build_tripwire(config)._higher == {"b": False}
    (record,) = build_scorer(config, "cpu").score(make_batch(1))
    assert record.value == -2.0 * len("caption 0") and record.terms == {"a": 9.0, "b": 9.0}
    config.uae.reward.terms[0].floor = 51.0
    with pytest.raises(ConfigError, match=r"terms\[0\]\.floor: must be a value of custom, in \[0, 50\]"):
        check_specs(*term_specs(config))


def test_an_error_names_the_term_by_its_place_in_the_users_list(compose, tiny_overrides) -> None:
    config = compose(*tiny_overrides, "uae.reward.terms=[{name: pixel}, {name: ssmi, held_out: true}]")
    with pytest.raises(ConfigError) as error:
        check_specs(*term_specs(config))
    assert error.value.key == "uae.reward.terms[1].name"


def test_gates_normalisation_and_watch_of_a_config(compose, tiny_overrides) -> None:
    terms = (
        "[{name: pixel, floor: 0.1, normalize: running, weight: 2.0}, {name: repetition, label: again, weight: 0.5}, "
        "{name: ssim, held_out: true}]"
    )
    config = compose(*tiny_overrides, f"uae.reward.terms={terms}", "uae.reward.source_cache_mib=3")
    assert [spec.floor for spec in term_specs(config)[0]] == [0.1, None]
    parts = build_composition(config).parts
    assert [(part.label, part.factor, part.normalize) for part in parts] == [
        ("pixel", 2.0, "running"),
        ("again", -0.5, "none"),
    ]
    assert build_scorer(config, "cpu")._encodings._cache.maxsize == 3 * 2**20
    wire = build_tripwire(config)
    assert wire is not None and wire.window == 20 and wire.update(0.5, {"ssim": 0.5, "pixel": 0.5}) == {"ssim": 0.0}
    assert build_tripwire(compose(*tiny_overrides, "uae.reward.tripwire_window=0")) is None
