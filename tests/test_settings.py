# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from tests.composing import copied
from tests.source import modules
from verl_uae.config import STAGES
from verl_uae.config.schema import UAEConfig
from verl_uae.config.validate import ValidateCallback
from verl_uae.errors import ConfigError
from verl_uae.flow.config import REDUCTIONS
from verl_uae.reward import get_reward
from verl_uae.reward.config import TermConfig
from verl_uae.reward.registry import BUILT_IN
from verl_uae.reward.terms.features import FeatureTerm
from verl_uae.settings import Rule, check_keys, check_overrides, check_values, is_read, rules, unread_overrides

WRONG = "uae.reward.custom_wieght: unknown key, did you mean uae.reward.custom_weight?"


@pytest.mark.parametrize("word", ["{}=1", "+{}=1", "++{}=1", "~{}", "~{}=1", "{}=1,2", "{}.more=1", "{}="])
def test_an_unknown_key_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_overrides(
            ["--config-name", "uae_g4u", "data.train_files=x", word.format("uae.reward.custom_wieght")], UAEConfig
        )
    assert str(refused.value) == WRONG


def test_a_key_that_resembles_none_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"^uae\.zzz: unknown key; known keys: stage, seed, screen, decoder"):
        check_overrides(["uae.zzz=1"], UAEConfig)


def test_every_key_of_the_schema_passes() -> None:
    keys = [name for name, *_ in rules(UAEConfig)]
    assert len(keys) > 100
    check_overrides([f"{prefix}{key}=1" for key in keys for prefix in ("", "+", "++", "~")], UAEConfig)


@pytest.mark.parametrize(
    "word",
    [
        "uae/decoder=sd35_medium",
        "uae_home=x",
        "uae.reward.terms.0.wieght=1",
        "data.x=uae.zzz=1",
        "--cfg",
        "uae.",
        "uae",
    ],
)
def test_other_words_are_left_to_hydra(word: str) -> None:
    check_overrides([word], UAEConfig)


def test_a_composed_section_is_held_to_the_same(compose) -> None:  # type: ignore[no-untyped-def]
    check_keys(compose().uae, UAEConfig)
    with pytest.raises(ConfigError) as refused:
        check_keys(compose("+uae.reward.custom_wieght=1").uae, UAEConfig)
    assert str(refused.value) == WRONG


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("uae.policy.lora.rank", "uae.train.lora.rank"),
        ("uae.policy.num_steps", "uae.u4g.num_steps"),
        ("uae.policy.captions.condition_cache_size", "uae.conditioner.cache_size"),
        ("uae.cold_start.encoder.lora.rank", "uae.cold_start.captioner.lora.rank"),
        ("uae.reward.max_invalid_fraction", "uae.supervision.max_invalid_fraction"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(compose, old: str, new: str) -> None:  # type: ignore[no-untyped-def]
    for word in (f"{old}=1", f"++{old}=1"):
        with pytest.raises(ConfigError, match=f"^{old}: is called {new} now$"):
            check_overrides([word], UAEConfig)
    assert new in {name for name, *_ in rules(UAEConfig)}
    with pytest.raises(ConfigError, match="is called uae"):
        check_keys(compose(f"++{old}=1").uae, UAEConfig)


LIMITED = {name: rule for name, rule, _ in rules(UAEConfig) if rule.limits}
STAGE_OF = {name: stages[-1] for name, _, stages in rules(UAEConfig)}
CHOICES = [name for name, rule in LIMITED.items() if rule.choices]
BOUNDS = [name for name, rule in LIMITED.items() if not rule.choices]


@pytest.fixture(scope="module")
def section(compose, tiny_overrides: list[str]) -> DictConfig:  # type: ignore[no-untyped-def]
    """The section ``uae`` with something under every key, none of it taken from another."""
    return compose(*tiny_overrides, "uae.decoder.guidance=1.0", name="uae_unified").uae


def refused(section: DictConfig, name: str, value: object) -> str:
    """What is said of a value, in a stage that reads the key."""
    changed = copied(section)
    OmegaConf.update(changed, name.removeprefix("uae."), value)
    with pytest.raises(ConfigError) as error:
        check_values(changed, UAEConfig, STAGE_OF[name])
    assert error.value.key == name
    return error.value.message


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_that_is_no_choice_is_named(section: DictConfig, name: str) -> None:
    choices = ", ".join(LIMITED[name].choices)
    assert refused(section, name, "nothing") == f"must be one of {choices}, got 'nothing'"


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_outside_its_bounds_is_named(section: DictConfig, name: str) -> None:
    rule = LIMITED[name]
    outside = [
        *(() if rule.at_least is None else (rule.at_least - 1,)),
        *(() if rule.above is None else (rule.above, rule.above - 1)),
        *(() if rule.at_most is None else (rule.at_most + 1,)),
        *(() if rule.below is None else (rule.below, rule.below + 1)),
    ]
    assert outside or rule.number
    for number in outside:
        assert refused(section, name, number).startswith("must be")
    if isinstance(OmegaConf.select(section, name.removeprefix("uae.")), float):
        assert "got nan" in refused(section, name, math.nan)


@pytest.mark.parametrize(
    ("rule", "value", "problem"),
    [
        (Rule(choices=("red", "blue")), "green", "must be one of red, blue, got 'green'"),
        (Rule(at_least=2), 1, "must be at least 2, got 1"),
        (Rule(at_least=2), 2, None),
        (Rule(above=0), 0, "must be above 0, got 0"),
        (Rule(at_most=5), 6, "must be at most 5, got 6"),
        (Rule(below=1, why="it would never end"), 1.0, "must be below 1, got 1.0: it would never end"),
        (Rule(number=True), math.inf, "must be a number, got inf"),
        (Rule(at_least=0), "2", "must be at least 0, got '2'"),
        (Rule(at_least=0), True, "must be at least 0, got True"),
        (Rule(at_least=0), None, None),
        (Rule(), object(), None),
    ],
)
def test_a_rule(rule: Rule, value: object, problem: str | None) -> None:
    assert rule.problem(value) == problem


def test_values_of_entries_are_checked_too(section: DictConfig) -> None:
    changed = copied(section)
    changed.reward.terms[1].normalize = "zscore"
    with pytest.raises(ConfigError, match=r"^uae\.reward\.terms\[1\]\.normalize: must be one of none, running, rank"):
        check_values(changed, UAEConfig, "g4u")


def test_what_a_stage_does_not_read_is_not_checked(section: DictConfig) -> None:
    changed = copied(section)
    changed.u4g.kernel = "nothing"
    check_values(changed, UAEConfig, "g4u")
    with pytest.raises(ConfigError, match=r"^uae\.u4g\.kernel"):
        check_values(changed, UAEConfig, "u4g")


@pytest.mark.parametrize(
    ("stage", "override", "read"),
    [
        ("g4u", "uae.u4g.window.size=4", False),
        # The scenes draw pictures with it.
        ("g4u", "uae.u4g.guidance=2", True),
        ("g4u", "uae.decoder.dtype=float32", True),
        ("g4u", "uae.train.optim.lr=1", False),
        ("u4g", "uae.decoder.dtype=float32", False),
        ("u4g", "++uae.rollout.timeout_s=3", False),
        ("u4g", "uae.train.optim.lr=1", True),
        ("unified", "uae.u4g.captions.cache_size=3", False),
        ("unified", "uae.unified.first=u4g", True),
        ("pretrain", "uae.u4g.kernel=ode", False),
        ("pretrain", "uae.pretrain.density.name=mode", True),
        ("pretrain", "uae.conditioner.cache_size=3", True),
        ("cold_start", "uae.pretrain.density.name=mode", False),
        ("cold_start", "uae.pretrain.buckets=true", True),
        ("cold_start", "trainer.nnodes=2", True),
        ("unknown", "uae.u4g.kernel=ode", True),
    ],
)
def test_what_a_stage_does_not_read(stage: str, override: str, read: bool) -> None:
    assert bool(unread_overrides(UAEConfig, stage, [override])) is not read


def test_the_command_says_so(compose, tiny_overrides, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    config = compose(*tiny_overrides, name="uae_u4g")
    OmegaConf.set_struct(config, False)
    config.hydra = {"overrides": {"task": ["uae.decoder.dtype=float32", "uae.train.optim.lr=1e-4"]}}
    ValidateCallback().on_run_start(config)
    assert capsys.readouterr().err == "verl_uae: warning: uae.decoder.dtype is set, but stage u4g does not read it\n"


@pytest.mark.parametrize("schedule", ["turns", "joint"])
def test_the_command_says_so_of_a_schedule(compose, tiny_overrides, capsys, schedule: str) -> None:  # type: ignore[no-untyped-def]
    config = compose(*tiny_overrides, f"uae.unified.schedule={schedule}", name="uae_unified")
    OmegaConf.set_struct(config, False)
    words = ["uae.unified.g4u_steps=3", "uae.u4g.captions.temperature=0.5", "uae.u4g.samples_per_caption=8"]
    config.hydra = {"overrides": {"task": words}}
    ValidateCallback().on_run_start(config)
    warned = "verl_uae: warning: {} is set, but uae.unified.schedule=joint does not read it\n"
    names = ("uae.unified.g4u_steps", "uae.u4g.captions.temperature") if schedule == "joint" else ()
    assert capsys.readouterr().err == "".join(map(warned.format, names))


def test_every_key_is_read_in_some_stage_and_somewhere_in_the_code() -> None:
    names = [name for name, *_ in rules(UAEConfig) if name.count(".") > 1]
    assert all(any(is_read(UAEConfig, stage, name) for stage in STAGES) for name in names)
    text = "\n".join(path.read_text("utf-8") for path in modules() if path.name != "config.py")
    # Sections that are passed on whole, as keyword arguments or as verl's own dataclasses.
    whole = ("uae.u4g.window.", "uae.pretrain.density.", "uae.unified.", "uae.decoder.", "uae.conditioner.weights")
    missing = [name for name in names if not re.search(rf"\.{name.rpartition('.')[2]}\b", text)]
    assert not [name for name in missing if not name.startswith(whole)], missing


def test_reading_the_schema_imports_nothing_heavy() -> None:
    script = "import sys, verl_uae.config.schema; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "verl", "ray", "transformers", "diffusers", "pandas", "pyarrow"} & set(loaded)


def test_every_field_says_what_it_is() -> None:
    """A string follows every field of every section, except those that are a section of their own."""
    sections = [UAEConfig, TermConfig, *_sections(UAEConfig)]
    assert len(sections) >= 24
    for schema in sections:
        node = ast.parse(inspect.getsource(schema)).body[0]
        assert isinstance(node, ast.ClassDef)
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{schema.__name__}.{ast.unparse(field.target)}"


def _sections(schema: type) -> Iterator[type]:
    for field in dataclasses.fields(schema):
        if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
            yield field.default_factory
            yield from _sections(field.default_factory)


def test_choices_are_those_of_the_code() -> None:
    pictures = frozenset({"source", "reconstruction"})
    assert set(LIMITED["uae.cold_start.backbone"].choices) == {
        name
        for name, term in ((name, get_reward(name)) for name in BUILT_IN)
        if issubclass(term, FeatureTerm) and term.needs == pictures and term.higher_is_better
    }
    # The log-density proper overflows as a ratio.
    assert set(LIMITED["uae.u4g.reduction"].choices) == {*REDUCTIONS} - {"sum"}


def test_sections_are_not_shared_between_two_configs() -> None:
    one, other = UAEConfig(), UAEConfig()
    one.train.save_contents.append("mine")
    one.u4g.objective.params["clip"] = 1
    one.cold_start.captioner.lora.target_modules.append("mine")
    assert other == UAEConfig() != one


@pytest.mark.parametrize(
    "override",
    [
        "uae.u4g.num_stpes=3",
        "uae.u4g.num_steps=null",
        "uae.u4g.share_noise=perhaps",
        "uae.train.lora.target_modules=attn",
        "uae.decoder.timeout_s=null",
        "uae.reward.terms=[{nam: pixel}]",
        "uae.pretrain.buckets=some",
    ],
)
def test_hydra_refuses_wrong_types_and_names(compose, tiny_overrides, override: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigCompositionException):
        compose(*tiny_overrides, override, name="uae_u4g")


@pytest.mark.parametrize(
    "override", ["uae.u4g.window.high=null", "uae.u4g.advantage.clamp=null", "+uae.u4g.objective.params.x=1"]
)
def test_hydra_takes_what_may_be_left_out_or_added(compose, tiny_overrides, override: str) -> None:  # type: ignore[no-untyped-def]
    compose(*tiny_overrides, override, name="uae_u4g")
