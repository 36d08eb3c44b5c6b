# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How long a step takes on many GPUs, by schedule, and how to split them: simulated before they are rented.

What a GPU has to do, and how long it works at it, is the estimate's (:mod:`verl_uae.estimate`). Here is what an
estimate of one GPU cannot say: who waits for whom. Captions differ in length and the longest is waited for, pools work
beside each other or in turns, weights arrive beside the work or late, and one process controls them all. ``events`` is
the clock, ``load`` what a step consists of (``loads`` has it from an estimate), ``servers`` and ``schedules`` who does
it when, ``planner`` the search over counts of GPUs and their splits.
"""
