"""What ``fusefs clone`` asks of who calls it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusefs.cli.cmd_clone import _check, _user
from fusefs.cli.output import Failure
from tests.harness import CI

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be another user for a moment, with no right that root has."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody reaches, with a tree that everybody may read and a place that everybody may write."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        made.chmod(0o755)
        (made / "source" / "sub").mkdir(parents=True)
        (made / "source" / "sub" / "file").write_text("data")
        (made / "source" / "link").symlink_to("/nowhere")
        (made / "target").mkdir()
        for path in (made / "source", made / "source" / "sub"):
            path.chmod(0o755)
        (made / "source" / "sub" / "file").chmod(0o644)
        (made / "target").chmod(0o777)
        yield made
    finally:
        shutil.rmtree(made)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda top: (top / "source" / "sub" / "file").chmod(0o600), "sub/file"),
        (lambda top: (top / "source" / "sub").chmod(0o711), "sub"),
        (lambda top: (top / "source" / "sub").chmod(0o744), "sub"),
        (lambda top: (top / "source").chmod(0o700), "source"),
        (lambda top: (top / "target").chmod(0o755), "target"),
    ],
)
def test_what_may_not_be_read_or_made_is_not_cloned(
    place: Path, change: Callable[[Path], None], named: str
) -> None:
    if os.geteuid():
        (pytest.fail if CI else pytest.skip)("this test needs root, to become another user")
    source, parent = str(place / "source"), str(place / "target")
    _check(source, parent, f"{parent}/copy", "copy")
    with as_nobody():
        _check(source, parent, f"{parent}/copy", "copy")
        user = _user()
    assert _user() is None and user is not None and (user.uid, user.gid) == (NOBODY, NOBODY)
    change(place)
    _check(source, parent, f"{parent}/copy", "copy")  # root may
    with as_nobody(), pytest.raises(Failure) as refused:
        _check(source, parent, f"{parent}/copy", "copy")
    assert "permission denied" in str(refused.value) and f"{named}:" in str(refused.value)
