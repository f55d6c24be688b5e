"""The life of a mount process: open the volume, mount, serve, and leave nothing behind that was promised.

How it ends: umount(8) ends the kernel's connection and with it the serving loop; SIGTERM unmounts first, lazily when
somebody still uses the mount. Either way all that was written is flushed before the session is closed and the
process ends; where that fails, the last word lies beside the lock and the exit code is not 0. SIGUSR1 has it log
what it is doing.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from fusefs.client.connect import open_volume
from fusefs.client.options import ClientOptions, Cluster, Peer
from fusefs.client.volume import Volume
from fusefs.mount import table
from fusefs.mount.caching import KernelCache
from fusefs.mount.crossing import Crossings
from fusefs.mount.guard import Guard
from fusefs.mount.incapable import Incapable
from fusefs.mount.interpose import extension, missing
from fusefs.mount.invalidate import PageDropper
from fusefs.mount.launch import Announcer
from fusefs.mount.loop import Loop
from fusefs.mount.mappings import device_of
from fusefs.mount.notify import Notifier, fuse_descriptor
from fusefs.mount.observe import mount_metrics, serve_profile
from fusefs.mount.operations import Operations
from fusefs.mount.options import MountOptions, kernel_options
from fusefs.mount.plan import Plan
from fusefs.mount.profile import MountProfile, flat
from fusefs.mount.pruning import Pruner
from fusefs.mount.requests import KernelRequests
from fusefs.mount.state import MountState, claim
from fusefs.mount.wakeup import Wakeup
from node.host.clock import SystemClock
from node.host.cluster import ClusterConfig
from node.host.daemon import Lifecycle
from node.host.exitcodes import describe
from node.host.http import serve_http
from node.host.identity import own_identity
from node.host.logging import get_logger
from node.wire.errors import Code, FsError
from node.wire.limits import STOP_FLUSH_S

log = get_logger(__name__)

DEVICE = "/dev/fuse"
WORKERS_MIN, WORKERS_MAX = 8, 32  # each holds a buffer of 1 MiB
READ_AHEAD_KIB = 1024  # of the kernel: reads then come in requests of 1 MiB
FLUSH_PAUSE_S = 1.0
CLAIM_PAUSE_S = 0.05
WATCH_INSIDE_S = 0.5
CLOSE_S = 5.0  # what closing the volume may take after everything was flushed, or after that was given up


def cluster_for_client(config: ClusterConfig) -> Cluster:
    """Return what the client library needs to know of a cluster."""
    return Cluster(
        cluster_id=config.cluster_id_bytes,
        members={member.id: Peer(member.address, member.public_key.encode()) for member in config.members},
        server_keys={server.name: server.public_key.encode() for server in config.servers},
    )


def client_options(config: ClusterConfig, options: MountOptions) -> ClientOptions:
    """Combine the configuration with ``-o``."""
    return ClientOptions(
        request_timeout_s=options.timeout_s or config.client.request_timeout,
        dirty_bytes_max=config.client.dirty_bytes,
        cache_bytes_max=config.client.block_cache_bytes,
        lease_bytes_max=config.client.lease_cache_bytes,
        read_ahead_blocks=config.client.read_ahead_blocks,
        chain=config.client.chain,
        log_data_bytes=config.client.log_data_bytes,
        short_circuit=config.client.short_circuit,
        read_only=options.read_only,
        leases=config.client.leases if options.leases is None else options.leases,
        write_through=options.write_through,
        stop_flush_s=CLOSE_S,
        host=socket.gethostname(),
        process=own_identity(),
        version=version("fusefs"),
    )


async def serve(life: Lifecycle, plan: Plan, announcer: Announcer) -> None:
    """Mount and serve until told to stop or unmounted. Tells ``announcer`` once, whatever happens."""
    state = await _claim(plan)
    try:
        table.check_mount_point(plan.mount)
        with trio.CancelScope() as starting:
            await _serve_volume(life, plan, announcer, starting, state)
    except Exception as error:
        if life.served:  # nobody waits for a word at the pipe any more, but whoever unmounts will look for one
            state.failure_path.write_text(describe(error) or f"unexpected {type(error).__name__}")
        raise
    finally:
        state.clear()
    if starting.cancelled_caught:
        raise FsError(Code.INTERRUPTED, "told to stop before the mount served")


async def _claim(plan: Plan) -> MountState:
    """Claim the mount point. A process that has unmounted there and still flushes is waited for.

    The lock is not released before the process ends: whoever waits for it waits for the process.
    """
    deadline = trio.current_time() + STOP_FLUSH_S
    while True:
        try:
            state, _lock = claim(plan.cluster_path, plan.mount, plan.log_path)
            return state
        except FsError as error:
            mounted = table.mounted_at(plan.mount) is not None
            if error.code is not Code.BUSY or mounted or trio.current_time() >= deadline:
                raise
        await trio.sleep(CLAIM_PAUSE_S)


async def _serve_volume(
    life: Lifecycle, plan: Plan, announcer: Announcer, starting: trio.CancelScope, state: MountState
) -> None:
    def serving() -> None:
        watch.cancel()
        log.info("mount serves", mount=plan.mount, cluster=str(plan.cluster_path))
        life.ready(f"serving {plan.mount}")
        announcer.serving()

    async def stop_starting() -> None:
        with watch:
            await life.wait_stop()
            starting.cancel()

    watch = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_starting)
        options = client_options(plan.config, plan.options)
        cluster = cluster_for_client(plan.config)
        async with open_volume(cluster, keys=plan.keys, mount=plan.mount, options=options) as volume:
            await _Kernel(life, plan, volume).serve(serving, state.socket_path)
            life.ending = True
            log.info("unmounted, flushing", mount=plan.mount)
            await flush(volume)
    log.info("everything is durable, the session is closed", mount=plan.mount)


async def flush(volume: Volume) -> None:
    """Write everything back, trying again for as long as a stop may take. Raises FsError with what is in the way."""
    deadline = trio.current_time() + STOP_FLUSH_S
    while True:
        try:
            await volume.syncfs()
            return
        except FsError as error:
            if trio.current_time() + FLUSH_PAUSE_S >= deadline:
                raise FsError(error.code, f"not everything that was written could be stored: {error}") from None
            log.warning("flushing failed, trying again", error=str(error))
        await trio.sleep(FLUSH_PAUSE_S)


class _Kernel:
    """The kernel's side of one mount: from pyfuse3.init to pyfuse3.close."""

    def __init__(self, life: Lifecycle, plan: Plan, volume: Volume) -> None:
        self._life = life
        self._volume = volume
        self._plan = plan
        self._crossings = Crossings()
        self._dropper = PageDropper(self._crossings)
        self._operations = Operations(volume, self._dropper, self._crossings)
        volume.locking.on_lost = self._operations.misled.lost
        volume.losses(self._dropper.drop)
        self._notifier: Notifier | None = None
        self._pruner: Pruner | None = None
        self._device = ""
        self._guard: Guard | None = None
        self._loop_of_ours = Loop() if plan.options.fast_loop else None
        if self._loop_of_ours is not None:
            self._crossings.idle_s = self._loop_of_ours.idle_s
        self._began_s = trio.current_time()

    async def serve(self, serving: Callable[[], None], socket_path: Path) -> None:
        """Mount, call ``serving`` when the first request was answered, return when the mount is gone."""
        self._mount()
        if self._loop_of_ours is not None:
            self._loop_of_ours.install(self._operations)
        try:
            async with trio.open_nursery() as nursery:
                self._take_requests(nursery)
                nursery.start_soon(self._dropper.run)
                nursery.start_soon(self._report_when_asked)
                nursery.start_soon(self._loop, nursery.cancel_scope)
                await self._probe()
                self._allow_caching(nursery)
                await self._show(nursery, socket_path)
                serving()
                nursery.start_soon(self._unmount_on_stop)
        finally:
            # After the loop nobody answers the kernel, so what is still mounted must go, then its descriptor.
            if self._is_ours():
                table.unmount(self._plan.mount, lazy=True)
            if self._guard is not None:
                self._guard.end()  # or a thread of ours might wait for somebody who waits for us
            if self._notifier is not None:
                self._notifier.close()
            pyfuse3.close(unmount=False)
            if self._loop_of_ours is not None:
                self._loop_of_ours.restore()
            self._operations.unmounted()

    def _mount(self) -> None:
        words = kernel_options(
            self._plan.options, source=table.source_of(self._plan.cluster_path), privileged=os.geteuid() == 0
        )
        check_fuse()
        try:
            if extension is not None:
                extension.take_locks(not self._plan.options.local_locks)
                extension.set_handler(self._too_early)  # before the session is made, else nothing is added to it
            pyfuse3.init(self._operations, self._plan.mount, words)
        except RuntimeError as error:
            where = f"; see {self._plan.log_path}" if self._plan.log_path else ""
            raise FsError(Code.PERMISSION, f"cannot mount on {self._plan.mount} ({error}){where}") from None
        mount = table.mounted_at(self._plan.mount)
        self._device = mount.device if mount is not None else ""
        if self._device:
            self._guard = Guard(self._device)
            self._operations.mappable.device = device_of(self._device)

    @staticmethod
    def _too_early(name: str, request: Any, arguments: tuple[Any, ...]) -> None:
        request.fail(errno.EAGAIN)

    def _take_requests(self, nursery: trio.Nursery) -> None:
        """Answer what pyfuse3 has no handler for too, where the extension has found its place."""
        if extension is None or not extension.serving():
            reason = missing or "libfuse was not asked through it"
            log.warning("locks hold between the programs of this mount only: no extension", reason=reason)
            return
        operations = self._operations
        requests = KernelRequests(
            self._volume,
            operations.files,
            operations.complaints,
            nursery,
            operations.profile,
            operations.kernel.grown,
        )
        extension.set_handler(requests.handle)
        operations.flusher = extension.take_flusher
        operations.unmasked = extension.unmasked
        operations.paged = extension.take_paged
        operations.of_reader = extension.take_by_handle
        operations.maps_direct = extension.maps_direct
        operations.keep_listing = extension.keep_listing
        operations.quiet, operations.quiet_answers = extension.QUIET, extension.quiet
        operations.incapable = Incapable(extension, self._volume.lacks_s)

    async def _loop(self, done: trio.CancelScope) -> None:
        await pyfuse3.main(min_tasks=WORKERS_MIN, max_tasks=WORKERS_MAX)
        done.cancel()

    async def _probe(self) -> None:
        """Ask our own mount as any program would: then it serves."""
        try:
            await trio.to_thread.run_sync(os.stat, self._plan.mount, abandon_on_cancel=True)
        except OSError as error:
            raise FsError(Code.IO, f"{self._plan.mount} does not answer: {error.strerror}") from None
        _raise_read_ahead(self._device)  # only now: the negotiation that comes first lowers it again

    def _allow_caching(self, nursery: trio.Nursery) -> None:
        """From now on the kernel may keep what our leases allow."""
        operations, limits = self._operations, self._plan.config.client
        leasing, options = self._volume.leasing, self._plan.options
        self._notifier = Notifier(
            fuse_descriptor(), names_too=leasing and options.cache_names, crossings=self._crossings
        )
        self._pruner = Pruner(operations.kernel, self._notifier, limits.kernel_inodes_bytes)
        nursery.start_soon(self._pruner.run)
        if leasing:
            cache = KernelCache(
                self._volume,
                operations.kernel,
                self._notifier,
                SystemClock().monotonic_s,
                operations.busy,
                limits.kernel_names_bytes,
                operations.mappable,
                operations.incapable,
                extension if operations.incapable is not None else None,
            )
            self._volume.changes(cache.changed)
            nursery.start_soon(cache.run)
            nursery.start_soon(self._watch_inside, cache)
            self._volume.caches(cache)
            operations.cache = cache
            operations.store = self._notifier.store

    async def _watch_inside(self, cache: KernelCache) -> None:
        """See whether something is mounted inside: forgetting all names would take it away."""
        with table.Changes() as changes:
            while True:
                if changes.any():
                    cache.crowded = table.holds_mounts(self._plan.mount)
                await trio.sleep(WATCH_INSIDE_S)

    async def _show(self, nursery: trio.Nursery, socket_path: Path) -> None:
        """Let others see what this mount does."""
        options, profile = self._plan.options, self._operations.profile
        nursery.start_soon(serve_profile, socket_path, self._document)
        if options.http:
            metrics = mount_metrics(profile, lambda: flat(self._statistics()))
            await nursery.start(serve_http, options.http, metrics, lambda: None, lambda: None)
        if options.keep_awake:
            nursery.start_soon(Wakeup(lambda: profile.count).run)

    def _document(self) -> MountProfile:
        elapsed_s = trio.current_time() - self._began_s
        operations = self._operations.profile.operations
        return MountProfile(self._plan.mount, elapsed_s, operations, flat(self._statistics()))

    def _statistics(self) -> dict[str, Any]:
        return {
            "volume": self._volume.statistics(),
            "mount": self._operations.statistics(),
            "dropper": self._dropper.statistics(),
            "pruner": self._pruner.statistics() if self._pruner is not None else {},
        }

    async def _report_when_asked(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                log.info("statistics", **self._statistics())

    async def _unmount_on_stop(self) -> None:
        await self._life.wait_stop()
        if await trio.to_thread.run_sync(self._leave, abandon_on_cancel=True):
            # Taken out of the tree but still in use, so the kernel does not end the loop: we do.
            pyfuse3.terminate()

    def _leave(self) -> bool:
        """Unmount, in a thread while the loop serves. True when users remain that will get errors."""
        path = self._plan.mount
        if not self._is_ours():
            return True
        try:
            table.unmount(path)
            return False
        except OSError as error:
            log.warning("unmounting lazily", mount=path, reason=error.strerror, users=table.users_of(path))
        try:
            table.sync(path)
        except OSError as error:
            log.warning("flushing before the lazy unmount failed", mount=path, error=str(error))
        table.unmount(path, lazy=True)
        return True

    def _is_ours(self) -> bool:
        mount = table.mounted_at(self._plan.mount)
        return mount is not None and mount.device == self._device


def check_fuse() -> None:
    """Raise FsError saying what this host or user lacks to mount anything."""
    if not os.path.exists(DEVICE):
        raise FsError(Code.NOT_SUPPORTED, f"{DEVICE} is missing; load the kernel module: modprobe fuse")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise FsError(Code.PERMISSION, f"this user may not open {DEVICE}; mount as root or have it chmod 666")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise FsError(Code.NOT_SUPPORTED, "fusermount3 is missing; install the package fuse3")


def _raise_read_ahead(device: str) -> None:
    path = f"/sys/class/bdi/{device}/read_ahead_kb"
    try:
        with open(path, "w") as file:
            file.write(str(READ_AHEAD_KIB))
    except OSError as error:
        log.info("reads stay small: cannot raise read_ahead_kb", path=path, error=str(error))


def raise_descriptor_limit() -> None:
    """Let this process open as many files and sockets as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
