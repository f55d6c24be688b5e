"""The unit files: valid to the last key, and sandboxed as far as their work allows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.harness import CI, run

UNITS = Path(__file__).parents[2] / "systemd"
# Exposure as `systemd-analyze security` counts it, 10 is none at all. A client must share the host's mount namespace.
EXPOSURE = {"fusefs-meta@.service": 1.5, "fusefs-chunk@.service": 1.5, "fusefs@.service": 4.5}


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with the programs of this checkout in place of installed ones, templates instantiated."""
    if shutil.which("systemd-analyze") is None:
        (pytest.fail if CI else pytest.skip)("this test needs systemd-analyze")
    made = tmp_path_factory.mktemp("units")
    for source in UNITS.iterdir():
        text = source.read_text().replace("/usr/bin/fusefs", f"{Path(sys.executable).parent}/fusefs")
        (made / source.name.replace("@.", "@x.")).write_text(text)
    return made


@pytest.mark.parametrize("name", sorted(p.name for p in UNITS.iterdir()))
def test_unit_is_valid(units: Path, name: str) -> None:
    done = run("systemd-analyze", "verify", "--man=no", units / name.replace("@.", "@x."), check=False)
    ours = [line for line in done.stderr.splitlines() if "fusefs" in line]
    assert done.returncode == 0 and not ours, done.stderr


@pytest.mark.parametrize("name", sorted(EXPOSURE))
def test_unit_is_sandboxed(units: Path, name: str) -> None:
    threshold = str(int(EXPOSURE[name] * 10))
    unit = units / name.replace("@.", "@x.")
    done = run("systemd-analyze", "security", "--offline=yes", f"--threshold={threshold}", unit, check=False)
    assert done.returncode == 0, done.stdout[-600:]
