# SPDX-License-Identifier: Apache-2.0
"""Trains ranking models for many tasks and scenarios, with large sharded embedding tables."""

__version__ = "0.1.0"
