# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae import``, ``export`` and ``verify``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from verl_uae.checkpoints.names import STEP_PREFIX
from verl_uae.paths import argument_path, existing_folder, model_source

_LENGTH = 640


def add_parser(subparsers: Any) -> None:
    """Add the three commands to what ``ArgumentParser.add_subparsers`` returned."""
    importer = subparsers.add_parser("import", help="make a model folder from other layouts")
    sources = importer.add_subparsers(dest="layout", required=True)
    _add_sd3(sources)
    _add_release(sources)
    _add_export(subparsers)
    verifier = subparsers.add_parser("verify", help="check every file of a model folder against its manifest")
    verifier.add_argument("folder", type=argument_path)
    verifier.set_defaults(run=_verify)


def _add_sd3(sources: Any) -> None:
    sd3 = sources.add_parser("sd3", help="SD3 or SD3.5 and Qwen2.5-VL, with a fresh projector")
    sd3.add_argument("--sd3", required=True, metavar="MODEL", help="diffusers folder or hub id")
    sd3.add_argument("--sd3-revision", metavar="REV", help="commit, tag or branch on the hub")
    sd3.add_argument("--encoder", required=True, metavar="MODEL", help="Qwen2.5-VL folder or hub id")
    sd3.add_argument("--encoder-revision", metavar="REV", help="commit, tag or branch on the hub")
    sd3.add_argument("--hidden-dim", type=int, default=8192, help="width inside the projector (default 8192)")
    sd3.add_argument("--seed", type=int, default=0, help="seed of the projector (default 0)")
    sd3.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="accept Python code of the encoder's repository; needs --encoder-revision with a full commit",
    )
    _add_condition(sd3, _LENGTH)
    _add_out(sd3)
    sd3.set_defaults(run=_import_sd3)


def _add_release(sources: Any) -> None:
    release = sources.add_parser("release", help="the official UAE weights, adapters multiplied out")
    release.add_argument("release", metavar="MODEL", help="folder of the release or hub id")
    release.add_argument("--revision", metavar="REV", help="commit, tag or branch on the hub")
    _add_condition(release, _LENGTH)
    _add_out(release)
    release.set_defaults(run=_import_release)


def _add_export(subparsers: Any) -> None:
    export = subparsers.add_parser("export", help="make a model folder, or an adapter, of a training checkpoint")
    export.add_argument("checkpoint", type=argument_path, help=f"{STEP_PREFIX}<N> folder")
    export.add_argument("--weights", choices=["ema", "live"], help="default: ema, where the run averaged")
    export.add_argument("--lora", choices=["peft", "diffusers"], help="write the adapter alone, in this layout")
    export.add_argument("--lora-alpha", type=float, help="scale of the adapter, where the checkpoint does not say")
    export.add_argument(
        "--run-config", type=argument_path, metavar="FILE", help="configuration of the run, in place of its own"
    )
    export.add_argument("--decoder", metavar="MODEL", help="decoder folder the run started from")
    export.add_argument("--encoder", metavar="MODEL", help="captioner, where the run did not train it")
    export.add_argument("--language-model", metavar="MODEL", help="model whose states are the condition")
    export.add_argument("--decoder-only", action="store_true", help="leave captioner and language model out")
    export.add_argument("--merge-captioner", action="store_true", help="put the captioner together from its shards")
    export.add_argument(
        "--evaluation", type=argument_path, metavar="FILE", help="JSON object of figures for the model card"
    )
    _add_condition(export, None)
    export.add_argument("--caption-prompt", metavar="TEXT", help="what asks for a caption (default: as the run did)")
    export.add_argument("--caption-system", metavar="TEXT", help='system turn before it, "" for none')
    _add_out(export)
    export.set_defaults(run=_export)


def _add_condition(parser: argparse.ArgumentParser, length: int | None) -> None:
    said = f"default {length}" if length else "default: of the run"
    parser.add_argument(
        "--condition-length", type=int, default=length, help=f"text positions of the condition ({said})"
    )
    parser.add_argument("--condition-role", default="generate" if length else None, help="chat role of the caption")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=argument_path, required=True, metavar="DIR", help="where the folder goes; must not exist"
    )


def _import_sd3(args: argparse.Namespace) -> int:
    sources = {name: model_source(getattr(args, name), f"--{name}") for name in ("sd3", "encoder")}
    from verl_uae.checkpoints.from_sd3 import Sd3Import, import_sd3

    settings = Sd3Import(
        **sources,
        hidden_dim=args.hidden_dim,
        seed=args.seed,
        sd3_revision=args.sd3_revision,
        encoder_revision=args.encoder_revision,
        remote_code=args.trust_remote_code,
        condition_length=args.condition_length,
        condition_role=args.condition_role,
    )
    return _say(args.out, import_sd3(settings, args.out))


def _import_release(args: argparse.Namespace) -> int:
    release = model_source(args.release)
    from verl_uae.checkpoints.from_release import ReleaseImport, import_release

    settings = ReleaseImport(
        release,
        revision=args.revision,
        condition_length=args.condition_length,
        condition_role=args.condition_role,
    )
    return _say(args.out, import_release(settings, args.out))


def _export(args: argparse.Namespace) -> int:
    existing_folder(args.checkpoint)
    for name in ("decoder", "encoder", "language_model"):
        if (value := getattr(args, name)) is not None:
            setattr(args, name, model_source(value, f"--{name.replace('_', '-')}"))
    from verl_uae.checkpoints.export import ExportSettings, export_adapters, export_checkpoint

    settings = ExportSettings(
        weights=args.weights,
        decoder=args.decoder,
        encoder=args.encoder,
        language_model=args.language_model,
        decoder_only=args.decoder_only,
        merge_captioner=args.merge_captioner,
        lora_alpha=args.lora_alpha,
        run_config=args.run_config,
        condition_length=args.condition_length,
        condition_role=args.condition_role,
        caption_prompt=args.caption_prompt,
        caption_system=args.caption_system,
        evaluation=args.evaluation,
    )
    if args.lora is None:
        return _say(args.out, export_checkpoint(args.checkpoint, args.out, settings))
    export_adapters(args.checkpoint, args.out, settings, args.lora)
    print(f"{args.out}: adapter in the layout of {args.lora}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    existing_folder(args.folder)
    from verl_uae.checkpoints.manifest import verify_folder

    return _say(args.folder, verify_folder(args.folder))


def _say(folder: Path, manifest: dict[str, Any]) -> int:
    size = sum(facts["size"] for facts in manifest["files"].values())
    print(f"{folder}: {len(manifest['files'])} files, {size} bytes, as in the manifest")
    return 0
