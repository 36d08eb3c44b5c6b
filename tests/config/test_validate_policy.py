# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import verl_uae.stages.u4g.config as u4g
from tests.composing import copied
from tests.config.test_validate import changed
from verl_uae.config import yaml_files
from verl_uae.config.schema import UAEConfig
from verl_uae.config.validate import validate
from verl_uae.errors import ConfigError
from verl_uae.settings import rules

#: Shipped presets; "custom" wants an objective first.
PRESETS = sorted({path.stem for name, path in yaml_files().items() if name.startswith("decoder/")} - {"custom"})
P = "uae.u4g"
T = "uae.train"
NFT = f"{P}.kernel=ode {P}.objective.name=nft"
GROUPED = f"{P}.kernel=ode {P}.objective.name=dgpo {P}.objective.share=noise"

#: overrides, key that is named, part of the message
IMPOSSIBLE = [
    ("+uae.u4g.nmu_steps=3", f"{P}.nmu_steps", "did you mean uae.u4g.num_steps"),
    ("+uae.u4g.window.sise=3", f"{P}.window.sise", "did you mean uae.u4g.window.size"),
    ("+uae.unified.frist=u4g", "uae.unified.frist", "did you mean uae.unified.first"),
    (f"{T}.fsdp_config.strategy=megatron", f"{T}.fsdp_config.strategy", "no MM-DiT on Megatron"),
    (f"{P}.sampler=copy", f"{P}.sampler", "one of live, replica"),
    (f"{P}.sampler=replica {T}.fsdp_config.strategy=fsdp", f"{P}.sampler", "replica needs"),
    (f"{T}.fsdp_config.strategy=ddp", f"{T}.fsdp_config.strategy", "one of fsdp, fsdp2"),
    ("actor_rollout_ref.actor.strategy=megatron", "model_engine", "trains nothing else; use dp"),
    (
        f"{T}.fsdp_config.ulysses_sequence_parallel_size=2",
        f"{T}.fsdp_config.ulysses_sequence_parallel_size",
        "no such split",
    ),
    (f"{P}.objective.name=dpo", f"{P}.objective.name", "Did you mean 'dppo'"),
    (f"{P}.objective.params.treshold=1", f"{P}.objective.params.treshold", "unknown parameter of 'dppo'"),
    (f"{P}.objective.params.threshold=0", f"{P}.objective.params.threshold", "above 0"),
    (f"{P}.objective.params.direction=up", f"{P}.objective.params.direction", "'up'"),
    (f"{P}.objective.path=/no/such.py", f"{P}.objective.path", "/no/such.py"),
    (f"{P}.objective.name=grpo_guard", f"{P}.objective.name", "flow_sde only"),
    (f"{P}.kernel=ode", f"{P}.kernel", "needs stochastic steps"),
    (f"{P}.objective.name=nft", f"{P}.kernel", "is trained on ODE samples"),
    ("NFT uae.u4g.objective.num_sigmas=10", f"{P}.objective.num_sigmas", "10 steps"),
    ("NFT uae.u4g.reference_kl={coef: 1, form: exact}", f"{P}.reference_kl.form", "takes velocity or x0"),
    (f"{P}.objective.norm_guard=0.1", f"{P}.objective.norm_guard", "dppo is not on the forward process; use 0"),
    (f"NFT {P}.objective.norm_guard=-1", f"{P}.objective.norm_guard", "at least 0, got -1"),
    (f"NFT {P}.step_weights=noise", f"{P}.step_weights", "nft trains no steps of a window"),
    (f"NFT {P}.objective.draw_from=ema", f"{P}.objective.draw_from", "one of old, current"),
    (f"{P}.kernel=ode {P}.objective.name=crd", f"{P}.objective.share", "crd compares the losses of a group"),
    (
        f"{GROUPED} {P}.updates_per_rollout=8 {T}.micro_batch_size=8",
        f"{P}.updates_per_rollout",
        "8 updates leave one of 8 samples of a group",
    ),
    (f"{P}.objective.name=awm {P}.objective.share=noise", f"{P}.kernel", "is trained on ODE samples"),
    (
        f"{P}.reference_kl={{coef: 0.1, floor: 0.2}}",
        f"{P}.reference_kl.floor",
        "0.2 is above uae.u4g.reference_kl.coef=0.1",
    ),
    (f"{P}.reference_kl={{coef: 0.1, floor: 0.01}} {P}.advantage.clamp=null", f"{P}.reference_kl.floor", "clamp"),
    (f"{P}.reference_kl.guidance=0.5", f"{P}.reference_kl.guidance", "at least 1, got 0.5"),
    (f"{P}.window.size=6", f"{P}.window", "no window of size 6"),
    (f"{P}.window.low=8", f"{P}.window", "no window of size 3"),
    (f"{P}.window.high=1", f"{P}.window", "no window of size 3"),
    (f"{P}.window.min_sigma_next=1.5", f"{P}.window.min_sigma_next", "at most 1, got 1.5"),
    (f"{P}.window.max_gain=0.01", f"{P}.window", "no window of size 3"),
    (f"{P}.noise_level=1.5", f"{P}.window", "noise_level"),
    (f"{P}.replay_steps=0", f"{P}.replay_steps", "at least 1, got 0"),
    (f"{P}.replay_steps=4", f"{P}.replay_steps", "4 places at once, but uae.u4g.window.size=3: at most 3, or null"),
    (f"{P}.window.mode=all {P}.replay_steps=11", f"{P}.replay_steps", "uae.u4g.num_steps=10"),
    (f"NFT {P}.replay_steps=3", f"{P}.replay_steps", "uae.u4g.objective.num_sigmas=2"),
    (f"{P}.updates_per_rollout=3", f"{P}.updates_per_rollout", "3 must divide uae.u4g.samples_per_caption=8"),
    (
        f"{T}.micro_batch_size=7",
        f"{T}.micro_batch_size",
        "7 must divide the 32 samples a rank has in an update (8 images x 8 samples / 2 updates / 1 ranks)",
    ),
    ("trainer.n_gpus_per_node=2", f"{T}.micro_batch_size", "32 must divide the 16 samples"),
    (f"{P}.pool.size=7", f"{P}.pool.size", "7 candidates are fewer than the uae.u4g.samples_per_caption=8"),
    (f"{P}.pool.size=1", f"{P}.pool.size", "at least 2, got 1"),
    (f"{P}.pool.choose=best", f"{P}.pool.choose", "one of best_worst, diverse, random"),
    (f"{P}.pool.size=16 {P}.pool.steps=0", f"{P}.pool.steps", "at least 1, got 0"),
    (f"{P}.pool.size=16 {P}.pool.steps=10", f"{P}.pool.steps", "10 steps are no preview of uae.u4g.num_steps=10"),
    (f"{P}.pool.steps=4", f"{P}.pool.steps", "nothing is chosen by the previews: set uae.u4g.pool.size above"),
    (f"{P}.pool.size=16 {P}.pool.steps=4 {P}.share_noise=true", f"{P}.pool.steps", "all the same picture: use null"),
    (f"{P}.shared_prefix=true", f"{P}.shared_prefix", "noise of its own, so there is nothing to share"),
    (f"NFT {P}.shared_prefix=true", f"{P}.shared_prefix", "noise of its own, so there is nothing to share: use false"),
    (f"NFT {P}.share_noise=true", f"{P}.share_noise", "would be one picture, and of equal reward: use false"),
    (
        f"{P}.share_noise=true {P}.shared_prefix=true uae.train.micro_batch_size=1",
        f"{P}.shared_prefix",
        "each is alone",
    ),
    (f"{P}.share_noise=true {P}.shared_prefix=true {P}.replay_steps=3", f"{P}.replay_steps", "its own: at most 2"),
    (f"NFT {P}.share_noise=true {P}.shared_prefix=true", f"{P}.share_noise", "would be one picture"),
    (f"{P}.pool.keep_captions=9", f"{P}.pool.keep_captions", "9 is more than data.train_batch_size=8"),
    (f"{P}.pool.keep_captions=0", f"{P}.pool.keep_captions", "at least 1, got 0"),
    (
        f"{P}.pool.keep_captions=4",
        f"{T}.micro_batch_size",
        "32 must divide the 16 samples a rank has in an update (4 images x 8 samples / 2 updates / 1 ranks)",
    ),
    (f"{P}.ties=drop", f"{P}.ties", "one of keep, skip, refill"),
    (f"{P}.ties=refill {P}.refill_batches=0", f"{P}.refill_batches", "at least 1, got 0"),
    (f"{T}.ema.decay=1", f"{T}.ema.decay", "would never move"),
    (f"{P}.objective.old_decay=1.5", f"{P}.objective.old_decay", "would never move"),
    (f"{P}.advantage.clamp=0", f"{P}.advantage.clamp", "above 0, got 0"),
    (f"{T}.save_contents=[model, weights]", f"{T}.save_contents", "'weights' is none of model"),
    (
        f"{P}.guidance=2 uae.decoder.guidance=1",
        "uae.decoder.guidance",
        "trained without guidance must be drawn without",
    ),
    ("uae.decoder.guidance=2", "uae.decoder.guidance", "trained without guidance must be drawn without"),
]


def options(text: str) -> list[str]:
    """Overrides of one text; they are parted by a space that a key follows."""
    return re.split(r" (?=[a-z0-9_.]+=)", text.replace("NFT", NFT)) if text else []


def altered(base: DictConfig, text: str) -> DictConfig:
    """A copy of the config with overrides; another objective starts from its own parameters."""
    if f"{P}.objective.name=" in text.replace("NFT", NFT):
        base = copied(base)
        base.uae.u4g.objective.params = {}
    return changed(base, *options(text))


@pytest.fixture(scope="module")
def base(compose, tiny_overrides: list[str]) -> DictConfig:
    return compose(*tiny_overrides, "uae.u4g.num_steps=10", "uae.u4g.updates_per_rollout=2", name="uae_u4g")


@pytest.mark.parametrize(("overrides", "key", "text"), IMPOSSIBLE, ids=[overrides for overrides, _, _ in IMPOSSIBLE])
def test_impossible_settings_are_named(base: DictConfig, overrides: str, key: str, text: str) -> None:
    config = altered(base, overrides)
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        validate(config)
    assert caught.value.key == key


def test_every_choice_of_the_schema_that_stands_alone_is_possible(base: DictConfig) -> None:
    """Kernels, tables, window modes and the rest, each with what it needs."""
    with_kernel = {"ode": NFT, "dance": f"{P}.kernel=dance {P}.noise_level=0.3", "flow_sde": f"{P}.kernel=flow_sde"}
    choices = {name: rule.choices for name, rule, _ in rules(UAEConfig) if name.startswith(f"{P}.") and rule.choices}
    for key, values in choices.items():
        for value in values:
            more = with_kernel.get(value, "") if key.endswith("kernel") else ""
            validate(altered(base, f"{key}={value} {more}".strip()))


@pytest.mark.parametrize(
    "overrides",
    [
        f"{P}.guidance=4.5 uae.decoder.guidance=3",
        f"{P}.advantage.clamp=null",
        # Candidates need no equal shares: ranks fill them up.
        f"{P}.pool.size=13 {P}.pool.steps=4 {P}.pool.choose=diverse",
        f"{P}.pool.size=16 {P}.share_noise=true {P}.shared_prefix=true",
        f"{P}.pool.keep_captions=4 {P}.pool.steps=1 {T}.micro_batch_size=16",
        f"{P}.ties=refill {P}.refill_batches=3 {P}.pool.steps=2",
        f"{P}.replay_steps=null",
        f"{P}.replay_steps=3",
        f"{P}.window.mode=all {P}.replay_steps=7",
        f"NFT {P}.replay_steps=2",
        f"{T}.ema.decay=0",
        f"{T}.lora.rank=0",
        f"{P}.reference_kl.coef=0.1",
        f"{P}.reference_kl={{coef: 0.1, floor: 0.0, guidance: 4.5}}",
        f"{P}.kernel=ode {P}.objective.name=crd {P}.objective.share=levels {P}.objective.norm_guard=0.1",
        f"{T}.save_contents=[diffusers]",
        f"{P}.updates_per_rollout=8 {T}.micro_batch_size=8",
        "uae.decoder.shift=1",
        "NFT uae.u4g.objective.num_sigmas=9 uae.u4g.reference_kl={coef: 1, form: velocity}",
        "trainer.n_gpus_per_node=4 uae.train.micro_batch_size=8",
        # The captioner learns nothing in this stage.
        "actor_rollout_ref.rollout.n=1",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=7",
    ],
)
def test_possible_settings_pass(base: DictConfig, overrides: str) -> None:
    validate(altered(base, overrides))


def test_nothing_is_refilled_where_caption_servers_sleep(compose, tiny_overrides: list[str]) -> None:
    validate(compose(*tiny_overrides, f"{P}.ties=skip", name="uae_unified"))
    with pytest.raises(ConfigError, match=r"uae\.u4g\.ties: refill needs captions .* use skip, or uae\.u4g\.pool"):
        validate(compose(*tiny_overrides, f"{P}.ties=refill", name="uae_unified"))


@pytest.mark.parametrize("name", ["uae_u4g", "uae_unified"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_objective_is_valid_as_it_is(compose, tiny_overrides: list[str], name: str, preset: str) -> None:
    """On the scenes, and on the eight GPUs of the paper's preset."""
    eight = [f"data.train_files={__file__}", f"data.val_files={__file__}", "uae.decoder.path=org/decoder"]
    for overrides in (tiny_overrides, eight):
        config = compose(*overrides, f"decoder/objective={preset}", name=name)
        validate(config)
        assert config.uae.decoder.guidance == config.uae.u4g.guidance


@pytest.mark.usefixtures("own_objectives")
def test_the_preset_for_own_objectives_brings_no_parameters(compose, tiny_overrides: list[str], tmp_path: Path) -> None:
    # A copy: a file is executed once per process, and what it registers here is gone after the test.
    example = tmp_path / "own.py"
    example.write_text((Path(__file__).parents[2] / "examples" / "custom_objective.py").read_text())
    example.chmod(0o644)
    own = ["decoder/objective=custom", f"{P}.objective.path={example}", f"{P}.objective.name=soft_region"]
    config = compose(*tiny_overrides, *own, f"+{P}.objective.params.weight=100.0", name="uae_u4g")
    validate(config)
    assert config.uae.u4g.objective.params == {"weight": 100.0}
    bare, dppo = (compose(*tiny_overrides, f"decoder/objective={name}", name="uae_u4g") for name in ("custom", "dppo"))
    assert not bare.uae.u4g.objective.params and dppo.uae.u4g.objective.params
    for config in (bare, dppo):
        del config.uae.u4g.objective
    assert bare.uae.u4g == dppo.uae.u4g


@pytest.mark.usefixtures("own_objectives")
def test_the_users_own_objective(base: DictConfig, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from verl_uae.flow.objective import ObjectiveOutput, register_objective\n"
        "@register_objective('validated_mine')\n"
        "def mine(log_prob_B, advantage_B):\n"
        "    return ObjectiveOutput(-log_prob_B * advantage_B, {})\n"
    )
    own = [f"{P}.objective.name=validated_mine", f"{P}.objective.path={path}"]
    validate(altered(base, " ".join(own)))
    with pytest.raises(ConfigError, match="unknown parameter of 'validated_mine'"):
        validate(changed(base, *own))


def test_the_engine_of_the_decoder_cannot_be_megatron(compose, tiny_overrides: list[str]) -> None:
    for name in ("uae_u4g", "uae_unified"):
        config = compose(*tiny_overrides, "engine@uae.train.fsdp_config=megatron", name=name)
        with pytest.raises(ConfigError, match=r"uae\.train\.fsdp_config: is of McoreEngineConfig"):
            validate(config)


def test_half_a_switch_of_the_captioner_to_megatron_is_refused(compose, tiny_overrides: list[str]) -> None:
    for name in ("uae_g4u", "uae_unified"):
        config = compose(*tiny_overrides, "model_engine=megatron", name=name)
        with pytest.raises(ConfigError, match=r"actor\.strategy: is fsdp2 with model_engine=megatron"):
            validate(config)


def test_caption_servers_take_whole_ranks_and_give_their_memory_back(compose, tiny_overrides: list[str]) -> None:
    rollout = "actor_rollout_ref.rollout"
    overrides = [*tiny_overrides, "uae.u4g.captions.writer=server", f"{rollout}.tensor_model_parallel_size=2"]
    with pytest.raises(ConfigError, match=r"tensor_model_parallel_size: a caption server takes 2 ranks, .* 1 ranks"):
        validate(compose(*overrides, name="uae_u4g"))
    validate(compose(*overrides, "uae.u4g.captions.source=column", name="uae_u4g"))
    overrides[-1] = f"{rollout}.tensor_model_parallel_size=1"
    validate(compose(*overrides, name="uae_u4g"))
    with pytest.raises(ConfigError, match=r"rollout\.free_cache_engine: must be true"):
        validate(compose(*overrides, f"{rollout}.name=vllm", f"{rollout}.free_cache_engine=false", name="uae_u4g"))


def test_caption_servers_of_vllm_need_vllm(compose, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = [word for word in tiny_overrides if not word.startswith("hardware=")]
    config = compose(*hardware, "hardware=gpu", name="uae_u4g")
    assert config.uae.u4g.captions.writer == "server"
    monkeypatch.setattr(u4g, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"captions\.writer: server needs vLLM .*pip install.*or use ranks"):
        u4g.validate_engine(config)
    others = ("uae.u4g.captions.writer=ranks", "uae.u4g.captions.source=column", "actor_rollout_ref.rollout.name=hf")
    for other in others:
        u4g.validate_engine(compose(*hardware, "hardware=gpu", other, name="uae_u4g"))
    u4g.validate_engine(compose(*hardware, "hardware=gpu", name="uae_unified"))
    monkeypatch.setattr(u4g, "find_spec", lambda name: object())
    u4g.validate_engine(config)


def test_the_unified_stage_takes_no_captions_from_a_column(compose, tiny_overrides: list[str]) -> None:
    column = "uae.u4g.captions.source=column"
    validate(compose(*tiny_overrides, column, name="uae_u4g"))
    with pytest.raises(ConfigError, match="the trained captioner writes them"):
        validate(compose(*tiny_overrides, column, name="uae_unified"))


def test_the_unified_stage_checks_the_captioner_too(compose, tiny_overrides: list[str]) -> None:
    config = compose(*tiny_overrides, name="uae_unified")
    with pytest.raises(ConfigError, match="at least 2 captions"):
        validate(changed(config, "actor_rollout_ref.rollout.n=1"))


_JOINT = "uae.unified.schedule=joint"


@pytest.mark.parametrize(
    ("words", "key", "reason"),
    [
        ("uae.decoder.pool=own", "uae.decoder.pool", "own: .*only colocated is possible"),
        ("uae.decoder.pool=own uae.decoder.schedule=streamed", "uae.decoder.pool", "only colocated"),
        ("uae.decoder.seeds_per_caption=2", "uae.decoder.seeds_per_caption", "drawn uae.u4g.samples_per_caption times"),
        ("uae.g4u.ahead=1", "uae.g4u.ahead", "GPUs draw that the caption servers need"),
    ],
)
def test_what_needs_decoder_workers_is_refused_jointly(
    compose, tiny_overrides: list[str], words: str, key: str, reason: str
) -> None:
    config = compose(*tiny_overrides, _JOINT, name="uae_unified")
    validate(config)
    with pytest.raises(ConfigError, match=reason) as caught:
        validate(changed(config, *words.split()))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("words", "key", "reason"),
    [
        (f"{P}.pool.size=9", f"{P}.pool.size", "9 candidates are more than .*=4 that train: .*joint.*; use null, or"),
        (f"{P}.pool.steps=2", f"{P}.pool.steps", "2: .*rewarded by its drawings, so none are chosen; use null"),
        (f"{P}.pool.keep_captions=2", f"{P}.pool.keep_captions", "2: .*every drawing trains .* or the schedule turns"),
        (f"{P}.ties=refill", f"{P}.ties", "refill needs captions .* use skip$"),
    ],
)
def test_nothing_is_chosen_jointly(compose, tiny_overrides: list[str], words: str, key: str, reason: str) -> None:
    """As many candidates as train are no choice, and tied groups of drawings are skipped as in turns."""
    config = compose(*tiny_overrides, _JOINT, f"{P}.samples_per_caption=4", name="uae_unified")
    validate(changed(config, f"{P}.pool.size=4", f"{P}.ties=skip"))
    with pytest.raises(ConfigError, match=reason) as caught:
        validate(changed(config, *words.split()))
    assert caught.value.key == key
    if "refill" not in words:
        validate(
            changed(config, *words.split(), "uae.unified.schedule=turns", f"{P}.pool.size=9", f"{T}.micro_batch_size=4")
        )


def test_the_temperature_of_captions_for_the_decoder_alone_is_none_of_joint(compose, tiny_overrides: list[str]) -> None:
    sampled = ["uae.u4g.captions.do_sample=true", "uae.u4g.captions.temperature=0.5"]
    validate(compose(*tiny_overrides, _JOINT, *sampled, name="uae_unified"))


def test_samples_of_an_update_are_those_of_all_captions_jointly(compose, tiny_overrides: list[str]) -> None:
    """4 pictures of 4 captions, 4 times: 64 drawings in 2 updates. In turns there are 16, of one caption each."""
    sizes = ["data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", "uae.u4g.samples_per_caption=4"]
    sizes += [
        "uae.u4g.updates_per_rollout=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    ]
    config = compose(*tiny_overrides, *sizes, "uae.train.micro_batch_size=32", name="uae_unified")
    with pytest.raises(ConfigError, match=r"32 must divide the 8 samples .* \(4 images x 4 samples / 2 updates"):
        validate(config)
    validate(changed(config, _JOINT))
    with pytest.raises(ConfigError, match=r"24 must divide the 32 samples .* \(4 images x 4 captions x 4 samples / 2"):
        validate(changed(config, _JOINT, "uae.train.micro_batch_size=24"))


def test_validation_changes_nothing(base: DictConfig) -> None:
    before = OmegaConf.to_yaml(base)
    validate(base)
    assert OmegaConf.to_yaml(base) == before
