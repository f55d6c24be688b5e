"""What the kernel may keep of our answers, for how long, and how it is told to forget.

A time-out never exceeds what is left of the leases, less a margin for the way of the reply. What is recalled is
forgotten at once: attributes inode by inode, by a call that waits for nobody; names one by one, by calls from a thread
that wait for the lock of their directory. No recall may wait for a handler that waits for the leader (rule 5), and the
kernel holds that lock for every look-up, listing and change under way there. So where one is, or the thread meets one,
all names of the mount are made void instead, by raising its epoch, which takes no lock.

Raising the epoch has a price: at the next look the kernel throws away every name of the mount that it meets, with the
pages of files that are not open and with whatever is mounted on it, in any namespace. So a directory where it had to be
done is not told of for a while, longer each time (``Cooling``), and while something is mounted inside the mount the
kernel is given no names at all.

Replies that the kernel has not looked at yet: it compares attributes from look-ups and getattrs with what was
invalidated after it *asked*, so a recall that overtakes them makes them void. Names arrive under the directory's lock,
for which the thread waits. Two things need care here: attributes in replies to changes are not compared, and get no
time unless the inode is new to the kernel; and a look-up that only revalidates a name holds no lock: such replies are
given time to arrive (``Arriving``). An inode that the kernel does not know yet it cannot forget: it is told again until
it can.

Pages that programs have mapped for writing may hold bytes that we know nothing of (rule 8). So of files that are open
for reading and writing, which mapping takes, the pages go too when their lease is recalled: the kernel writes back what
is dirty, and is answered at once. That waits for pages that are locked, and not for ever (``pages``). Who reads such a
page does not wait for the recall, is answered again by the service until a lease covers what it has read
(``Session.read``, ``held``), and where the recall has met it the pages go once more. Who has mapped a file for reading
never asks us again, so pages of what is mapped so (``mappings``) go, too.

Void means also that a read which had asked goes on with the size and the pages that were there before. So attributes
that were sent a moment ago are given time to arrive before they are recalled (``arrival``), and attributes whose time
is over are not recalled at all. Pages go with the recall where any were filled since the last one: then the size was
told under the same lease, and it does not matter that it is told again in vain. But those of a file that somebody reads
all the time do not go at once, for each answer about attributes makes the kernel drop them; if none comes they go some
moments later. What is locked, and so cannot be dropped in time, goes before the next attributes are sent instead
(``KernelView.doubt``); those the kernel does not compare then, so a file that has grown shows that one look later. Such
a file is one that several mounts change at this moment; so what was recalled lately is opened for direct I/O
(``contended``), which asks us for bytes and size together, and only who had it open before can notice. What is read in
the pages of others and ends before the file that they see does is refused once (``fusefs.mount.crossing``).

A directory's own attributes the kernel forgets with each change by name, and asks for them before the next one, because
it checks permissions. They are answered by the extension, where a lease says that they are true (``show``); and so is,
where all names are known, that the one which is about to be made is not there. The kernel does not keep that.

Listings of small directories are kept as pages of the directory. Each opening asks us, and after a recall the kernel is
not allowed to go on with what it has; it also compares mtime, which somebody may have set back, when it begins. What is
open at that moment may be read again from its beginning: there the pages go with the recall.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import trio

from fusefs.mount.arrival import looked
from fusefs.mount.attributes import IO_BYTES
from fusefs.mount.incapable import Incapable
from fusefs.mount.kernel import MARGIN_S, KernelView
from fusefs.mount.mapped import Mappable
from fusefs.mount.names import Arriving, Busy, Cooling, ToldNames
from fusefs.mount.notify import Notifier
from fusefs.mount.pages import CHANGED, LOOK_S, READ, Pages
from metadata.api import Attr
from node.wire.limits import KERNEL_NAMES_BYTES, SESSION_LEASE_S

INLINE_MAX = 16  # inodes; a thread hop costs as much as many of them
NEGATIVE_AFTER = 3  # a missing name that was asked for so often is believed to be missing by the kernel too
ASKED_MAX = 4096
LISTED_MAX = 256
LISTINGS_MAX = 16_384
ARRIVAL_S = 0.002  # for a reply to reach who asked, at least
OWED_S = 0.02  # for the next question about what was asked for a moment ago
SHOWN_S = 1.0  # what is to be believed for less is promised anew
LOOKED_S = 0.25  # from then on whoever asked has looked at it, on a busy machine too
THREADS_MAX = 8  # that have asked for the attributes of one inode lately
PROOF_S = 0.05  # until a reply that no lock orders has arrived for certain
NAMES_MAX = 1024  # taken back one by one in one recall; more of them would cost others more than the epoch costs us
WANTED_S = 0.25  # the kernel is told nothing for so long of what was recalled, or made where others look
CONTENDED_S = 3.0  # a file is opened for direct I/O for so long after a recall
CONTENDED_MAX = 4096
LOCK_S = 0.1  # a lock that we know nothing of is waited for so long
AGAIN_S_MIN = 0.0005
AGAIN_S_MAX = 0.05
AGAIN_S = 1.0  # in all, until an inode that is not known is believed to be none


class Leased(Protocol):
    """How long answers stay true: fusefs.client.volume.Volume."""

    def known(self, ino: int) -> Attr | None: ...

    def names(self, ino: int) -> dict[bytes, int] | None: ...

    def attr_left_s(self, attr: Attr) -> float: ...

    def name_left_s(self, parent: int, name: bytes, ino: int) -> float: ...

    def name_known(self, parent: int, name: bytes) -> bool: ...

    def alone(self, ino: int) -> bool: ...


class Shown(Protocol):
    """What the kernel is told of directories without asking us: fusefs.mount._fuseops."""

    def show(self, attr: Attr, unit_bytes: int, left_s: float, names: dict[bytes, int] | None, /) -> None: ...

    def hide(self, ino: int, /) -> float | None: ...

    def hide_all(self) -> None: ...


class _Told(NamedTuple):
    """When the kernel was sent attributes, until when it believes them, and which threads asked for them lately."""

    at_s: float
    until_s: float
    threads: tuple[int, ...] = ()


class KernelCache:
    """The kernel's caches of one mount. Where ``notifier`` cannot take names back they are never cached there.
    ``clock_s`` is the one that leases go by, ``busy`` tells which directories the kernel has locked. ``run`` is a task
    that it needs."""

    def __init__(
        self,
        leased: Leased,
        view: KernelView,
        notifier: Notifier,
        clock_s: Callable[[], float],
        busy: Busy,
        names_bytes_max: int = KERNEL_NAMES_BYTES,
        mapped: Mappable | None = None,
        incapable: Incapable | None = None,
        shown: Shown | None = None,
    ) -> None:
        self._leased = leased
        self._view = view
        self._clock_s = clock_s
        self._attrs: OrderedDict[int, _Told] = OrderedDict()  # inodes whose attributes the kernel may believe, by age
        self._names = ToldNames(SESSION_LEASE_S, names_bytes_max)
        self._asked: OrderedDict[tuple[int, bytes], int] = OrderedDict()  # missing names -> how often
        self._cooling = Cooling()
        self._arriving = Arriving(PROOF_S)
        self._listed: dict[int, float] = {}  # directories of which a page was told, when last
        self._recalled: OrderedDict[int, float] = OrderedDict()  # inodes by the time when they were recalled last
        self._wants: OrderedDict[int, float] = OrderedDict()  # inodes that others want, until when it counts
        self._renamed: dict[int, dict[bytes, None]] = {}  # names carried over without a lease
        self._forgetting = 0  # recalls that take names back, which the kernel may still believe
        self._owed: dict[int, float] = {}  # inodes whose pages are left to the next question, until when
        self._wake = trio.Event()
        self._notifier = notifier
        self._busy = busy
        self._mapped = mapped or Mappable()
        self._pages = Pages(view, self._mapped, notifier)
        self._incapable = incapable
        self._shown = shown
        self._listings: dict[int, bool] = {}  # directories whose listing the kernel keeps, by the last opening
        self._open: dict[int, int] = {}  # and how many of those are open
        self.crowded = False  # something is mounted inside the mount
        self._counts = {"again": 0, "contended": 0}

    # --- time-outs ----------------------------------------------------------------------------------------------

    def attr_s(self, attr: Attr, thread: int = 0) -> float:
        """How long the kernel may believe attributes that are sent to it now, before anything else is awaited.
        ``thread``: as in ``asked_s``."""
        left_s = self._leased.attr_left_s(attr) - MARGIN_S
        now_s = self._clock_s()
        if left_s <= 0 or self._wanted(attr.ino, now_s):
            left_s = 0.0
        attrs = self._attrs
        threads: tuple[int, ...] = (thread,) if thread else ()
        older = attrs.pop(attr.ino, None)
        if older is not None and older.threads and older.at_s > now_s - LOOKED_S:
            threads += tuple([one for one in older.threads if one != thread][: THREADS_MAX - 1])
        attrs[attr.ino] = _Told(now_s, now_s + left_s + ARRIVAL_S if left_s else now_s, threads)
        for _ in range(2):  # more go than come, so that what is over is gone soon
            oldest = next(iter(attrs))
            if attrs[oldest].until_s > now_s or attrs[oldest].at_s + ARRIVAL_S > now_s:
                break
            del attrs[oldest]
        return left_s

    def show(self, ino: int) -> None:
        """Names of this directory were just changed from here. The kernel asks for its attributes before the next one,
        and whether what it is to make is there already, and is told how it is now, as long as it may believe that."""
        shown = self._shown
        attr = None if shown is None else self._leased.known(ino)
        if shown is None or attr is None:
            return
        now_s, older = self._clock_s(), self._attrs.get(ino)
        if self._wanted(ino, now_s):
            return
        if older is None or older.until_s < now_s + SHOWN_S:
            left_s = self._leased.attr_left_s(attr) - MARGIN_S
            if left_s <= 0:
                return
            self._attrs.pop(ino, None)  # what may be told must be known, or it would not be taken back
            at_s, _, threads = older or _Told(0.0, 0.0)
            older = self._attrs[ino] = _Told(at_s, now_s + left_s + ARRIVAL_S, threads)
        shown.show(attr, IO_BYTES, older.until_s - ARRIVAL_S - now_s, self._leased.names(ino))

    def changed(self, inos: Iterable[int]) -> None:
        """These were changed from here: they are told anew."""
        if self._shown is not None:
            for ino in inos:
                self._shown.hide(ino)

    def asked_s(self, attr: Attr, thread: int) -> float:
        """The same for who reads the file, and acts on the size that he is told."""
        self._mapped.asked(attr.ino, self._clock_s())
        return self.attr_s(attr, thread)

    def name_s(self, parent: int, name: bytes, ino: int) -> float:
        """How long it may believe that a name means this. Only for replies that arrive under the directory's lock."""
        if not self._notifier.names_too or self.crowded:
            return 0.0
        left_s = self._leased.name_left_s(parent, name, ino) - MARGIN_S
        if left_s <= 0:
            return 0.0
        now_s = self._clock_s()
        if self._wanted(parent, now_s) or not self._cooling.hot(parent, now_s) or not self._names.room(now_s):
            return 0.0
        self._names.tell(parent, name, now_s)
        return left_s

    def made_s(self, parent: int, name: bytes, attr: Attr, *, new: bool) -> tuple[float, float]:
        """How long it may believe attributes and name of what was just made, ``new`` to it: where others look at the
        directory they are likely to come for that next, and would have to wait for its being taken back."""
        if not self._leased.alone(parent) or self._wanted(parent, self._clock_s()):
            self._want((attr.ino,))
            return 0.0, 0.0
        return self.attr_s(attr) if new else 0.0, self.name_s(parent, name, attr.ino)

    def name_again_s(self, parent: int, name: bytes, ino: int, thread: int) -> float:
        """The same for a reply to a look-up of ``thread`` that may only revalidate what the kernel has."""
        left_s = self.name_s(parent, name, ino)
        if left_s:
            self._arriving.sent(thread, parent, self._clock_s())
        return left_s

    def listed_s(self, parent: int, name: bytes, ino: int) -> float:
        """The same for an entry in a page of a directory."""
        left_s = self.name_s(parent, name, ino)
        if left_s:
            self._listed[parent] = self._clock_s()
            if len(self._listed) > LISTED_MAX:
                since_s = self._clock_s() - PROOF_S
                self._listed = {parent: at_s for parent, at_s in self._listed.items() if at_s > since_s}
        return left_s

    def proven(self, thread: int) -> None:
        """This thread asks for something: what it was told before has arrived."""
        self._arriving.proven(thread)

    def missing_s(self, parent: int, name: bytes) -> float:
        """How long it may believe that there is no such name. Not before it was asked for some times: one that is
        about to be created is not."""
        key = parent, name
        asked = self._asked.pop(key, 0) + 1
        self._asked[key] = asked
        if len(self._asked) > ASKED_MAX:
            self._asked.popitem(last=False)
        return self.name_s(parent, name, 0) if asked >= NEGATIVE_AFTER else 0.0

    # --- our own changes ----------------------------------------------------------------------------------------

    def creating(self, parent: int, name: bytes) -> None:
        """This name is about to come into being."""
        self._asked.pop((parent, name), None)

    def keeps_listing(self, ino: int) -> bool:
        """A directory of which all is known is opened: the kernel keeps its listing from now on. Return whether it may
        go on with the one it has kept before."""
        self._open[ino] = self._open.get(ino, 0) + 1
        kept = self._listings.pop(ino, False)
        self._listings[ino] = True
        if len(self._listings) > LISTINGS_MAX:
            del self._listings[next(iter(self._listings))]
        return kept

    def closed_listing(self, ino: int) -> None:
        """A directory that was opened so is closed."""
        self._open[ino] -= 1
        if not self._open[ino]:
            del self._open[ino]

    def renaming(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """The kernel is about to carry what it believes of one name over to another, and back in an exchange."""
        now_s = self._clock_s()
        told = self._names.told
        if self._forgetting or told(parent, name, now_s) or told(new_parent, new_name, now_s):
            self._names.tell(parent, name, now_s)
            self._names.tell(new_parent, new_name, now_s)

    def renamed(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """It has been answered. Where there is no lease on what it carried over, that would never be recalled."""
        for directory, changed in ((parent, name), (new_parent, new_name)):
            if not self._leased.name_known(directory, changed):
                self._renamed.setdefault(directory, {})[changed] = None
                self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            with trio.move_on_after(OWED_S / 2) if self._owed else nullcontext():
                await self._wake.wait()
            self._wake = trio.Event()
            await self._drop_owed()
            names, self._renamed = self._renamed, {}
            if self._notifier.names_too:
                await self._forget_names({parent: list(renamed) for parent, renamed in names.items()})

    # --- forgetting ---------------------------------------------------------------------------------------------

    def expire(self, inos: Collection[int], names: Collection[tuple[int, bytes]] = ()) -> bool:
        """These are about to be changed from here: have their attributes asked for again. Does not wait. Return
        whether the kernel asks for these names too, and shows nothing of the inodes that it has been told before."""
        for ino in inos:
            self._listings.pop(ino, None)
        now_s, told = self._clock_s(), self._believed(self._take(inos))
        unknown = self._notifier.forget_attributes(told) if told else []
        return not (
            any(one.at_s > now_s - ARRIVAL_S for one in told.values())  # the reply that names it may be on its way
            or any(map(self._view.knows, unknown))
            or any(ino in self._open for ino in inos)
            or self._mapped.among(inos)
            or any(self._names.told(parent, name, now_s) for parent, name in names)
        )

    def yields(self, ino: int) -> bool:
        """Whether the kernel believes nothing of this inode. From then on others may change it: the same as a recall
        that finds nothing to forget."""
        if not self.expire((ino,)) or self._readers((ino,)):
            return False
        self._note((ino,))
        return True

    def contended(self, ino: int) -> bool:
        """Whether other mounts have changed this lately, so that an answer may be void by the time it arrives."""
        at_s = self._recalled.get(ino)
        return at_s is not None and self._clock_s() < at_s + CONTENDED_S

    def _wanted(self, ino: int, now_s: float) -> bool:
        """Whether others are likely to want this at any moment: then the kernel asks us each time, which costs less
        than to make it forget."""
        return now_s < self._wants.get(ino, now_s)

    def _want(self, inos: Iterable[int]) -> None:
        until_s, wants = self._clock_s() + WANTED_S, self._wants
        for ino in inos:
            wants[ino] = until_s
            wants.move_to_end(ino)
        while len(wants) > CONTENDED_MAX:
            wants.popitem(last=False)

    def _note(self, inos: Collection[int]) -> None:
        """Others change these from now on."""
        if self._incapable is not None:
            self._incapable.forget(inos)
        self.changed(inos)
        self._want(inos)
        self._view.outdate([ino for ino in inos if not self._mapped.readable(ino)])
        now_s, recalled = self._clock_s(), self._recalled
        for ino in inos:
            recalled[ino] = now_s
            recalled.move_to_end(ino)
        while recalled and (len(recalled) > CONTENDED_MAX or next(iter(recalled.values())) < now_s - CONTENDED_S):
            recalled.popitem(last=False)

    async def forget(self, inos: Collection[int]) -> None:
        """Return when nothing of these inodes is believed any more."""
        self._note(inos)
        for ino in inos:
            self._listings.pop(ino, None)
        await self._forget_names(self._names.take(inos, self._clock_s()))
        sent = self._take(inos)
        told = self._believed(sent)
        mapped = self._mapped.among(inos)
        # Where there are none nothing is told, or who begins to read now goes on with a size that others have changed
        filled = self._mapped.filled(mapped)
        self._view.doubt(filled)
        await self._pages.drop(filled, CHANGED)
        await self._forget_read([ino for ino in inos if ino not in mapped], sent, told)
        await self._forget_attrs(told)
        if self._open:
            await self._pages.drop([ino for ino in inos if ino in self._open], READ)

    async def _forget_read(self, inos: Collection[int], sent: dict[int, _Told], told: dict[int, _Told]) -> None:
        """Drop pages that no program can have changed. Where attributes are not believed the kernel asks, and compares,
        before it shows them to who reads; but not to who has mapped them, so these are looked for. Dropping them makes
        the answer to such a question void, so where one was asked a moment ago they are left to the next one, or are
        dropped when none comes (``run``). Files that nobody has open keep their pages until somebody opens them."""
        read = [ino for ino in self._view.paged(told) if self._mapped.readable(ino)]
        mapped = await self._mapped.mapped(self._readers([ino for ino in inos if ino not in told]))
        now_s = self._clock_s()
        for ino in mapped:
            if self._mapped.asks(ino, now_s):
                self._view.owe(ino)
                self._owed[ino] = now_s + OWED_S
                self._wake.set()
            else:
                read.append(ino)
        self._view.doubt(read)
        await self._arrive({ino: sent[ino] for ino in read if ino in sent})
        await self._pages.drop(read, READ)

    async def _drop_owed(self) -> None:
        """Drop pages that were left to a question which did not come, or was answered with nothing new."""
        now_s, due = self._clock_s(), []
        for ino, at_s in list(self._owed.items()):
            if not self._view.owes(ino):
                del self._owed[ino]
            elif self._mapped.asking.any_of((ino,)):
                self._owed[ino] = now_s + OWED_S
            elif at_s <= now_s:
                del self._owed[ino]
                due.append(ino)
        self._view.doubt(due)
        await self._pages.drop(due, READ)

    def _readers(self, inos: Collection[int]) -> list[int]:
        """Those of these that may be mapped for reading, and may have pages."""
        return self._mapped.filled(self._mapped.read_only(inos))

    async def forget_all(self) -> None:
        """Return when nothing is believed any more."""
        if self._incapable is not None:
            self._incapable.forget_all()
        if self._shown is not None:
            self._shown.hide_all()
        self._listings.clear()
        await self._forget_names(self._names.take_all(self._clock_s()))
        told = self._believed(self._take(list(self._attrs)))
        self._view.doubt(told)  # and no others: what nobody tells of them is compared
        await self._forget_attrs(told)
        changed = [*self._mapped.filled(self._mapped.changeable()), *self._open]
        self._view.doubt(changed)
        await self._pages.drop(changed, CHANGED)
        await self._pages.drop(await self._mapped.mapped(self._readers(self._mapped.read_only())), READ)

    async def _forget_names(self, names: dict[int, list[bytes]]) -> None:
        self._forgetting += 1
        try:
            while names:
                if self._busy.any_of(names) or sum(map(len, names.values())) > NAMES_MAX:
                    if await self._void(names):
                        return
                await self._arrived(names)
                if await self._forget_one_by_one(names):
                    return
                names = self._names.take(names, self._clock_s())  # a rename may have carried some over meanwhile
        finally:
            self._forgetting -= 1

    async def _forget_one_by_one(self, names: dict[int, list[bytes]]) -> bool:
        """Returns True when the thread met a lock, and all names are void instead."""
        void = False
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def forget() -> None:
                await trio.to_thread.run_sync(self._notifier.forget_names, names, abandon_on_cancel=True)
                done.set()

            nursery.start_soon(forget)
            patience = trio.current_time() + LOCK_S
            while not done.is_set() and not void:
                with trio.move_on_after(LOOK_S):
                    await done.wait()
                met = self._busy.any_of(names) or trio.current_time() > patience
                void = not done.is_set() and met and await self._void(names)
            nursery.cancel_scope.cancel()  # the thread goes on, for nobody
        return void

    async def _arrived(self, names: dict[int, list[bytes]]) -> None:
        """Wait until what was sent about these directories has arrived."""
        while True:
            left_s = self._arriving.left_s(names, self._clock_s())
            if left_s <= 0:
                return
            await trio.sleep(min(left_s, LOOK_S))

    async def _void(self, parents: Iterable[int]) -> bool:
        """Make all names void. False where this cannot be done."""
        now_s = self._clock_s()
        for parent in parents:
            self._cooling.cool(parent, now_s)
        self._counts["contended"] += 1
        if self.crowded or not self._notifier.forget_all_names():
            return False
        self._names.take_all(now_s)
        listed = [at_s for parent in parents if (at_s := self._listed.get(parent)) is not None]
        if listed and max(listed) + PROOF_S > now_s:  # a page on its way takes the epoch in which it arrives
            await trio.sleep(max(listed) + PROOF_S - now_s)
            self._notifier.forget_all_names()
        return True

    def _take(self, inos: Iterable[int]) -> dict[int, _Told]:
        """What the kernel was told of some inodes, and will not believe any more."""
        taken, now_s = {}, self._clock_s()
        for ino in inos:
            told = self._attrs.pop(ino, None)
            ago_s = None if self._shown is None else self._shown.hide(ino)
            if told is not None:
                taken[ino] = told if ago_s is None else told._replace(at_s=max(told.at_s, now_s - ago_s))
        return taken

    def _believed(self, taken: dict[int, _Told]) -> dict[int, _Told]:
        """What of that it believes now."""
        now_s = self._clock_s()
        return {ino: told for ino, told in taken.items() if told.until_s > now_s}

    async def _arrive(self, told: dict[int, _Told]) -> None:
        """Wait until the kernel has seen what it was told."""
        if told:
            wait_s = max(one.at_s for one in told.values()) + ARRIVAL_S - self._clock_s()
            if wait_s > 0:
                await trio.sleep(wait_s)
            since_s = self._clock_s() - LOOKED_S
            await looked({thread for one in told.values() if one.at_s > since_s for thread in one.threads})

    async def _forget_attrs(self, told: dict[int, _Told]) -> None:
        inos = set(told)
        await self._arrive(told)
        end = trio.current_time() + AGAIN_S
        pause_s = AGAIN_S_MIN
        while inos:
            if len(inos) <= INLINE_MAX:
                unknown = self._notifier.forget_attributes(inos)
            else:
                unknown = await trio.to_thread.run_sync(self._notifier.forget_attributes, inos)
            inos = {ino for ino in unknown if self._view.knows(ino)}
            if not inos or trio.current_time() >= end:
                return
            self._counts["again"] += len(inos)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S_MAX)

    def statistics(self) -> dict[str, Any]:
        return {
            "attrs": len(self._attrs),
            "names": len(self._names),
            "names_bytes": self._names.weight,
            "listings": len(self._listings),
            "asked": len(self._asked),
            "recalled": len(self._recalled),
            **self._counts,
            **self._pages.counts,
            **{f"forgotten_{name}": count for name, count in self._notifier.counts.items()},
        }
