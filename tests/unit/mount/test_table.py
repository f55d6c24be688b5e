"""The mount table, mount points that can be used, and names for state files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.mount import table
from fusefs.mount.state import claim, find_state, label_of, states_of
from node.wire.errors import Code, FsError

TEXT = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 22 0:57 / /mnt/with\040space rw,nosuid,nodev shared:1 - fuse.fusefs /c/cluster.toml rw,user_id=0
91 22 0:58 / /mnt/with\040space rw - fuse.bindfs /a\134b rw
"""


def test_the_table_is_parsed() -> None:
    mounts = table.read_table(TEXT)
    assert [mount.path for mount in mounts] == ["/", "/mnt/with space", "/mnt/with space"]
    assert mounts[1] == table.Mount("/mnt/with space", "0:57", "fuse.fusefs", "/c/cluster.toml")
    assert mounts[2].source == "/a\\b"


def test_the_last_mount_on_a_path_is_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = table.read_table(TEXT)
    monkeypatch.setattr(table, "read_table", lambda: mounts)
    top = table.mounted_at("/mnt/with space")
    assert top is not None and top.type == "fuse.bindfs"
    assert table.mounted_at("/mnt") is None


def test_mounts_of_a_cluster_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mounts = [
        table.Mount("/m", "0:1", "fuse.fusefs", table.source_of(real / "cluster.toml")),
        table.Mount("/n", "0:2", "fuse.other", table.source_of(real / "cluster.toml")),
        table.Mount("/o", "0:3", "fuse.fusefs", "/elsewhere/cluster.toml"),
    ]
    monkeypatch.setattr(table, "read_table", lambda: mounts)
    assert table.mounts_of(tmp_path / "link" / "cluster.toml") == mounts[:1]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_source_is_ascii_and_tells_the_path(text: str) -> None:
    path = Path("/", text)
    source = table.source_of(path)
    assert source.isascii() and source.isprintable() and " " not in source
    assert table.cluster_of(source) == path


def test_a_plain_path_is_its_own_source() -> None:
    assert table.source_of(Path("/srv/fusefs-1/cluster.toml")) == "/srv/fusefs-1/cluster.toml"


def test_absolute_does_not_follow_the_mount_point_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert table.absolute("link/mnt/") == str(tmp_path.resolve() / "mnt")
    assert table.absolute("/") == "/"


def refused(path: Path) -> str:
    with pytest.raises(FsError) as caught:
        table.check_mount_point(str(path))
    assert caught.value.code in (Code.INVALID, Code.BUSY)
    assert "\n" not in caught.value.detail and str(path) in caught.value.detail
    return caught.value.detail


def test_mount_points_that_cannot_be_used(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    table.check_mount_point(str(empty))
    assert "does not exist" in refused(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "not a directory" in refused(tmp_path / "file")
    assert "not empty" in refused(tmp_path)
    assert "is in use" in refused(Path("/proc"))


def test_users_of_a_directory_are_named(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w"):
        assert any(user.endswith(f"({os.getpid()})") for user in table.users_of(str(tmp_path)))
    assert not any(user.endswith(f"({os.getpid()})") for user in table.users_of(str(tmp_path)))


@given(st.sets(st.text("ab-/.é", min_size=1, max_size=200).map(lambda text: "/" + text.strip("/")), min_size=2))
def test_labels_are_file_names_and_differ(mounts: set[str]) -> None:
    labels = [label_of(mount) for mount in {"/" + mount.strip("/") for mount in mounts}]
    assert len(set(labels)) == len(labels)
    assert all(len(os.fsencode(label)) < 200 and "/" not in label for label in labels)


def test_a_plain_mount_point_is_readable_in_its_label() -> None:
    assert label_of("/root/fusefs") == "mount-root-fusefs"


def test_a_claimed_mount_is_found_while_it_lives(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    cluster = tmp_path / "cluster.toml"
    state, lock = claim(cluster, "/mnt/x", "/log")
    assert state.directory == tmp_path / "run"
    assert state.pid_path.read_text() == f"{os.getpid()}\n", "scripts read pids from it"
    assert state.holder() == os.getpid()
    found = find_state(cluster, "/mnt/x")
    assert found == state and found.info() is not None
    assert [info.mount for _, info in states_of(cluster)] == ["/mnt/x"]
    assert list(states_of(tmp_path / "other.toml")) == []
    with pytest.raises(FsError) as caught:
        claim(cluster, "/mnt/x", "")
    assert caught.value.code is Code.BUSY
    state.clear()
    lock.release()
    assert state.holder() is None
    assert list(states_of(cluster)) == []


def test_the_last_word_of_a_mount_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    state, lock = claim(tmp_path / "cluster.toml", "/mnt/x", "")
    state.failure_path.write_text("storage-1 did not answer\n")
    lock.release()
    assert state.take_failure() == "storage-1 did not answer"
    assert state.take_failure() is None
