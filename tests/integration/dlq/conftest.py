"""A pipeline for each test."""

from __future__ import annotations

from tests.support.pipeline_fixtures import migrated, pipeline

__all__ = ["migrated", "pipeline"]
