"""The house rules that tools can check: layers, types, style, and what may stand at the top level."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from node.host.paths import replace_file

TOP = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusefs"
CLEAN = CACHE / "style-clean"  # what flake8 found nothing in, in any checkout
CLEAN_MAX = 20_000
PACKAGES = ("node", "storage", "metadata", "fusefs")
PURE = (
    "node/wire/", "metadata/raft/", "metadata/state/",
    "metadata/rows.py", "metadata/balance.py", "metadata/placement.py",
    "storage/table.py", "metadata/server/shares.py",
    "metadata/server/healing.py", "metadata/server/orders.py", "metadata/server/census.py",
)  # fmt: skip
ALLOWED = set(
    "setup.cfg README.md fusefs metadata storage tests systemd node pyproject.toml setup.py Makefile LICENSE "
    "CHANGELOG.md .ci .gitignore".split()
)


def tool(*command: str) -> None:
    program = str(Path(sys.executable).parent / command[0])
    done = subprocess.run([program, *command[1:]], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_types() -> None:
    tool("mypy")


@pytest.mark.timeout(900)
def test_style() -> None:
    """flake8 looks at one file at a time, so a file that was clean under the same rules need not be looked at again."""
    versions = sorted(f"{known.name} {known.version}" for known in distributions())
    rules = (TOP / "setup.cfg").read_bytes() + "".join(versions).encode()
    clean = CLEAN.read_text().split() if CLEAN.exists() else []
    known = set(clean)
    digests = {}
    for path in sorted(path for top in (*PACKAGES, "tests") for path in (TOP / top).rglob("*.py")):
        name = str(path.relative_to(TOP))
        digests[name] = hashlib.sha256(rules + name.encode() + path.read_bytes()).hexdigest()
    fresh = [name for name, digest in digests.items() if digest not in known]
    if fresh:
        tool("flake8", *fresh)
        CACHE.mkdir(parents=True, exist_ok=True)
        replace_file(CLEAN, "\n".join([*clean, *(digests[name] for name in fresh)][-CLEAN_MAX:]).encode())


def test_layers() -> None:
    tool("lint-imports", "--no-cache")


def test_top_level() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    assert {path.split("/")[0] for path in listed.splitlines()} <= ALLOWED


def test_only_one_file_owns_each_engine() -> None:
    """zmq, pyfuse3 and lmdb are each known to one place only, and pure cores know no clock, disk or network."""
    for package in PACKAGES:
        for path in (TOP / package).rglob("*.py"):
            name = str(path.relative_to(TOP))
            text = path.read_text()
            lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
            imports = {line.split()[1].split(".")[0] for line in lines}
            assert "zmq" not in imports or name.startswith("node/rpc/"), name
            assert "pyfuse3" not in imports or name.startswith("fusefs/mount/"), name
            assert "lmdb" not in imports or name in ("metadata/store/engine_lmdb.py", "storage/catalog.py"), name
            if name.startswith(PURE):
                assert not imports & {"trio", "zmq", "lmdb", "os", "time", "random", "socket"}, name


def test_modules_stay_small() -> None:
    long = {}
    for package in PACKAGES:
        for path in (TOP / package).rglob("*.py"):
            lines = path.read_text().count("\n")
            if lines > 600:
                long[str(path.relative_to(TOP))] = lines
    assert not long, f"cut these by responsibility: {long}"
