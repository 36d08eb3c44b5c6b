# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import pytest

from verl_uae.data.rows import BadItem
from verl_uae.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DecodeError,
    DecoderError,
    RewardError,
    StoppedError,
    UAEError,
    WorkerError,
    describe,
)

ERRORS = [
    (ConfigError("uae.reward.terms", "empty"), "uae.reward.terms: empty"),
    (DataError("a.parquet", None, "empty"), "a.parquet: empty"),
    (DecodeError("a.parquet", 3, "not a picture"), "a.parquet, row 3: not a picture"),
    (RewardError("clip", "hangs"), "reward term 'clip': hangs"),
    (DecoderError(3, "is gone"), "decoder rank 3: is gone"),
    (WorkerError("caption server 0", "died"), "caption server 0: died"),
    (StoppedError("stopped by SIGTERM"), "stopped by SIGTERM"),
    (CheckpointError("step_3", "is incomplete"), "step_3: is incomplete"),
]


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_says_where_and_survives_pickling(error: UAEError, text: str) -> None:
    assert isinstance(error, UAEError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@host/a/0.tar?token=abc", "http:/...@host/a/0.tar?..."),
        ("https://host/a/0.tar?X-Signature=abc&b=c", "https:/host/a/0.tar?..."),
        ("s3://bucket/a b.tar", "s3:/bucket/a b.tar"),
        ("/data/a@2/0.tar", "/data/a@2/0.tar"),
    ],
)
def test_urls_are_named_without_what_opens_them(url: str, shown: str) -> None:
    assert str(DataError(url, 3, "gone")) == f"{shown}, row 3: gone"
    assert (
        str(ConfigError("data.train_files", f"{url}: gone")) == f"data.train_files: {shown.replace(':/', '://')}: gone"
    )
    assert str(BadItem(url, None, f"curl said {url}")).count("secret") == 0


def test_an_error_of_another_process_is_its_cause_in_one_line() -> None:
    class TaskError(Exception):
        """As Ray's: its text is a traceback, its cause what was raised there."""

        def __init__(self, cause: Exception) -> None:
            super().__init__("\x1b[36mray::Server.generate()\x1b[39m\n  File x\n" * 40)
            self.cause = cause

    inner = FloatingPointError("the logits are not finite\nat token 0")
    assert describe(TaskError(TaskError(inner))) == "FloatingPointError: the logits are not finite"
    heading = RuntimeError("Error(s) in loading state_dict for Model:\n\tsize mismatch for a.weight\n\tand more")
    assert describe(heading) == "RuntimeError: Error(s) in loading state_dict for Model: size mismatch for a.weight"
    assert describe(KeyError()) == "KeyError: "
    one, other = TaskError(inner), TaskError(inner)
    one.cause, other.cause = other, one
    assert describe(one).startswith("TaskError"), "of a ring, one"
