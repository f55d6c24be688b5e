"""Units, configuration, keys, paths, locks, clocks, exit codes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.host import keys, paths, units
from node.host.clock import FakeClock, SystemClock
from node.host.cluster import ChunkServer, ClientOptions, ClusterConfig, Member
from node.host.cluster import load_cluster, new_cluster_id, save_cluster
from node.host.exitcodes import ConfigError, Exit, UsageError, describe, exit_code
from node.host.lock import LivenessLock, lock_holder
from node.host.tomlwriter import dumps
from node.rpc.security import CurveKeys, Security
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.limits import DIRTY_BYTES_MAX, MIB, SOCKET_PATH_BYTES_MAX

# --- units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0), ("512", 512), ("512B", 512), ("4MiB", 4 * MIB), ("4M", 4 * MIB), ("4mib", 4 * MIB), ("10GB", 10**10),
        ("1.5GiB", 3 << 29), (" 1 KiB ", 1024), ("7E", 7 << 60),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "4 MiB x", "4XB", "1e3", "8E", "0x10", "٣", "1.2.3", "4MiB/s", "."])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="4MiB|8EiB"):
        units.parse_size(text)


@given(st.integers(0, 1 << 62))
def test_a_size_is_written_so_that_it_is_read_again(size_bytes: int) -> None:
    again = units.parse_size(units.format_size(size_bytes))
    assert abs(again - size_bytes) <= size_bytes * 0.05
    assert units.parse_size(units.format_size(1 << size_bytes % 63)) == 1 << size_bytes % 63


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("250ms", 0.25), ("5m", 300), ("1h", 3600), ("2d", 172800), ("1.5s", 1.5)],
)
def test_times_are_read_and_written(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "3 parsecs", "1h30m", "nan", "inf", "9" * 400])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time|long"):
        units.parse_duration(text)


# --- configuration --------------------------------------------------------------------------------------------

PUBLIC = "rs)My35M]&UBC$!V<%bzbV1bXY8X>YWmw&g(W)LW"


def config(**changes: Any) -> ClusterConfig:
    made = ClusterConfig(
        cluster_id="0" * 31 + "a",
        transport="ipc",
        members=(Member(id=1, name="metadata-1", address="ipc://run/m.sock", peer_address="ipc://run/p.sock"),),
        servers=(ChunkServer(name="storage-1", address="ipc:///elsewhere/s.sock", capacity_bytes=5 << 30, rack="r 1"),),
    )
    return msgspec.structs.replace(made, **changes)


def test_a_configuration_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    given_config = config(client=ClientOptions(dirty_bytes=MIB, request_timeout=2.5), clients=(PUBLIC,))
    save_cluster(path, given_config)
    loaded = load_cluster(path)
    assert loaded.member("metadata-1").address == f"ipc://{tmp_path}/run/m.sock"  # relative to the file
    assert loaded.server("storage-1").address == "ipc:///elsewhere/s.sock"
    assert loaded.client == given_config.client
    assert loaded.servers == given_config.servers
    assert loaded.clients == (PUBLIC,)
    assert loaded.cluster_id_bytes == bytes(15) + b"\x0a"
    assert "map_bytes" not in path.read_text()  # a default stays a default of the release that reads it
    save_cluster(path, loaded)
    assert load_cluster(path) == loaded
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.toml"]


def test_members_and_servers_are_found_or_not() -> None:
    assert config().member(1) == config().member("metadata-1") == config().members[0]
    for look in (lambda: config().member("x"), lambda: config().member(2), lambda: config().server("x")):
        with pytest.raises(FsError) as caught:
            look()
        assert caught.value.code == Code.NOT_FOUND


def write(path: Path, **changes: object) -> Path:
    tree = {**msgspec.to_builtins(config()), **changes}
    file = path / "cluster.toml"
    file.write_text(dumps(tree))
    return file


def test_sizes_and_times_may_be_text(tmp_path: Path) -> None:
    loaded = load_cluster(write(tmp_path, client={"dirty_bytes": "8MiB", "request_timeout": "250ms"}))
    assert (loaded.client.dirty_bytes, loaded.client.request_timeout) == (8 * MIB, 0.25)
    assert load_cluster(write(tmp_path, client={})).client.dirty_bytes == DIRTY_BYTES_MAX


MEMBER = {"id": 1, "name": "m", "address": "ipc://m", "peer_address": "ipc://p"}
TCP_MEMBER = {**MEMBER, "address": "tcp://a:1", "peer_address": "tcp://a:2"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client": {"dirty_bites": 1}}, "cluster.toml: client.dirty_bites: unknown key"),
        ({"colour": 1}, "cluster.toml: colour: unknown key"),
        ({"members": [{**MEMBER, "adress": ""}]}, "cluster.toml: members[0].adress: unknown key"),
        ({"client": {"dirty_bytes": "4 parsecs"}}, "client.dirty_bytes: '4 parsecs' is not a size"),
        ({"client": {"dirty_bytes": -1}}, "client.dirty_bytes: Expected int >= 0"),
        ({"client": {"request_timeout": "soon"}}, "client.request_timeout: 'soon' is not a time"),
        ({"client": {"request_timeout": 0}}, "client.request_timeout: Expected float > 0"),
        ({"client": 5}, "client: Expected object, got int"),
        ({"log": {"level": "loud"}}, "log.level: Invalid enum value"),
        ({"transport": "pigeon"}, "transport: Invalid enum value"),
        ({"cluster_id": "xyz"}, "cluster_id: Expected str matching regex"),
        ({"replicas": 0}, "replicas: Expected int >= 1"),
        ({"members": []}, "members: Expected array of length >= 1"),
        ({"members": [MEMBER, MEMBER]}, "the name 'm' is given twice"),
        ({"members": [MEMBER, {**MEMBER, "name": "n"}]}, "the id 1 is given twice"),
        ({"members": [{**MEMBER, "address": "tcp://a:1"}]}, "m: address 'tcp://a:1' does not begin with ipc://"),
        ({"clients": ["short"]}, "'short' is not a public key"),
        ({"transport": "tcp", "members": [TCP_MEMBER], "servers": []}, "m: tcp needs a public_key"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster(write(tmp_path, **changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert exit_code(caught.value) == Exit.USAGE


def test_text_that_is_no_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    for text in (b"a = = 1", b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match="cluster.toml: "):
            load_cluster(path)
    with pytest.raises(ConfigError, match="is a directory"):
        load_cluster(tmp_path)


def test_a_missing_file_and_a_newer_format_have_their_exit_codes(tmp_path: Path) -> None:
    with pytest.raises(FsError) as caught:
        load_cluster(tmp_path / "cluster.toml")
    assert exit_code(caught.value) == Exit.NOT_FOUND
    with pytest.raises(FsError) as caught:
        load_cluster(write(tmp_path, format=2, what_nobody_knows=1))
    assert exit_code(caught.value) == Exit.INTEGRITY
    assert "format 2" in str(caught.value)


def test_cluster_ids_are_random_and_fit() -> None:
    assert config(cluster_id=new_cluster_id()).cluster_id_bytes != config(cluster_id=new_cluster_id()).cluster_id_bytes


texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | texts
tables = st.recursive(
    st.dictionaries(texts, scalars | st.lists(scalars, max_size=3), max_size=4),
    lambda inner: st.dictionaries(st.text("ab. \"\n"), inner | st.lists(inner, min_size=1, max_size=3), max_size=3),
    max_leaves=8,
)


@given(tables)
def test_toml_is_read_back_as_it_was_written(tree: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(tree)) == tree


# --- files, keys ----------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    paths.replace_file(path, b"one", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    paths.replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "full").touch()
    with pytest.raises(OSError, match="irectory"):
        paths.replace_file(tmp_path / "directory", b"")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "file"]


def test_a_private_directory_is_closed_to_others(tmp_path: Path) -> None:
    made = paths.private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    paths.private_directory(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    link = tmp_path / "link"
    link.symlink_to(made)
    with pytest.raises(FsError) as caught:
        paths.private_directory(link)
    assert caught.value.code == Code.PERMISSION


def test_sockets_lie_beside_the_data_or_where_their_path_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Path(f"/tmp/ft{os.getpid()}")
    runtime.mkdir(mode=0o700)
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert paths.ipc_address(tmp_path, "m") == "ipc://run/m.sock"
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
        deep = tmp_path / ("d" * 100)
        deep.mkdir()
        other = tmp_path / ("e" * 100)
        other.mkdir()
        address = paths.ipc_address(deep, "metadata-1")
        assert len(address) <= len("ipc://") + SOCKET_PATH_BYTES_MAX
        assert address.startswith(f"ipc://{runtime}/")
        assert stat.S_IMODE(Path(address[6:]).parent.stat().st_mode) == 0o700
        assert paths.ipc_address(deep, "metadata-1") == address
        assert paths.ipc_address(other, "metadata-1") != address
    finally:
        for directory in runtime.iterdir():
            directory.rmdir()
        runtime.rmdir()


def test_keys_are_private_and_never_shown(tmp_path: Path) -> None:
    path = keys.key_path(tmp_path / "cluster.toml", "metadata-1")
    made = keys.create_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert keys.load_keys(path) == made
    for shown in (repr(made), str(made), repr(Security.curve_server(made, [])), f"{made}"):
        assert made.secret.decode() not in shown
        assert repr(made.secret) not in shown
    with pytest.raises(FsError) as caught:
        keys.create_keys(path)
    assert caught.value.code == Code.EXISTS
    assert keys.load_keys(path) == made


def test_key_files_that_will_not_do_say_why(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "k.key"

    def refused() -> Code:
        with pytest.raises(FsError) as caught:
            keys.load_keys(path)
        return caught.value.code

    assert refused() == Code.NOT_FOUND
    keys.create_keys(path)
    path.chmod(0o644)
    assert refused() == Code.UNAUTHORIZED
    path.chmod(0o600)
    for text in (b"nonsense", b" " * 40, b"\xff" * 40, b""):
        path.write_bytes(text)
        assert refused() == Code.INVALID
    with pytest.raises(ValueError, match="40"):
        CurveKeys(b"short", b"short")


def test_security_follows_the_transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.toml"
    plain = config()
    assert keys.server_security(plain, path, "metadata-1") == Security.plain()
    assert keys.client_security(plain, None, "") == Security.plain()
    own, client = keys.create_keys(keys.key_path(path, "m")), CurveKeys.generate()
    member = Member(
        id=1, name="m", address="tcp://a:1", peer_address="tcp://a:2", public_key=own.public.decode()
    )
    secure = config(transport="tcp", members=(member,), servers=(), clients=(client.public.decode(),))
    assert keys.server_security(secure, path, "m") == Security.curve_server(own, {own.public, client.public})
    assert keys.client_security(secure, client, member.public_key) == Security.curve_client(client, own.public)
    with pytest.raises(FsError) as caught:
        keys.client_security(secure, None, member.public_key)
    assert caught.value.code == Code.UNAUTHORIZED
    credential = tmp_path / "credentials" / "m.key"
    credential.parent.mkdir()
    credential.write_bytes(client.secret)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credential.parent))
    assert keys.process_keys(secure, path, "m") == client


# --- locks, clocks, exit codes --------------------------------------------------------------------------------


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    with LivenessLock(path, "the member"):
        assert lock_holder(path) == os.getpid()
        with pytest.raises(FsError) as caught:
            LivenessLock(path, "the member").acquire()
        assert caught.value.code == Code.BUSY
        assert f"the member is in use by process {os.getpid()}" in str(caught.value)
    assert lock_holder(path) is None
    with LivenessLock(path):
        assert lock_holder(path) == os.getpid()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = (
        "import sys, time; from pathlib import Path; from node.host.lock import LivenessLock\n"
        "lock = LivenessLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert lock_holder(path) == process.pid
        process.kill()
    assert lock_holder(path) is None


def test_clocks() -> None:
    fake = FakeClock(5.0, 1000)
    fake.advance(2.5)
    assert (fake.monotonic_s(), fake.wall_ns()) == (7.5, 2_500_001_000)
    fake.jump_wall(-1)
    assert (fake.monotonic_s(), fake.wall_ns()) == (7.5, 1_500_001_000)
    real = SystemClock()
    first = real.monotonic_s()
    assert real.monotonic_s() >= first > 0
    assert real.wall_ns() > 1_700_000_000 * 10**9


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FsError(Code.UNREACHABLE, "tcp://a:1: down"), Exit.UNREACHABLE, "tcp://a:1: down"),
        (FsError(Code.NOT_LEADER), Exit.UNREACHABLE, "not leader"),
        (FsError(Code.TIMEOUT, "slow"), Exit.UNREACHABLE, "slow"),
        (FsError(Code.UNAUTHORIZED, "key"), Exit.UNAUTHORIZED, "key"),
        (FsError(Code.FOREIGN_CLUSTER, "x"), Exit.INTEGRITY, "x"),
        (FsError(Code.UNSUPPORTED_VERSION, "x"), Exit.INTEGRITY, "x"),
        (FsError(Code.NOT_FOUND, "x"), Exit.NOT_FOUND, "x"),
        (FsError(Code.BUSY, "x"), Exit.FAILED, "x"),
        (ProtocolError("x"), Exit.FAILED, "x"),
        (UsageError("x"), Exit.USAGE, "x"),
        (FileNotFoundError(2, "No such file or directory", "/x"), Exit.FAILED, "/x: No such file or directory"),
        (OSError(98, "Address already in use"), Exit.FAILED, "Address already in use"),
        (ZeroDivisionError("x"), Exit.FAILED, None),
        (ExceptionGroup("g", [FsError(Code.UNAUTHORIZED, "x")]), Exit.UNAUTHORIZED, "x"),
        (ExceptionGroup("g", [UsageError("x"), ZeroDivisionError()]), Exit.USAGE, None),
    ],
)
def test_errors_have_exit_codes_and_one_line(error: Exception, code: Exit, line: str | None) -> None:
    assert exit_code(error) == code
    assert describe(error) == line
