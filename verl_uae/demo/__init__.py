# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A local web page around the pipeline: upload a picture, edit its caption, draw it again."""
