# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code does: links, keys, metrics, generated pages, recipes."""

from __future__ import annotations

import dataclasses
import importlib.util
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.config.test_validate_policy import PRESETS
from verl_uae.cli import parse
from verl_uae.config import STAGES, schema
from verl_uae.data.schema import first_pictures
from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import command
from verl_uae.reward.config import TermConfig
from verl_uae.settings import RENAMED

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "recipes/**/*.md", "examples/*.md", "rewards/*.md")
    for page in ROOT.glob(pattern)
)
RECIPES = sorted((ROOT / "recipes").rglob("config/*.yaml"))
SCRIPTS = sorted((ROOT / "recipes").rglob("*.sh"))
REQUIREMENTS = sorted((ROOT / "recipes").rglob("REQUIRED_VERL.txt"))


#: Of entry points, no modules.
GROUPS = ("verl_uae.objectives", "verl_uae.rewards", "verl_uae.families")
#: Pages with names of earlier versions, or with names that a generator writes.
NAMES_ELSEWHERE = ("CHANGELOG.md", "verl_surface.md")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _schema_keys(section: type, prefix: str) -> Iterator[str]:
    """Full names of the keys of a dataclass and of the dataclasses in it."""
    for field in dataclasses.fields(section):
        yield f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(field.default_factory):
            yield from _schema_keys(field.default_factory, f"{prefix}.{field.name}")  # type: ignore[arg-type]


# ---------------------------------------------------------------- text


def test_commands_of_the_estimate_on_the_pages_run() -> None:
    """As far as their models are composed: what each phase costs is executed elsewhere."""
    commands = [
        shlex.split(line, comments=True)[1:]
        for page in PAGES
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        if line.startswith(("verl-uae estimate ", "verl-uae plan ")) and "calibrat" not in line
    ]
    assert len(commands) >= 3 and {words[0] for words in commands} == {"estimate", "plan"}
    for words in commands:
        args = parse(words)
        name, *overrides = [*args.words, *args.overrides]
        sizes = {"gpus": args.gpus, "nodes": args.nodes} if args.command == "estimate" else {}
        command(name, overrides, **sizes)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NAMES_ELSEWHERE], ids=_name)
def test_names_of_the_package_are_there(page: Path) -> None:
    for name in re.findall(r"`(verl_uae(?:\.\w+)+)`", page.read_text(encoding="utf-8")):
        assert name in GROUPS or pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = [
        link
        for link in links
        if "://" not in link and not link.startswith("#") and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert not broken, f"{_name(page)}: {broken}"


def _paragraphs(page: Path) -> list[str]:
    """Blocks of lines of a page without its code and comments; what a blank line divides is two."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=_name)
def test_a_sentence_stands_before_every_table(page: Path) -> None:
    blocks = _paragraphs(page)
    tables = [(before, block) for before, block in zip(["#", *blocks], blocks, strict=False) if block.startswith("|")]
    assert not [table.partition("\n")[0] for before, table in tables if before.startswith(("#", "|", "    ", "!["))]


def test_a_cell_of_the_pitfalls_is_no_paragraph() -> None:
    rows = [row for block in _paragraphs(ROOT / "docs" / "pitfalls.md") for row in block.splitlines()]
    cells = [cell for row in rows if row.startswith("|") for cell in re.split(r"(?<!\\)\|", row)]
    assert len(cells) > 200 and not [cell for cell in cells if len(cell.split()) > 40]


def _keys_of_open_sections() -> Iterator[str]:
    """Keys of sections that the schema leaves open: verl's settings, and parameters of objectives."""
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig

    from verl_uae.flow.objective import get_objective
    from verl_uae.flow.objective.registry import OBJECTIVES

    for section, theirs in (("fsdp_config", FSDPEngineConfig), ("optim", FSDPOptimizerConfig)):
        yield from (f"uae.train.{section}.{field.name}" for field in dataclasses.fields(theirs))
    params = {"weight"}.union(*(get_objective(name).defaults for name in OBJECTIVES.names()))
    yield from (f"uae.u4g.objective.params.{name}" for name in params)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_quoted_keys_exist(page: Path) -> None:
    known = {*_schema_keys(schema.UAEConfig, "uae"), *_keys_of_open_sections()}
    known |= {f"uae.reward.terms[i].{field.name}" for field in dataclasses.fields(TermConfig)}
    if page.name == "CHANGELOG.md":
        # It says what keys were called.
        known |= RENAMED.keys()
    sections = {key.rpartition(".")[0] for key in known}
    quoted = set(re.findall(r"(?<![\w.])uae\.[a-z0-9_]+(?:\.[a-z0-9_]+|\[i\])*", page.read_text(encoding="utf-8")))
    unknown = {key.rstrip(".") for key in quoted} - known - sections - {"uae.reward.terms[i]"}
    assert not unknown, f"{_name(page)} names keys that the schema does not have: {sorted(unknown)}"


def test_quoted_tests_exist() -> None:
    """Every ``folder/test_file.py::test_name`` in the documentation is a test."""
    quoted = {
        match
        for page in PAGES
        for match in re.findall(r"`(?:tests/)?([a-z0-9_/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    }
    assert len(quoted) > 30
    missing = [
        f"{file}::{name}"
        for file, name in sorted(quoted)
        if f"def {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert not missing


def test_every_fault_in_the_table_names_the_test_that_provokes_it() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Faults")[2].partition("### How a run ends")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert len(rows) > 35
    unproven = [row for row in rows if not re.search(r"`[a-z0-9_/]+\.py::test_\w+`|as above", row.split(" | ")[-1])]
    assert not unproven


def test_every_key_of_the_schema_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    leaves = [
        key
        for key in _schema_keys(schema.UAEConfig, "uae")
        if not any(other.startswith(f"{key}.") for other in _schema_keys(schema.UAEConfig, "uae"))
    ]
    assert len(leaves) > 30
    assert [key for key in leaves if f"| `{key}` |" not in text] == []


def test_every_constant_of_the_decoder_policy_has_its_source() -> None:
    text = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
    keys = [
        key
        for key in _schema_keys(schema.UAEConfig, "uae")
        if key.startswith(("uae.train.", "uae.u4g.", "uae.unified."))
    ]
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    assert len(leaves) > 40
    assert [key for key in leaves if f"`{key}`" not in text] == []


def test_every_objective_kernel_and_preset_is_documented() -> None:
    from verl_uae.flow.config import KERNELS
    from verl_uae.flow.objective import get_objective
    from verl_uae.flow.objective.registry import OBJECTIVES

    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
    built_in = [name for name in OBJECTIVES.names() if "verl_uae.flow" in get_objective(name).function.__module__]
    for name in [*built_in, *KERNELS]:
        assert f"\n| `{name}` | " in text, name
    for name in built_in:
        assert all(f"`{param}`" in text for param in get_objective(name).defaults), name
    heads = " ".join(line for line in text.splitlines() if line.startswith("| | `"))
    for preset in PRESETS:
        assert f"`{preset}`" in heads and f"\n| `{preset}` | " in index, preset


def test_configuration_page_is_up_to_date() -> None:
    generator = _load(ROOT / "docs" / "generate_configuration.py")
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert generator.render() == written, "run: python docs/generate_configuration.py"
    assert "| |\n" not in written.replace("|---|", ""), "a field has no docstring"


def test_estimates_of_the_pages_are_up_to_date() -> None:
    """One row; all of them take minutes."""
    generator = _load(ROOT / "docs" / "generate_estimates.py")
    pages = {page: page.read_text(encoding="utf-8") for page in generator.TABLES}
    assert generator.family_row("sana_1600m") in pages[ROOT / "docs" / "families.md"], (
        "run: python docs/generate_estimates.py"
    )
    for page, tables in generator.TABLES.items():
        stubs = {name: lambda: "" for name in tables}
        assert generator.update(pages[page], stubs) != pages[page] and "not measured" in pages[page]


def test_every_reward_is_documented_with_its_bounds() -> None:
    from verl_uae.reward.registry import BUILT_IN, get_reward

    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    for name in BUILT_IN:
        low, high = get_reward(name).bounds
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), None)
        assert row is not None, f"docs/rewards.md has no row for {name}"
        assert f"| [{low:g}, {high:g}] |" in row, row


def _policy_metric_names() -> set[str]:
    """Metrics of the decoder policy: of the engine, of every objective, and what its trainers set by name."""
    import torch

    from tests.flow.objective.cases import Transitions, forward_inputs
    from verl_uae.engines.update_metrics import STATISTICS
    from verl_uae.flow.objective import bind_objective

    case = Transitions()
    inputs = case(case.old_velocity)
    figures = {"ratio", "log_prob_difference", "k", "velocity_rms", "loss", "reference_kl", "norm_excess"}
    with torch.no_grad():
        for objective in ("flow_grpo", "dppo", "grpo_guard"):
            figures |= set(bind_objective(objective)(inputs).metrics)
        for objective in ("nft", "awm", "dgpo", "crd"):
            figures |= set(bind_objective(objective)(forward_inputs()).metrics)
    names = {f"train/{figure}/{statistic}" for figure in figures for statistic in STATISTICS.get(figure, ("mean",))}
    for module in ("u4g/step", "u4g/trainer", "unified/trainer"):
        source = (ROOT / "verl_uae" / "stages" / f"{module}.py").read_text(encoding="utf-8")
        names |= set(re.findall(r'"((?:train|caption|unified)/[a-z_/]+)"', source))
    names.add("train/sampler_log_prob_difference/max")
    return names | {f"train/first/{name}" for name in ("ratio/max", "ratio/min", "log_prob_difference/max")}


def test_every_metric_is_documented() -> None:
    from tests.samples import caption, scored
    from verl_uae.stages.common.outcomes import outcome_metrics, validation_info
    from verl_uae.stages.g4u.trainer import chain_timing, overhead_metrics

    outcome = scored(0.5, a=0.5)
    seconds = {"caption": 1.0, "decode": 1.0, "score": 1.0, "draw": 2.0}
    names = set(outcome_metrics([outcome] * 2, [caption()] * 2, ["g", "g"], min_std=1e-3))
    names |= set(chain_timing(seconds, 2)) | set(overhead_metrics({"step": 4.0}, seconds))
    names |= {f"val-aux/<data_source>/{name}/mean@n" for name, value in validation_info(outcome, caption()).items()
              if not isinstance(value, str)}  # fmt: skip
    names |= _policy_metric_names() | {"reward/plain_sum/mean", "reward/tripwire/<label>"}
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {name.replace("reward/a/", "reward/<label>/").replace("term_a/", "term_<label>/") for name in names}
    assert sorted(name for name in names if f"`{name}`" not in text) == []


def test_row_of_the_data_page_is_valid() -> None:
    from verl_uae.data.schema import row_problem, row_schema

    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    block = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert block is not None
    row = yaml.safe_load(block.group(1))
    assert row_problem(row) is None
    assert set(row) == set(row_schema().names)
    assert set(row["extra_info"]) == {field.name for field in row_schema().field("extra_info").type}


# ---------------------------------------------------------------- commands, recipes


@pytest.fixture(scope="module")
def compose() -> Any:
    """Composes a config by name, as verl's entry point does, from a folder of its own if one is given."""
    pytest.importorskip("verl")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from tests.composing import composed

    def run(name: str, overrides: list[str], folder: Path | None = None) -> Any:
        if folder is None:
            return composed(*overrides, name=name)
        with initialize_config_dir(str(folder), version_base=None):
            return hydra_compose(name, overrides=[*overrides, "hydra.searchpath=[pkg://verl.trainer.config]"])

    return run


@pytest.fixture
def home(tiny_models: Path) -> Path:
    """Models and files that a command names: they are looked for, and not read."""
    return tiny_models


def _required(home: Path) -> list[str]:
    """The keys without default, as the README passes them."""
    data = home / "data"
    return [
        f"data.train_files={data / 'train.parquet'}",
        f"data.val_files={data / 'val.parquet'}",
        f"uae.decoder.path={home / 'decoder'}",
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=_name)
def test_recipes_compose_and_validate(recipe: Path, compose: Any, home: Path) -> None:
    from verl_uae.config.validate import validate

    stage = recipe.parents[1].name
    config = compose(recipe.stem, [*_required(home), f"++uae_home={home}"], recipe.parent)
    assert config.trainer.v1.trainer_mode == f"uae_{stage}"
    assert config.trainer.experiment_name == (f"scenes_{stage}" if recipe.stem == f"{stage}_scenes" else recipe.stem)
    validate(config)


@pytest.mark.parametrize("overrides", [[], ["uae/decoder=sd35_medium"]], ids=str)
@pytest.mark.parametrize("name", ["uae_g4u", "uae_u4g", "uae_unified"])
def test_gpu_command_of_the_readme_composes_and_validates(
    name: str, overrides: list[str], compose: Any, home: Path
) -> None:
    from verl_uae.config.validate import validate

    validate(compose(name, [*_required(home), *overrides]))


def test_megatron_is_refused_for_the_decoder_and_possible_for_the_captioner_beside_it(compose: Any, home: Path) -> None:
    """The commands of the recipes."""
    from verl_uae.config.validate import validate

    folder = ROOT / "recipes" / "uae" / "unified"
    block = re.search(
        r"run_fsdp\.sh unified (model_engine=megatron .*?)\n```", (folder / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert block is not None
    overrides = block.group(1).replace("\\\n", " ").split()
    name = "unified_qwen2_5_vl_3b_sd35_large"
    config = compose(name, [*_required(home), *overrides], folder / "config")
    validate(config)
    assert config.actor_rollout_ref.actor.strategy == "megatron" and config.uae.train.fsdp_config.strategy == "fsdp2"
    key = "uae.train.fsdp_config.strategy"
    with pytest.raises(ConfigError, match="no MM-DiT on Megatron"):
        validate(compose(name, [*_required(home), *overrides, f"{key}=megatron"], folder / "config"))
    for refused in (f"{key}=megatron", "model_engine=megatron"):
        with pytest.raises(ConfigError, match="no MM-DiT"):
            validate(compose("uae_u4g", [*_required(home), refused]))


def test_cpu_command_of_the_readme_composes_and_validates(compose: Any, home: Path) -> None:
    from verl_uae.config.validate import validate

    validate(compose("uae_g4u", ["hardware=cpu", "preset=scenes", f"uae_home={home}"]))


def test_a_command_without_decoder_is_refused_by_name(compose: Any, home: Path) -> None:
    from verl_uae.config.validate import validate

    with pytest.raises(ConfigError, match=r"uae\.decoder\.path"):
        validate(compose("uae_g4u", _required(home)[:2]))


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert script.stat().st_mode & 0o111, f"{_name(script)} is not executable"


def _run_script(script: str, stage: str, folder: Path, variables: dict[str, str]) -> tuple[int, list[list[str]]]:
    """Run a script with stand-ins for the programs it starts; its exit code and the commands it gave."""
    folder.mkdir()
    record = folder / "commands"
    for name in ("python3", "ray", "verl-uae"):
        program = folder / name
        program.write_text(f'#!/usr/bin/env bash\nprintf "%s\\0" "{name}" "$@" >>"{record}"\necho >>"{record}"\n')
        program.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "OUTPUT_DIR": str(folder / "out"), **variables}
    command = ["bash", str(ROOT / "recipes" / "uae" / script), stage, "trainer.total_training_steps=7"]
    code = subprocess.run(command, env=environment, capture_output=True, check=False).returncode
    lines = record.read_text(encoding="utf-8").split("\0\n") if record.exists() else []
    return code, [line.split("\0") for line in lines if line]


@pytest.mark.parametrize("size", ["24gb", "80gb"])
def test_the_script_starts_the_yaml_that_is_named(size: str, compose: Any, home: Path, tmp_path: Path) -> None:
    from verl_uae.config.validate import validate

    names = ("TRAIN_FILE", "VAL_FILE", "DECODER_PATH")
    files = {name: word.partition("=")[2] for name, word in zip(names, _required(home), strict=True)}
    name = f"g4u_qwen2_5_vl_3b_sd35_medium_lora_{size}"
    code, commands = _run_script("run_fsdp.sh", "g4u", tmp_path / "run", {**files, "CONFIG": name})
    assert code == 0
    words = commands[-1]
    config = compose(name, [word for word in words if "=" in word], Path(words[words.index("--config-dir") + 1]))
    validate(config)
    assert config.trainer.n_gpus_per_node == 1 and config.actor_rollout_ref.model.lora_rank == 32
    assert config.trainer.experiment_name == name == words[words.index("--config-name") + 1]
    assert _run_script("run_fsdp.sh", "g4u", tmp_path / "none", {**files, "CONFIG": "no_such"}) == (2, [])


@pytest.mark.parametrize("stage", STAGES)
def test_pages_of_stages_have_one_shape_and_name_keys_that_there_are(stage: str) -> None:
    text = (ROOT / "recipes" / "uae" / stage / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "What is needed",
        "Command",
        "Keys",
        "Log",
        "Result",
        "Faults",
    ]
    known = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = ""
    for key in re.findall(r"`([a-z0-9_.]+)`", text.split("## Keys")[1].split("###")[0]):
        section = key.rpartition(".")[0] if key.startswith("uae.") else section
        # A key without its beginning goes on from that of the one before.
        names = [key] if key.startswith("uae.") else [f"{section}.{key}", f"{section.rpartition('.')[0]}.{key}"]
        if section:
            assert any(f"`{name}`" in known for name in names), key


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("script", "nodes"), [("run_fsdp.sh", 1), ("run_multinode_fsdp.sh", 2)])
def test_scripts_give_commands_that_compose_and_validate(
    stage: str, script: str, nodes: int, compose: Any, home: Path, tmp_path: Path
) -> None:
    from verl_uae.config.validate import validate

    cluster = {"NODE_RANK": "0", "HEAD_ADDRESS": "10.0.0.1", "RAY_AUTH_TOKEN": "secret"} if nodes > 1 else {}
    names = ("TRAIN_FILE", "VAL_FILE", "DECODER_PATH")
    files = {name: word.partition("=")[2] for name, word in zip(names, _required(home), strict=True)}
    code, commands = _run_script(script, stage, tmp_path / "run", {**files, **cluster})
    assert code == 0
    train = next(command for command in commands if "verl.trainer.main_ppo" in command)
    folder, name = Path(train[train.index("--config-dir") + 1]), train[train.index("--config-name") + 1]
    overrides = [word for word in train if "=" in word]
    config = compose(name, overrides, folder)
    validate(config)
    assert config.uae.stage == stage and config.trainer.total_training_steps == 7
    assert config.trainer.nnodes == nodes and config.trainer.n_gpus_per_node == 8
    assert config.trainer.experiment_name == name == f"{stage}_qwen2_5_vl_3b_sd35_large{'_2nodes' * (nodes > 1)}"
    batches = {"u4g": 48, "pretrain": 256, "cold_start": 64}
    assert config.data.train_batch_size == batches.get(stage, 8 * nodes)
    if stage in ("u4g", "unified") and nodes > 1:
        # The batches of every preset split evenly there too, as the recipe says.
        for preset in PRESETS:
            validate(compose(name, [*overrides, f"decoder/objective={preset}"], folder))
    if nodes > 1:
        assert config.ray_kwargs.ray_init.address == "auto"
        assert [command[:2] for command in commands if command[0] == "ray"] == [["ray", "start"], ["ray", "stop"]]
        code, commands = _run_script(script, stage, tmp_path / "other", {**cluster, "NODE_RANK": "1"})
        assert code == 0
        assert [command[:3] for command in commands] == [["ray", "start", "--address=10.0.0.1:6379"]]
        assert _run_script(script, stage, tmp_path / "three", {**files, **cluster, "NNODES": "3"}) == (2, [])
    for missing in (*files, *cluster):
        rest = {**files, **cluster}
        del rest[missing]
        code, commands = _run_script(script, stage, tmp_path / missing, rest)
        assert code != 0
        assert commands == []


@pytest.mark.parametrize("script", [script.name for script in SCRIPTS if script.name.startswith("run")])
@pytest.mark.parametrize("stage", ["", "g4", "g4u pretrain", "*", "."])
def test_an_unknown_stage_is_named_with_those_that_exist(script: str, stage: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "NODE_RANK": "0", "HEAD_ADDRESS": "10.0.0.1"}
    command = ["bash", str(ROOT / "recipes" / "uae" / script), stage]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.endswith(f"STAGE one of: {' '.join(sorted(STAGES))}\n")
    assert result.stderr.startswith(f"unknown stage {stage}; usage: " if stage else "usage: ")


def test_cpu_script_gives_a_command_that_parses(tmp_path: Path) -> None:
    from verl_uae.cli import parse

    code, commands = _run_script("run_scenes_cpu_fsdp.sh", "g4u", tmp_path / "run", {"STEPS": "3"})
    assert code == 0
    args = parse(commands[0][1:])
    assert (args.out, args.steps, args.seed) == (tmp_path / "run" / "out", 3, 0)
    assert args.overrides == ["trainer.total_training_steps=7"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "g4u"])
def test_cpu_scripts_of_the_other_stages_give_commands_that_compose_and_validate(
    stage: str, compose: Any, home: Path, tmp_path: Path
) -> None:
    from verl_uae.config.validate import validate

    variables = {"SCENES_DIR": str(home), "SEED": "3", "STEPS": "9", "TURN": "5"}
    code, commands = _run_script("run_scenes_cpu_fsdp.sh", stage, tmp_path / "run", variables)
    assert code == 0 and len(commands) == 1
    folder, name = (commands[0][commands[0].index(option) + 1] for option in ("--config-dir", "--config-name"))
    overrides = [word for word in commands[0] if "=" in word]
    assert "trainer.total_training_steps=9" in overrides
    config = compose(name, overrides, Path(folder))
    validate(config)
    assert config.uae.stage == stage and config.uae.seed == 3
    assert config.trainer.total_training_steps == config.trainer.save_freq == 7
    assert (config.uae.unified.g4u_steps == config.uae.unified.u4g_steps == 5) == (stage == "unified")
    if stage in ("u4g", "unified"):
        # SSIM is gamed by a decoder that learns; it may only be watched.
        terms = [(term.name, bool(term.get("held_out"))) for term in config.uae.reward.terms]
        assert terms == [("pixel", False), ("ssim", True)] and config.uae.reward.terms[0].params.k == 20
        assert config.uae.u4g.captions.source == ("column" if stage == "u4g" else "captioner")
    nowhere = {"SCENES_DIR": str(tmp_path / "no")}
    code, commands = _run_script("run_scenes_cpu_fsdp.sh", stage, tmp_path / "none", nowhere)
    assert code != 0 and commands == []


@pytest.mark.parametrize("path", REQUIREMENTS, ids=_name)
def test_required_verl_parses_and_agrees_with_the_package(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert {"UPSTREAM", "MODE", "TAG", "PIP_INSTALL", "NOTES", "REFRESH"} <= set(values)
    assert all(re.fullmatch(r"[A-Z_]+", key) and value for key, value in values.items())
    version = values["TAG"].removeprefix("v")
    assert f"verl=={version}" in values["PIP_INSTALL"]
    assert f"verl[vllm]=={version}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert values["PIP_INSTALL"] in (path.parent / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- code in the documentation


def _reward_of_the_readme(folder: Path) -> Path:
    block = re.search(
        r"```python\n(# my_reward\.py.*?)```", (ROOT / "docs" / "first_steps.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    path = folder / "my_reward.py"
    path.write_text(block.group(1), encoding="utf-8")
    path.chmod(0o644)
    return path


def test_rewards_of_the_documentation_work(tmp_path: Path) -> None:
    import torch

    from verl_uae.reward import RewardBatch, RewardScorer

    source_B3HW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    drawn_B3HW = torch.stack([source_B3HW[0], source_B3HW[1].flip(-1)])
    batch = RewardBatch(source_B3HW, drawn_B3HW, captions=["a", "b"], rows=[{}, {}])
    files = [_reward_of_the_readme(tmp_path), ROOT / "examples" / "custom_reward.py"]
    # The other files of rewards/ need models, servers or text; tests/rewards runs them.
    for path in [*files, ROOT / "rewards" / "color_histogram.py"]:
        same, other = RewardScorer([("custom", 1.0, {"path": str(path)})]).score(batch)
        assert same.value == pytest.approx(1.0, abs=1e-9), path
        assert other.value is not None and other.value <= same.value, path


def test_example_reward_is_the_correlation_of_edges() -> None:
    import numpy as np

    module = _load(ROOT / "examples" / "custom_reward.py")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    other = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def strength(image: Image.Image) -> np.ndarray:
        gray = np.asarray(image.convert("L")) / 255.0
        return np.array(
            [
                [abs(gray[y + 1, x] - gray[y, x]) + abs(gray[y, x + 1] - gray[y, x]) for x in range(15)]
                for y in range(15)
            ]
        )

    images = {"source_image": Image.fromarray(pixels), "reconstruction": Image.fromarray(other)}
    expected = np.corrcoef(strength(images["source_image"]).ravel(), strength(images["reconstruction"]).ravel())[0, 1]
    assert module.compute_score("", "two words", None, images)["score"] == pytest.approx(0.5 + 0.5 * expected)
    assert module.compute_score("", "two words", None, images, max_words=1)["score"] == 0.0
    flat = {**images, "reconstruction": Image.new("RGB", (16, 16))}
    assert np.isnan(module.compute_score("", "", None, flat)["score"])


@pytest.mark.usefixtures("own_objectives")
def test_example_objective_runs_and_its_command_composes(compose: Any, home: Path) -> None:
    """Loaded as a run loads it: its loss against the formula, its gradient against finite differences, its command."""
    import torch

    from tests.flow.objective.cases import Transitions
    from verl_uae.config.validate import validate
    from verl_uae.flow.objective import bind_objective

    path = ROOT / "examples" / "custom_objective.py"
    objective = bind_objective("soft_region", {"weight": 40.0}, str(path), kernel="cps")
    case = Transitions("cps")
    velocity = case.nearby(0.1).requires_grad_()
    inputs = case(velocity)
    output = objective(inputs)
    ratio = (inputs.log_prob_B - inputs.old_log_prob_B).exp()
    k = (inputs.mean_BCHW - inputs.old_mean_BCHW).square().mean((1, 2, 3)) / (2.0 * inputs.std**2)
    assert torch.allclose(output.loss_B, -inputs.advantage_B * ratio + 40.0 * k, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda v: objective(case(v)).loss_B, velocity, eps=1e-6, atol=1e-9, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"params\.weight"):
        bind_objective("soft_region", {"weight": 0.0}, str(path))
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    block = re.search(r"--config-name uae_u4g \.\.\. \\\n(.*?)```", text, re.DOTALL)
    assert block is not None
    words = block.group(1).replace("\\\n", " ").replace("'", "").replace("examples/", f"{path.parent}/").split()
    config = compose("uae_u4g", [*_required(home), *words])
    validate(config)
    assert config.uae.u4g.objective.params == {"weight": 300}


def test_documented_commands_parse_and_lack_nothing() -> None:
    from verl_uae.bench.backbones import choose
    from verl_uae.cli import parse

    needed = {backbone.name for backbone in choose() if backbone.source is None}
    count = 0
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["verl-uae"] or "--help" in words:
                continue
            count += 1
            try:
                args = parse(words[1:-1] if words[-1] == "..." else words[1:])
            except SystemExit:
                pytest.fail(f"{_name(page)}: {line}")
            if getattr(args, "bench", None) == "unified" and words[-1] != "...":
                # Without its checkpoint the command is refused, or its result has no overall score.
                asked = needed & set(args.only) if args.only else needed
                assert asked <= {text.partition("=")[0] for text in args.backbone}, line
    assert count > 40


def test_examples_explain_themselves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = str(ROOT / "examples" / "reconstruct.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(script, run_name="__main__")
    assert "--model" in capsys.readouterr().out


@pytest.mark.slow
def test_reconstruct_example_runs(tmp_path: Path) -> None:
    from tests.e2e.world import build_model, build_world

    world = build_world(tmp_path / "world")
    model, out = build_model(world), tmp_path / "drawn.png"
    picture = tmp_path / "picture.png"
    first_pictures(world / "data" / "val.parquet", 1)[0].decode().save(picture)
    words = ["--model", str(model), "--image", str(picture), "--out", str(out)]
    command = [sys.executable, str(ROOT / "examples" / "reconstruct.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "(ok)" in result.stdout
    with Image.open(out) as drawn:
        assert drawn.size == (32, 32)


def test_nothing_tells_people_to_install_from_an_index_that_does_not_have_it() -> None:
    """verl-uae is on no package index: it is installed from a checkout."""
    asked = re.compile(r"pip install[^\n]*\bverl[-_]uae\b(?!\.git)")
    kinds = ("*.md", "*.py", "*.yaml", "*.sh", "REQUIRED_VERL.txt")
    folders = ("verl_uae", "docs", "recipes", "rewards", "examples")
    files = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    files += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
    assert len(files) > 300
    assert asked.search('pip install "verl-uae[gpu]"')
    assert not [str(path) for path in files if asked.search(path.read_text(encoding="utf-8"))]
