"""Marks of tests."""

from typing import Any

import pytest


def slow(*case: Any) -> Any:
    """A case of a parametrized test that is marked as slow."""
    return pytest.param(*case, marks=pytest.mark.slow)
