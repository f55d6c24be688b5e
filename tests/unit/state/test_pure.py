"""The state machine imports nothing that could make two members differ, or that waits."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import metadata.state

MODULES = sorted(Path(metadata.state.__file__).parent.glob("*.py"))
ALLOWED = {
    *("__future__", "abc", "bisect", "collections", "contextlib", "dataclasses", "enum", "math", "stat", "struct"),
    *("typing", "blake3", "msgspec", "metadata.api", "metadata.lockset", "metadata.placement", "metadata.state"),
    "node.wire",
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            inner = node.module == "metadata"
            names.update([f"metadata.{alias.name}" for alias in node.names] if inner else [node.module])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_imports(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        assert any(".".join(parts[:length]) in ALLOWED for length in range(1, len(parts) + 1)), name
