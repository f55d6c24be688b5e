"""POSIX ACLs, setgid, sticky and setuid: the same commands on the mount and on tmpfs, by root and by others."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import LONG, run, seed

USERS = (0, 4001, 4002)
GROUPS = (0, 5001, 5002)


@pytest.fixture
def local(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on tmpfs."""
    path = Path("/dev/shm") / f"fusefs-acls-{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def as_user(uid: int, gid: int, groups: tuple[int, ...], top: Path, action: Callable[[Path], Any]) -> str:
    """Do something in a directory as somebody else, who may not come from above; return what came of it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            os.chdir(top)
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            try:
                answer = repr(action(Path(".")))
            except OSError as error:
                answer = os.strerror(error.errno or 0)
            os.write(write, answer.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def described(top: Path) -> str:
    """All lists below a directory, and all modes and owners."""
    found = sorted([top, *top.rglob("*")])
    lists = run("getfacl", "-n", "-p", *(path.relative_to(top) for path in found), cwd=top).stdout
    return lists + "".join(
        f"{path.relative_to(top)} {path.stat().st_mode:o} {path.stat().st_uid} {path.stat().st_gid}\n" for path in found
    )


def setfacl(path: Path, *words: str) -> str:
    done = subprocess.run(["setfacl", *words, str(path)], capture_output=True, text=True)
    return done.stderr.replace(str(path), "") if done.returncode else "ok"


Step = Callable[[Path], Any]


def make_step(rng: random.Random) -> Step:
    """One thing to do in a directory, the same wherever it is done."""
    uid, gid, groups = rng.choice(USERS), rng.choice(GROUPS), tuple(rng.sample(GROUPS, 1))
    place = rng.choice((".", "d", "d/e"))
    name = rng.choice(("a", "b", "d", "e"))
    mode, umask = rng.choice((0o666, 0o777, 0o600, 0o2755, 0o1777, 0o4755, 0o750)), rng.choice((0o022, 0o077, 0o002))
    perms = "".join(letter if rng.random() < 0.6 else "-" for letter in "rwx")
    who = rng.choice(("u", f"u:{rng.choice(USERS[1:])}", "g", f"g:{rng.choice(GROUPS[1:])}", "o", "m"))
    who = f"{who}:{perms}" if ":" in who else f"{who}::{perms}"

    def create(top: Path) -> Any:
        os.umask(umask)
        os.close(os.open(top / place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def mkdir(top: Path) -> Any:
        os.umask(umask)
        os.mkdir(top / place / name, mode)

    def chmod(top: Path) -> Any:
        os.chmod(top / place / name, mode)

    def chown(top: Path) -> Any:
        os.chown(top / place / name, rng_uid, rng_gid)

    def access(top: Path) -> Any:
        return [os.access(top / place / name, mask) for mask in (os.R_OK, os.W_OK, os.X_OK)]

    def unlink(top: Path) -> Any:
        (top / place / name).unlink()

    def rename(top: Path) -> Any:
        os.rename(top / place / name, top / place / "moved")

    def write(top: Path) -> Any:
        with open(top / place / name, "ab") as file:
            file.write(b"x")

    def acl(top: Path) -> Any:
        return setfacl(top / place / name, "-m", who)

    def default(top: Path) -> Any:
        return setfacl(top / place, "-d", "-m", who)

    def remove(top: Path) -> Any:
        return setfacl(top / place / name, rng_flag)

    rng_uid, rng_gid, rng_flag = rng.choice(USERS), rng.choice(GROUPS), rng.choice(("-b", "-k"))
    action = rng.choice(
        [create, create, create, mkdir, mkdir, chmod, chmod, chown, access, access, unlink, rename, write, acl, acl,
         default, remove]
    )

    def step(top: Path) -> Any:
        return action.__name__, place, name, uid, as_user(uid, gid, groups, top, action)

    return step


@pytest.mark.parametrize("number", range(20 if LONG else 3))
def test_permissions_are_those_of_tmpfs(work: Path, local: Path, second_mount: Path, number: int) -> None:
    rng = random.Random(seed("acls") + number)
    for top in (work, local):
        top.chmod(0o2777)
        os.chown(top, 0, 5001)
        (top / "d").mkdir()
        (top / "d").chmod(0o1777)
    for _ in range(120 if LONG else 50):
        step = make_step(rng)
        assert step(work) == step(local)
    assert described(work) == described(local) == described(second_mount / work.name)


def test_a_list_changed_on_one_mount_is_obeyed_on_the_other(work: Path, second_mount: Path) -> None:
    file = work / "f"
    file.write_text("secret")
    file.chmod(0o600)
    other = second_mount / work.name / "f"

    def read(top: Path) -> str:
        return (top / "f").read_text()

    for _ in range(10):
        assert as_user(4001, 5001, (), other.parent, read) == "Permission denied"
        assert setfacl(file, "-m", "u:4001:r") == "ok"
        assert as_user(4001, 5001, (), other.parent, read) == "'secret'"
        assert as_user(4002, 5001, (), other.parent, read) == "Permission denied"
        assert setfacl(file, "-x", "u:4001") == "ok"


def test_programs_keep_lists(work: Path, tmp_path: Path) -> None:
    (work / "src").mkdir()
    (work / "src" / "f").write_text("x")
    assert setfacl(work / "src" / "f", "-m", "u:4001:rw,g:5002:r") == "ok"
    assert setfacl(work / "src", "-d", "-m", "u:4002:rwx") == "ok"
    run("cp", "-a", work / "src", work / "copy")
    run("rsync", "-aA", f"{work}/src/", f"{work}/synced")
    run("tar", "--acls", "-C", work / "src", "-cf", tmp_path / "t.tar", ".")
    (work / "untarred").mkdir()
    run("tar", "--acls", "-C", work / "untarred", "-xpf", tmp_path / "t.tar")
    wanted = run("getfacl", "-R", "-n", "-p", ".", cwd=work / "src").stdout
    assert "user:4001:rw-" in wanted and "default:user:4002:rwx" in wanted
    for name in ("copy", "synced", "untarred"):
        assert run("getfacl", "-R", "-n", "-p", ".", cwd=work / name).stdout == wanted, name
