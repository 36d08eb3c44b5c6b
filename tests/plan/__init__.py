# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
