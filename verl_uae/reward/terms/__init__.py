# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The built-in reward terms. Import them through the registry: some need optional packages."""
