"""up, down, mount, umount and status against real processes: what they do, what they print, how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fusefs.mount import table
from fusefs.mount.state import label_of
from node.host.lock import lock_holder
from tests.harness import FUSEFS, Cluster, need_fuse, run, wait_for, write_synced

STATUS_S_MAX = 20  # it gives up on silent processes after 2 s; the rest is for a busy machine to start Python
MOUNT_HELPER = str(Path(FUSEFS).with_name("mount.fusefs"))


def refused(*words: str | Path, code: int, timeout_s: float = 60) -> str:
    """Run a command that must fail with ``code`` and one line; return the line without its ``fusefs:``."""
    done = run(FUSEFS, *words, check=False, timeout_s=timeout_s)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().removeprefix("fusefs: ")


def is_mounted(path: Path) -> bool:
    return table.mounted_at(str(path)) is not None


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def read_until(stream: IO[str], line: str) -> list[str]:
    """Read lines up to one that is exactly ``line``; return those before it."""
    lines: list[str] = []
    for got in stream:
        if got.rstrip("\n") == line:
            return lines
        lines.append(got.rstrip("\n"))
    raise AssertionError(f"{line!r} never came: {lines}")


# --- up and down ------------------------------------------------------------------------------------------------------


def test_the_files_of_a_cluster(running: Cluster) -> None:
    top = running.directory
    assert {"cluster.toml", "keys", "metadata-1", "storage-1", "log", "run"} <= set(os.listdir(top))
    assert (top / "storage-1" / "segments").is_dir()
    assert stat.S_IMODE((top / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((top / "run").stat().st_mode) == 0o700
    for name in ("metadata-1", "storage-1"):
        pid = int((top / "run" / f"{name}.pid").read_text())
        assert lock_holder(top / name / "lock") == pid, "liveness is a lock"
        assert (top / "log" / f"{name}.log").stat().st_size > 0


def test_a_second_up_says_who_is_there(running: Cluster) -> None:
    line = refused("up", running.directory, "--detach", code=1)
    assert "is up already" in line and "fusefs down" in line
    assert "is up already" in refused("up", running.directory, "--only", "storage-1", "--detach", code=1)


def test_flags_that_differ_are_refused(running: Cluster) -> None:
    assert "--members 3" in refused("up", running.directory, "--members", "3", code=2)
    assert "--transport tcp" in refused("up", running.directory, "--transport", "tcp", code=2)
    assert "--only metadata-7" in refused("up", running.directory, "--only", "metadata-7", code=2)


def test_foreground_prints_ready_and_ctrl_c_is_down(cluster: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = tmp_path / "mnt"
    mount.mkdir()
    with subprocess.Popen(
        [FUSEFS, "up", str(cluster.directory), "--mount", str(mount)], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines = read_until(process.stdout, "ready")
        assert any("metadata-1" in line for line in lines) and any(str(mount) in line for line in lines)
        (mount / "file").write_text("kept")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.stdout.read()
        assert process.wait(60) == 0
    assert not is_mounted(mount)
    assert cluster.pids() == []
    assert list((cluster.directory / "run").glob("*.pid")) == []
    cluster.up("--mount", str(mount))
    assert (mount / "file").read_text() == "kept"


def test_a_stop_during_the_start_leaves_nothing(cluster: Cluster) -> None:
    with subprocess.Popen([FUSEFS, "up", str(cluster.directory)], stdout=subprocess.PIPE, text=True) as process:
        wait_for((cluster.directory / "run" / "metadata-1.pid").exists, 30, "the first server")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 130)
    assert cluster.pids() == []


def test_a_foreground_cluster_does_not_outlive_its_reader(cluster: Cluster) -> None:
    with subprocess.Popen([FUSEFS, "up", str(cluster.directory)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
    assert cluster.pids() == []


def test_welcome_prints_where_it_is_ready(cluster: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = tmp_path / "mnt"
    mount.mkdir()
    with subprocess.Popen(
        [FUSEFS, "up", str(cluster.directory), "--mount", str(mount), "--welcome"], stdout=subprocess.PIPE, text=True,
    ) as process:
        assert process.stdout is not None
        lines = read_until(process.stdout, f"ready {mount}")
        assert len(lines) < 24, "one screen"
        assert any(line.strip().startswith("cp ") for line in lines)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 0
    assert cluster.pids() == []


def test_down_is_idempotent_and_ends_a_foreground_up(cluster: Cluster) -> None:
    with subprocess.Popen(
        [FUSEFS, "up", str(cluster.directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        read_until(process.stdout, "ready")
        cluster.down()
        assert process.wait(30) == 0
        assert process.stderr.read() == "", "an orderly stop is no failure"
    cluster.down()
    assert cluster.pids() == []


def test_a_server_that_dies_is_reported_and_can_be_started_again(cluster: Cluster) -> None:
    with subprocess.Popen(
        [FUSEFS, "up", str(cluster.directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        read_until(process.stdout, "ready")
        old = cluster.server_pids()["storage-1"]
        os.kill(old, signal.SIGKILL)
        line = process.stderr.readline()
        assert "storage-1 was killed by signal 9" in line and "--only storage-1" in line
        run(FUSEFS, "up", cluster.directory, "--only", "storage-1", "--detach")
        assert cluster.server_pids()["storage-1"] != old
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert cluster.pids() == [], "what was started again is stopped too"


def test_down_clears_what_kill_9_left(cluster: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = tmp_path / "mnt"
    cluster.up()
    cluster.mount(mount)
    cluster.kill(*cluster.pids())
    assert table.is_dead(str(mount))
    cluster.down()
    assert not is_mounted(mount)
    assert list((cluster.directory / "run").glob("*.pid")) == []
    cluster.up("--mount", str(mount))
    assert os.listdir(mount) == []


def test_down_of_nothing(tmp_path: Path) -> None:
    assert "no such cluster" in refused("down", tmp_path / "nothing", code=6)


def test_no_start_only_writes(cluster: Cluster) -> None:
    cluster.up("--no-start")
    assert cluster.config.exists() and cluster.pids() == []
    assert run(FUSEFS, "down", cluster.directory).returncode == 0


def test_a_wiped_chunk_server_comes_back_empty(cluster: Cluster) -> None:
    cluster.up()
    cluster.down()
    run("rm", "-rf", cluster.directory / "storage-1")
    cluster.up()
    assert cluster.status()["servers"][0]["blocks"] == 0


def test_long_paths_move_the_sockets(tmp_path: Path) -> None:
    made = Cluster(tmp_path / ("long-" * 20) / "d")
    try:
        made.up()
        status = made.status()
        assert status["health"] == "healthy"
        socket_path = Path(status["members"][0]["address"].removeprefix("ipc://"))
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    finally:
        made.clean()
    run("rm", "-rf", socket_path.parent)


# --- mount and umount -------------------------------------------------------------------------------------------------


def test_a_mount_serves_and_is_named(running: Cluster, mounted: Path) -> None:
    entry = table.mounted_at(str(mounted))
    assert entry is not None and (entry.type, entry.source) == ("fuse.fusefs", str(running.config))
    assert run("findmnt", "-n", "-o", "FSTYPE", mounted).stdout.strip() == "fuse.fusefs"
    options = run("findmnt", "-n", "-o", "OPTIONS", mounted).stdout
    assert "allow_other" in options and "default_permissions" in options
    read_ahead = Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb")
    assert read_ahead.read_text().strip() == "1024"
    sessions = [session["mount"] for session in running.status()["sessions"]]
    assert str(mounted) in sessions


def test_a_mount_outlives_its_terminal(running: Cluster, tmp_path: Path) -> None:
    """The process that serves has a session of its own, and holds no pipe of whoever mounted."""
    need_fuse()
    mount = tmp_path / "mnt"
    mount.mkdir()
    done = subprocess.run(  # returns only when nobody holds its pipes any more
        [FUSEFS, "mount", str(running.config), str(mount), "--json"], capture_output=True, text=True, timeout=60
    )
    pid = json.loads(done.stdout)["pid"]
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    run(FUSEFS, "umount", mount)
    assert not alive(pid), "umount returns when the client has ended"


def test_mount_points_that_are_refused(running: Cluster, mounted: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused("mount", running.config, tmp_path / "missing", code=1)
    assert "not empty" in refused("mount", running.config, tmp_path, code=1)
    assert "is in use" in refused("mount", running.config, mounted, code=1)
    (tmp_path / "file").touch()
    assert "not a directory" in refused("mount", running.config, tmp_path / "file", code=1)


def test_a_dead_mount_point_is_replaced(running: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = running.mount(tmp_path / "mnt")
    write_synced(mount / "dead", "x")
    (state,) = (running.directory / "run").glob("mount-*.pid")
    mount.stat()  # so the kernel has the attributes of the root, and goes on telling them
    running.kill(int(state.read_text()))
    assert table.is_dead(str(mount))
    run(FUSEFS, "mount", running.config, mount)
    assert (mount / "dead").read_text() == "x"
    (mount / "dead").unlink()
    running.umount(mount)
    assert not is_mounted(mount), "nothing is left underneath"


def test_umount_of_what_is_none_of_ours(tmp_path: Path) -> None:
    assert "not a fusefs mount" in refused("umount", tmp_path, code=1)
    assert "not a fusefs mount" in refused("umount", "/proc", code=1)


def test_a_busy_mount_is_not_unmounted_and_down_detaches_it(cluster: Cluster, tmp_path: Path) -> None:
    need_fuse()
    cluster.up()
    mount = cluster.mount(tmp_path / "mnt")
    with open(mount / "file", "w") as file:
        file.write("written before")
        file.flush()
        line = refused("umount", mount, code=1)
        assert "busy" in line and f"({os.getpid()})" in line
        assert is_mounted(mount)
        done = run(FUSEFS, "down", cluster.directory)
        assert "busy" in done.stderr
        assert not is_mounted(mount) and cluster.pids() == []
        with pytest.raises(OSError):
            os.fstat(file.fileno())
        with pytest.raises(OSError):
            os.write(file.fileno(), b"lost")
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # so that its close has nothing to say
    cluster.up("--mount", str(mount))
    assert (mount / "file").read_text() == "written before", "flushed before it was detached"


def test_plain_umount_flushes_too(running: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = running.mount(tmp_path / "mnt")
    data = os.urandom(3_000_000)
    (mount / "plain").write_bytes(data)
    run("umount", mount)
    state = running.directory / "run"
    wait_for(lambda: not list(state.glob("mount-*.pid")), 30, "the client ends by itself")
    running.mount(mount)
    assert (mount / "plain").read_bytes() == data
    (mount / "plain").unlink()
    running.umount(mount)


def test_sigterm_unmounts_and_flushes(running: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = running.mount(tmp_path / "mnt")
    (mount / "term").write_bytes(b"x" * 100_000)
    (state,) = (running.directory / "run").glob("mount-*.pid")
    os.kill(int(state.read_text()), signal.SIGTERM)
    wait_for(lambda: not is_mounted(mount) and not state.exists(), 30, "the mount ends")
    running.mount(mount)
    assert (mount / "term").read_bytes() == b"x" * 100_000
    (mount / "term").unlink()
    running.umount(mount)


def test_a_mount_in_the_foreground(running: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = tmp_path / "mnt"
    mount.mkdir()
    with subprocess.Popen(
        [FUSEFS, "mount", str(running.config), str(mount), "-f"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            assert any("mount serves" in line for line in process.stderr), "until then a stop is a failed start"
            assert is_mounted(mount) and mount.stat().st_ino == 1
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert os.fsencode(running.config) in command, "found by its cluster.toml, and the process that we started"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not is_mounted(mount)


def test_changed_data_is_seen_although_mtime_was_set_back(running: Cluster, mounted: Path, tmp_path: Path) -> None:
    """The kernel drops pages when size or mtime change; we have to, when neither did."""
    other = running.mount(tmp_path / "other")
    (mounted / "file").write_bytes(b"1" * 8192)
    times = os.stat(mounted / "file")
    with open(other / "file", "rb", buffering=0) as reader:
        assert reader.read() == b"1" * 8192
        with open(mounted / "file", "r+b") as writer:
            writer.write(b"2" * 8192)
        os.utime(mounted / "file", ns=(times.st_atime_ns, times.st_mtime_ns))
        reader.seek(0)
        assert reader.read() == b"2" * 8192, "a descriptor that was open all the time sees it"
        assert (other / "file").read_bytes() == b"2" * 8192
        with open(mounted / "file", "r+b") as writer:
            writer.write(b"3" * 8192)
        (other / "file").chmod(0o600)  # whose reply tells the new mtime without the kernel noticing
        wait_for(lambda: reader.seek(0) == 0 and reader.read() == b"3" * 8192, 30, "the pages are dropped all the same")
    running.umount(other)
    (mounted / "file").unlink()


def test_a_mount_tells_what_it_does(running: Cluster, mounted: Path) -> None:
    (state,) = (running.directory / "run").glob("mount-*.pid")
    (log,) = (p for p in (running.directory / "log").glob("mount-*.log") if p.stem == state.stem)
    os.kill(int(state.read_text()), signal.SIGUSR1)
    wait_for(lambda: "statistics" in log.read_text(), 30, "a line in the log")


def test_read_only_and_unknown_options(running: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = running.mount(tmp_path / "mnt", "-o", "ro,noatime,_netdev")
    with pytest.raises(OSError, match="Read-only"):
        (mount / "x").touch()
    running.umount(mount)
    assert "unknown mount option: frob" in refused("mount", running.config, mount, "-o", "frob", code=2)


def test_the_mount_helper(running: Cluster, tmp_path: Path) -> None:
    need_fuse()
    mount = tmp_path / "mnt"
    done = run(MOUNT_HELPER, running.config, mount, "-o", "rw", check=False)
    assert done.returncode == 32 and "does not exist" in done.stderr
    mount.mkdir()
    assert run(MOUNT_HELPER, running.config, mount, "-f").stdout == ""
    assert not is_mounted(mount)
    run(MOUNT_HELPER, running.config, mount, "-o", "rw,_netdev,x-systemd.automount,timeout=5s")
    assert is_mounted(mount)
    run(FUSEFS, "umount", mount)


def test_after_a_crash_nobody_waits_for_the_dead(cluster: Cluster, tmp_path: Path) -> None:
    """The members see that the processes of the sessions they know are gone, and end those."""
    need_fuse()
    mount = tmp_path / "mnt"
    cluster.up()
    write_synced(cluster.mount(mount) / "file", "x")
    (old,) = cluster.status()["sessions"]
    cluster.kill_all()
    cluster.mounts.clear()
    cluster.up()
    began = time.monotonic()
    assert (cluster.mount(mount) / "file").read_text() == "x"
    print(f"mounted and read {time.monotonic() - began:.1f} s after the start")
    assert old["id"] not in [session["id"] for session in cluster.status()["sessions"]]
    assert "its process is gone" in cluster.log("metadata-1")


def test_a_mount_ends_the_sessions_of_its_host_that_died(tmp_path: Path) -> None:
    """Where the members do not see the processes of the mounts, here by a time namespace, the next mount does."""
    need_fuse()
    made = Cluster(tmp_path / "d")
    try:
        run("unshare", "--time", "--boottime", "1000", FUSEFS, "up", made.directory, "--detach")
        first, second = made.mount(tmp_path / "a"), tmp_path / "b"
        write_synced(first / "file", "x")
        (old,) = made.status()["sessions"]
        (state,) = (made.directory / "run").glob("mount-*.pid")
        made.kill(int(state.read_text()))
        assert (made.mount(second) / "file").read_text() == "x"
        wait_for(lambda: [s["mount"] for s in made.status()["sessions"]] == [str(second)], 30, "the dead to be ended")
        assert f"session {old['id']} of {first} is ended" in made.log(label_of(str(second)))
        assert "its process is gone" not in made.log("metadata-1")
    finally:
        made.clean()


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_for_people_and_scripts(running: Cluster) -> None:
    done = run(FUSEFS, "status", running.directory)
    assert done.stdout.startswith("healthy\n") and "metadata-1  leader" in done.stdout
    status = running.status()
    assert set(status) == {"health", "members", "servers", "volume", "sessions"}
    assert status["health"] == "healthy"
    (member,) = status["members"]
    named = {"name", "address", "role", "term", "commit", "applied", "lag"}
    assert set(member) == named and member["role"] == "leader"
    (server,) = status["servers"]
    assert set(server) == {"name", "address", "state", "used_bytes", "capacity_bytes", "blocks"}
    assert set(status["volume"]) == {"files", "bytes", "stored_bytes", "replicas", "under_replicated_blocks"}


def test_status_degraded_and_down(cluster: Cluster) -> None:
    cluster.up()
    cluster.kill(cluster.server_pids()["storage-1"])
    done = run(FUSEFS, "status", cluster.config, "--json", check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["servers"][0]["state"] == "down"
    cluster.kill(cluster.server_pids()["metadata-1"])
    start = time.monotonic()
    done = run(FUSEFS, "status", cluster.config, "--json", check=False)
    assert time.monotonic() - start < STATUS_S_MAX
    assert done.returncode == 4
    status = json.loads(done.stdout)
    assert status["health"] == "down" and status["members"][0]["role"] == "down"


def test_a_minority_of_members_may_be_down(tmp_path: Path) -> None:
    made = Cluster(tmp_path / "d", members=3)
    try:
        made.up()
        leader = next(m["name"] for m in made.status()["members"] if m["role"] == "leader")
        made.kill(made.server_pids()[leader])
        wait_for(lambda: made.status()["health"] == "degraded", 60, "another leader")
        roles = {member["name"]: member["role"] for member in made.status()["members"]}
        assert roles.pop(leader) == "down"
        assert sorted(roles.values()) == ["follower", "leader"]
        run(FUSEFS, "up", made.directory, "--only", leader, "--detach")
        wait_for(lambda: made.status()["health"] == "healthy", 60, "it is back")
    finally:
        made.clean()


def test_status_of_stopped_processes_is_bounded(cluster: Cluster) -> None:
    cluster.up()
    pids = cluster.server_pids()
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    done = run(FUSEFS, "status", cluster.config, "--json", check=False)
    assert time.monotonic() - start < STATUS_S_MAX
    assert done.returncode == 4
    for pid in pids.values():
        os.kill(pid, signal.SIGCONT)


# --- tcp, keys, identity ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("tcp") / "d", transport="tcp")
    try:
        made.up()
        yield made
    finally:
        made.clean()


def test_tcp_works_and_secrets_are_nowhere(encrypted: Cluster, tmp_path: Path) -> None:
    assert encrypted.status()["members"][0]["address"].startswith("tcp://127.0.0.1:")
    if os.geteuid() == 0:
        mount = encrypted.mount(tmp_path / "mnt")
        (mount / "f").write_bytes(b"secret" * 50_000)
        assert (mount / "f").read_bytes() == b"secret" * 50_000
        encrypted.umount(mount)
    secrets = [path.read_bytes().strip() for path in (encrypted.directory / "keys").glob("*.key")]
    assert len(secrets) == 3
    shown = encrypted.config.read_bytes() + b"".join(p.read_bytes() for p in (encrypted.directory / "log").iterdir())
    assert not any(secret in shown for secret in secrets)


def copy_of(made: Cluster, directory: Path) -> Path:
    """Another host's copy of a cluster.toml and the client's key."""
    run("mkdir", "-p", directory / "keys")
    run("cp", "-p", made.config, directory)
    run("cp", "-p", made.directory / "keys" / "client.key", directory / "keys")
    return directory / "cluster.toml"


def test_a_wrong_key(encrypted: Cluster, tmp_path: Path) -> None:
    config = copy_of(encrypted, tmp_path / "copy")
    assert run(FUSEFS, "status", config).returncode == 0
    run(FUSEFS, "up", tmp_path / "other", "--transport", "tcp", "--no-start")
    key = tmp_path / "other" / "keys" / "client.key"
    assert refused("status", config, "--key", key, code=5)
    (tmp_path / "mnt").mkdir()
    assert refused("mount", config, tmp_path / "mnt", "-o", f"key={key}", code=5)
    assert not is_mounted(tmp_path / "mnt")
    assert "no such key" in refused("mount", config, tmp_path / "mnt", "-o", f"key={tmp_path}/none", code=6)
    key.chmod(0o644)
    assert "chmod 600" in refused("status", config, "--key", key, code=5)


def test_a_foreign_cluster(running: Cluster, tmp_path: Path) -> None:
    """The addresses lead to a cluster with another id."""
    text = running.config.read_text().replace("ipc://run/", f"ipc://{running.directory}/run/")
    identity = re.search(r'cluster_id = "([0-9a-f]+)"', text)
    assert identity is not None
    config = tmp_path / "cluster.toml"
    config.write_text(text.replace(identity[1], "0" * 32))
    assert refused("status", config, code=7)
    (tmp_path / "mnt").mkdir()
    assert refused("mount", config, tmp_path / "mnt", code=7)


def test_data_of_another_cluster(cluster: Cluster) -> None:
    cluster.up()
    cluster.down()
    text = cluster.config.read_text()
    identity = re.search(r'cluster_id = "([0-9a-f]+)"', text)
    assert identity is not None
    cluster.config.write_text(text.replace(identity[1], "0" * 32))
    assert refused("up", cluster.directory, "--detach", code=7)
    assert cluster.pids() == []


def test_configurations_that_cannot_be_read(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up("--no-start")
    good = cluster.config.read_text()
    cluster.config.write_text(good + "\n[client]\ndirty_bites = 3\n")
    line = refused("up", cluster.directory, "--detach", code=2)
    assert line == "cluster.toml: client.dirty_bites: unknown key"
    assert refused("status", cluster.config, code=2) == line
    cluster.config.write_text(good.replace("format = 1", "format = 2"))
    assert "newer" in refused("up", cluster.directory, "--detach", code=7)
    assert "no such cluster" in refused("status", tmp_path / "none.toml", code=6)
    assert "no such cluster" in refused("mount", tmp_path / "none.toml", tmp_path, code=6)


def test_a_port_in_use(tmp_path: Path) -> None:
    made = Cluster(tmp_path / "d")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        try:
            line = refused("up", made.directory, "--address", f"metadata-1={address}", "--detach", code=1)
            assert "metadata-1" in line and address in line and "in use" in line
            assert made.pids() == []
        finally:
            made.clean()
