"""Every test here that ends with a living cluster ends with the auditor, who must find nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import harness


@pytest.fixture(autouse=True, scope="package")
def audited() -> Iterator[None]:
    """Have clusters that are made here audited before they are cleaned up."""
    harness.AUDIT_AT_END = True
    yield
    harness.AUDIT_AT_END = False
