# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae import``, ``export`` and ``verify``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from verl_uae.checkpoints.names import STEP_PREFIX
from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, existing_folder, model_source

_LENGTH = 640


def add_parser(subparsers: Any) -> None:
    """Add the three commands to what ``ArgumentParser.add_subparsers`` returned."""
    importer = subparsers.add_parser("import", help="make a model folder from other layouts")
    sources = importer.add_subparsers(dest="layout", required=True)
    _add_sd3(sources)
    _add_release(sources)
    _add_decoder(sources)
    _add_export(subparsers)
    verifier = subparsers.add_parser("verify", help="check every file of a model folder against its manifest")
    verifier.add_argument("folder", type=argument_path)
    verifier.set_defaults(run=_verify)


def _add_sd3(sources: Any) -> None:
    sd3 = sources.add_parser("sd3", help="SD3 or SD3.5 and a vision-language model, with a fresh projector")
    sd3.add_argument("--sd3", required=True, metavar="MODEL", help="diffusers folder or hub id")
    sd3.add_argument("--sd3-revision", metavar="REV", help="commit, tag or branch on the hub")
    sd3.add_argument("--captioner", required=True, metavar="MODEL", help="vision-language model: folder or hub id")
    sd3.add_argument("--captioner-revision", metavar="REV", help="commit, tag or branch on the hub")
    sd3.add_argument("--hidden-dim", type=int, default=8192, help="width inside the projector (default 8192)")
    sd3.add_argument("--seed", type=int, default=0, help="seed of the projector (default 0)")
    trusted = "accept Python code of the captioner's repository; needs --captioner-revision with a full commit"
    sd3.add_argument("--trust-remote-code", action="store_true", dest="remote_code", help=trusted)
    _add_last(sd3, _LENGTH)
    sd3.set_defaults(run=_import_sd3)


def _add_release(sources: Any) -> None:
    release = sources.add_parser("release", help="the official UAE weights, adapters multiplied out")
    release.add_argument("release", metavar="MODEL", help="folder of the release or hub id")
    release.add_argument("--revision", metavar="REV", help="commit, tag or branch on the hub")
    _add_last(release, _LENGTH)
    release.set_defaults(run=_import_release)


def _add_decoder(sources: Any) -> None:
    decoder = sources.add_parser("decoder", help="a decoder of any family that needs no projector, and a captioner")
    decoder.add_argument("--decoder", required=True, metavar="MODEL", help="diffusers folder as published, or hub id")
    decoder.add_argument("--decoder-revision", metavar="REV", help="commit, tag or branch on the hub")
    shared = "vision-language model, folder or hub id; makes the conditions too where the decoder reads such a model"
    decoder.add_argument("--captioner", required=True, metavar="MODEL", help=shared)
    decoder.add_argument("--captioner-revision", metavar="REV", help="commit, tag or branch on the hub")
    trusted = "accept Python code of the captioner's repository; needs --captioner-revision with a full commit"
    decoder.add_argument("--trust-remote-code", action="store_true", dest="remote_code", help=trusted)
    place = "where the folder goes; must not exist"
    decoder.add_argument("--out", type=argument_path, required=True, metavar="DIR", help=place)
    decoder.set_defaults(run=_import_decoder)


def _add_export(subparsers: Any) -> None:
    export = subparsers.add_parser("export", help="make a model folder, or an adapter, of a training checkpoint")
    export.add_argument("checkpoint", type=argument_path, help=f"{STEP_PREFIX}<N> folder")
    export.add_argument("--weights", choices=["ema", "live"], help="default: ema, where the run averaged")
    export.add_argument("--lora", choices=["peft", "diffusers"], help="write the adapter alone, in this layout")
    whose = "whose adapter, where a run trained both"
    export.add_argument("--part", choices=["captioner", "decoder"], help=whose)
    export.add_argument("--lora-alpha", type=float, help="scale of the adapter, where the checkpoint does not say")
    own = "configuration of the run, in place of its own"
    export.add_argument("--run-config", type=argument_path, metavar="FILE", help=own)
    export.add_argument("--decoder", metavar="MODEL", help="decoder folder the run started from")
    export.add_argument("--captioner", metavar="MODEL", help="captioner, where the run did not train it")
    export.add_argument("--language-model", metavar="MODEL", help="model whose states are the condition")
    export.add_argument("--decoder-only", action="store_true", help="leave captioner and language model out")
    figures = "JSON object of figures for the model card"
    export.add_argument("--evaluation", type=argument_path, metavar="FILE", help=figures)
    strip = "picture for the model card, for all who get the folder; a run writes RUN/panels/step_N.png"
    export.add_argument("--pictures", type=argument_path, metavar="FILE", help=strip)
    export.add_argument("--caption-prompt", metavar="TEXT", help="what asks for a caption (default: as the run did)")
    export.add_argument("--caption-system", metavar="TEXT", help='system turn before it, "" for none')
    _add_last(export, None)
    export.set_defaults(run=_export)


def _add_last(parser: argparse.ArgumentParser, length: int | None) -> None:
    said = f"text positions of the condition ({f'default {length}' if length else 'default: of the run'})"
    parser.add_argument("--condition-length", type=int, default=length, help=said)
    parser.add_argument("--condition-role", default="generate" if length else None, help="chat role of the caption")
    place = "where the folder goes; must not exist"
    parser.add_argument("--out", type=argument_path, required=True, metavar="DIR", help=place)


def _settings(kind: Any, args: argparse.Namespace) -> Any:
    """A record of the arguments of its fields' names."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)})


def _import_sd3(args: argparse.Namespace) -> int:
    args.sd3, args.captioner = model_source(args.sd3, "--sd3"), model_source(args.captioner, "--captioner")
    from verl_uae.checkpoints.imports import Sd3Import, import_sd3

    return _say(args.out, import_sd3(_settings(Sd3Import, args), args.out))


def _import_release(args: argparse.Namespace) -> int:
    args.release = model_source(args.release)
    from verl_uae.checkpoints.imports import ReleaseImport, import_release

    return _say(args.out, import_release(_settings(ReleaseImport, args), args.out))


def _import_decoder(args: argparse.Namespace) -> int:
    args.decoder = model_source(args.decoder, "--decoder")
    args.captioner = model_source(args.captioner, "--captioner")
    from verl_uae.checkpoints.imports import DecoderImport, import_decoder

    return _say(args.out, import_decoder(_settings(DecoderImport, args), args.out))


def _export(args: argparse.Namespace) -> int:
    existing_folder(args.checkpoint)
    for name in ("decoder", "captioner", "language_model"):
        if (value := getattr(args, name)) is not None:
            setattr(args, name, model_source(value, f"--{name.replace('_', '-')}"))
    from verl_uae.checkpoints.export import ExportSettings, export_adapters, export_checkpoint

    settings = _settings(ExportSettings, args)
    if args.lora is None:
        if args.part is not None:
            raise ConfigError("--part", "says whose adapter --lora writes; a model folder has both parts")
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
