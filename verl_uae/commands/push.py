# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae push``: a model folder to a model hub, by huggingface_hub."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.errors import ConfigError
from verl_uae.paths import argument_path, has_form_of_hub_id
from verl_uae.text import one_line

EXAMPLE = """example:
  verl-uae export RUN/global_step_1000 --out MODEL
  hf auth login                                 # once, or set HF_TOKEN
  verl-uae push MODEL you/your-model --private
"""


def push(folder: Path, repository: str, *, private: bool, message: str, say: Callable[[str], Any] = print) -> int:
    """Send a model folder, once every file is what its manifest says; what the hub has already is not sent again.

    Args:
        folder: as ``verl-uae import`` or ``export`` wrote it.
        repository: id on the hub, ``owner/name``, made if there is none.
        private: of a repository that is made.
        message: of the commit.
        say: gets a line of what was done.

    Raises:
        CheckpointError: the folder is not what its manifest says.
        ConfigError: the id is none, or the hub refuses or cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if not has_form_of_hub_id(repository):
        raise ConfigError("REPOSITORY", f"must be an id on the hub, owner/name, got {repository!r}")
    files = verify_folder(folder)["files"]
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise ConfigError("push", "nobody is logged in: `hf auth login`, or set HF_TOKEN") from error
    except HFValidationError as error:
        raise ConfigError("REPOSITORY", one_line(str(error))) from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        remedy = "; is the token one that may write there?" if code in (401, 403) else ""
        raise ConfigError("push", f"the hub refused {repository}: {one_line(str(error))}{remedy}") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError("push", "HF_HUB_OFFLINE forbids to ask the hub; unset it") from error
    except (httpx.HTTPError, OSError) as error:
        what = f"{type(error).__name__}: {one_line(str(error))}"
        raise ConfigError("push", f"{constants.ENDPOINT} cannot be reached, or a file not be read ({what})") from error
    except (ValueError, KeyError) as error:
        what = f"{type(error).__name__}: {one_line(str(error))}"
        raise ConfigError("push", f"{constants.ENDPOINT} does not answer as a hub does ({what})") from error
    size = sum(int(facts["size"]) for facts in files.values()) / 2**30
    say(f"{len(files)} files, {size:.2f} GiB: {address}")
    return 0


def add_parser(commands: Any) -> None:
    """Add ``push`` to the command ``verl-uae``."""
    parser = commands.add_parser(
        "push",
        help="send a model folder to a model hub, after checking every file",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=argument_path, help="model folder that `verl-uae export` wrote")
    parser.add_argument("repository", help="owner/name, made if there is none")
    parser.add_argument("--private", action="store_true", help="of a repository that is made")
    parser.add_argument("--message", default="A model of verl-uae", help="of the commit (default: %(default)s)")
    parser.set_defaults(run=lambda args: push(args.folder, args.repository, private=args.private, message=args.message))
