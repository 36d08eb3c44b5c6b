# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from verl_uae.errors import ConfigError
from verl_uae.registry import Registry
from verl_uae.reward import RewardTerm, get_reward, load_reward_file, register_reward, reward_function, reward_names
from verl_uae.reward.registry import BUILT_IN, REWARDS, as_term_class


class Constant(RewardTerm):
    bounds = (0.0, 1.0)

    def score(self, batch):
        return [0.5] * len(batch)


def rewards(group: str, **built_in: str) -> Registry[type[RewardTerm]]:
    return Registry("reward", "uae.reward", group, as_term_class, built_in)


@pytest.fixture
def own_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that a test registers are gone after it."""
    monkeypatch.setattr(REWARDS, "_claims", dict(REWARDS._claims))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_name_resolves(name: str) -> None:
    assert issubclass(get_reward(name), RewardTerm)


@pytest.mark.usefixtures("own_rewards")
def test_register_and_get() -> None:
    assert register_reward("constant")(Constant) is Constant
    assert get_reward("constant") is Constant and REWARDS.names(__name__) == ["constant"]
    assert "constant" in reward_names() and reward_names() == sorted(reward_names())


@pytest.mark.usefixtures("own_rewards")
def test_a_second_claim_raises() -> None:
    register_reward("constant")(Constant)
    for name, holder in (
        ("constant", f"{__name__}:Constant"),
        ("pixel", "verl_uae.reward.terms.pixel:PixelSimilarity"),
    ):
        with pytest.raises(ConfigError, match=f"'{name}' is already registered by {holder}; .* needs another name"):
            register_reward(name)(Constant)


def test_an_unknown_name_lists_the_known_and_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"my\.key: unknown reward 'pixle'\. Did you mean 'pixel'\? Known: .*, pixel"):
        get_reward("pixle", "my.key")


def test_features_names_its_network_itself() -> None:
    with pytest.raises(ConfigError, match=r"^k: 'features' is no reward: .* {name: clip} instead of {name: features"):
        get_reward("features", "k")


def test_a_class_that_breaks_the_contract_is_refused() -> None:
    without_bounds = type("NoBounds", (RewardTerm,), {"score": Constant.score})
    wrong_needs = type("WrongNeeds", (Constant,), {"needs": frozenset({"sound"})})
    abstract = type("Abstract", (RewardTerm,), {"bounds": (0.0, 1.0)})
    for term_class, message in (
        (without_bounds, "bounds"),
        (wrong_needs, "sound"),
        (abstract, "score"),
        (int, "subclass"),
    ):
        with pytest.raises(TypeError, match=message):
            register_reward("broken")(term_class)
    assert "broken" not in reward_names()


def test_importing_the_package_imports_no_model_library() -> None:
    heavy = ["torchmetrics", "transformers", "diffusers", "torchvision", "verl", "ray", "efficientnet_lite_pytorch"]
    code = f"import sys, verl_uae.reward as r; r.get_reward('pixel'); print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def _install(folder: Path, module: str, entry_points: dict[str, str], body: str) -> None:
    """Put a package with entry points on disk as pip would."""
    (folder / f"{module}.py").write_text(textwrap.dedent(body))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[test.rewards]", *lines]))


TERM_FILE = """
    from verl_uae.reward import RewardTerm
    class Half(RewardTerm):
        bounds = (0.0, 1.0)
        def score(self, batch):
            return [0.5] * len(batch)
"""


def test_entry_points_are_found_and_imported_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"half": "uae_test_plugin:Half", "absent": "uae_test_plugin:Absent"}
    _install(tmp_path, "uae_test_plugin", points, TERM_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = rewards("test.rewards")
    assert registry.names() == ["absent", "half"]
    assert "uae_test_plugin" not in sys.modules
    assert registry.get("half").__name__ == "Half"
    with pytest.raises(ConfigError, match=r"'absent' .uae_test_plugin:Absent. cannot be loaded: AttributeError"):
        registry.get("absent")


def test_an_entry_point_may_name_what_a_decorator_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = TERM_FILE.replace("import RewardTerm", "import RewardTerm, register_reward")
    body = body.replace("class Half", "@register_reward('half')\n    class Half")
    _install(tmp_path, "uae_test_both", {"half": "uae_test_both:Half"}, body)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = rewards("test.rewards")
    monkeypatch.setattr("verl_uae.reward.registry.REWARDS", registry)
    assert get_reward("half").__name__ == "Half" and registry.names() == ["half"]
    with pytest.raises(ConfigError, match="'half' is already registered by uae_test_both:Half"):
        register_reward("half")(Constant)


FUNCTION_FILE = """
    from verl_uae.reward import reward_function
    @reward_function(bounds=(0, 9), higher_is_better=False)
    def words(caption, factor=1):
        return factor * len(caption.split())
    def plain(caption):
        return 0.0
"""


def test_a_package_publishes_a_declared_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_batch) -> None:
    points = {"caption_words": "uae_test_functions:words", "plain": "uae_test_functions:plain"}
    _install(tmp_path, "uae_test_functions", points, FUNCTION_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = rewards("test.rewards")
    term_class = registry.get("caption_words")
    assert issubclass(term_class, RewardTerm) and registry.get("caption_words") is term_class
    assert (term_class.bounds, term_class.higher_is_better) == ((0.0, 9.0), False)
    assert [record.value for record in term_class(factor=3).score(make_batch(2))] == [6.0, 6.0]
    with pytest.raises(ConfigError, match=r"'plain' .* cannot be loaded: TypeError: .* not declared with @reward_func"):
        registry.get("plain")


@pytest.mark.usefixtures("own_rewards")
def test_a_declared_function_can_be_registered(make_batch) -> None:
    @register_reward("five")
    @reward_function
    def five(caption):
        return 5.0

    assert five("text") == 5.0
    assert [record.value for record in get_reward("five")().score(make_batch(1))] == [5.0]
    with pytest.raises(ConfigError, match=r"'five' is already registered by .*:.*five"):
        register_reward("five")(five)


def test_an_entry_point_cannot_take_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, "uae_test_thief", {"pixel": "uae_test_thief:Half"}, TERM_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="'pixel' is already registered by verl_uae"):
        rewards("test.rewards", pixel=BUILT_IN["pixel"]).names()


def test_a_user_file_registers_its_terms_once(tmp_path: Path) -> None:
    file = tmp_path / "my_terms.py"
    body = TERM_FILE.replace("import RewardTerm", "import RewardTerm, register_reward")
    file.write_text(textwrap.dedent(body.replace("class Half", "@register_reward('test_half')\n    class Half")))
    first, second = load_reward_file(str(file)), load_reward_file(str(file))
    assert first == second and "test_half" in reward_names()
    with pytest.raises(ConfigError, match="already registered"):
        register_reward("test_half")(Constant)
