# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training command needs, before it is run: operations, memory and time of every phase, on GPUs of a type.

The command's own configuration is composed and checked (``composing``), its models are built on ``meta`` (``models``)
and every phase of a step (``phases``) is executed there piece by piece (``work``) under counters of operations and of
live bytes (``meter``). FSDP2's shards, which cut every parameter along its first dimension, are counted. Seconds follow
from ``rates``. Not counted: operations that are neither products nor convolutions nor attention, Ray, reward terms
without a network that is known here.

A training command uses its own estimate too (``run``): for what it decides at the start, and for what the log says of
the peak.
"""
