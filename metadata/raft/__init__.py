"""Raft consensus as a pure state machine, and how to drive it.

``core.RawNode`` is one member of one group. It does no I/O, reads no clock and draws no random numbers of its own:
ticks, messages and a random function come in, and ``ready()`` says what is to be done. It never blocks and is not
for concurrent use: one task owns it.

Where to read
-------------
``core`` the interface; ``ready`` its output; ``state`` the fields, Config; ``election``, ``replication``, ``reads``
the protocol;
``log`` the log with what is not yet durable; ``progress`` a leader's view of one member; ``quorum``, ``membership``,
``readindex`` pure rules; ``storage`` what the core asks of the stable log; ``messages`` what travels.

The loop, synchronous
---------------------
The simplest driver, ``Config(async_storage=False)``::

    node = RawNode(config, storage, random)
    while True:
        wait for a tick, a message, a proposal or a read, and call
            node.tick() / node.step(message) / node.propose(data) / node.read_index(number)
        while node.has_ready():
            ready = node.ready()
            send(ready.messages)                       # now; they depend on nothing in this Ready
            storage: install ready.snapshot, append ready.entries, record ready.hard_state;
                     sync where ready.must_sync
            send(ready.messages_after_append)          # promises: votes, acknowledgements. Only after the sync
            apply(ready.committed)                     # CONF entries: node.apply_conf(decode_change(entry.data))
            answer the reads of ready.read_states whose index is applied
            node.advance()                             # exactly once, before the next ready()

The loop, asynchronous (production)
-----------------------------------
``Config(async_storage=True)``: the loop never waits for the disk or the state machine. Two workers take work in
order, one at a time each, and deliver what is attached to it without understanding it::

    ready = node.ready()
    send(ready.messages)
    if ready.append: log_worker.put(ready.append)      # StorageAppend
    if ready.apply:  apply_worker.put(ready.apply)     # StorageApply
    answer ready.read_states as above                  # there is no advance()

    log worker:   install work.snapshot, append work.entries, record work.hard_state, sync where work.must_sync
                  then for each of work.responses: to == this member: node.step(it), otherwise send(it)
    apply worker: apply work.entries; then deliver work.responses in the same way

The log worker may merge any number of waiting StorageAppends into one write and one sync (group commit), as long
as it writes them in order and delivers all their responses in order afterwards. A StorageAppend with nothing to
write still waits for those before it. The apply worker applies a CONF entry by calling ``apply_conf`` in the loop's
task, before the responses of that work are delivered.

Rules for the driver
--------------------
1. *Order.* Work is written in the order of the Readies. The core counts on term and vote being durable before any
   entry of that term, and on later entries replacing earlier ones with the same index.
2. *A failed write or sync ends the process.* There is no telling what is durable after it.
3. *One record.* (term, vote) is written atomically: a vote must never be seen with another term.
4. *Restart.* Make a new RawNode from what is durable. ``Config.applied`` is what the state machine holds, and
   ``Storage.initial_state`` returns the membership as of that index, which ``apply_conf`` returned when it was
   applied: keep it with the state. The core refuses (LogDamaged) a log that ends before what was applied, or begins
   after it.
5. *Identity.* A member that lost its disk has forgotten what it promised. It must not come back under its id; it
   joins under a new one as a learner.
6. *Founding.* All first members start with one and the same membership (``Storage.initial_state``) at the same index,
   or from the same snapshot. A later member starts with an empty log and an empty membership: no entry tells who the
   founders are, so it takes no entries before it got a snapshot.
7. *Proposals* are accepted by the leader only, may be lost until they are applied with the same (index, term), and
   may be applied after the proposer gave up. Exactly-once is the business of the state machine.
8. *ProposalDropped* is back-pressure: too much is uncommitted, or leadership is on its way elsewhere.
9. *Changes of membership* take effect when applied, one at a time. ``apply_conf`` raising ConfChangeInvalid means that
   the change has no effect, on every member alike. Add a voter as a learner first and promote it when it has caught
   up. Joint configurations with automatic leave are left by whoever leads, also after a crash.
10. *Snapshots.* The SNAPSHOT message is only the offer. The driver streams the state's bytes on another channel, and
    when they are complete and verified at the receiver it steps the message there. It calls ``report_snapshot`` at the
    leader when that ended, either way. Install is atomic: the state's applied index and the log's beginning change
    together, or a restart finds the gap.
11. *Unreachable peers*: ``report_unreachable`` when messages to a peer are known to be lost; heartbeats find out too,
    but later.
12. *Reads.* ``read_index(number)`` is answered by a ReadState; serve the read from state applied up to its index. It
    may never be answered: when ``soft_state`` shows another leader, or after a time-out, ask again. Numbers are the
    driver's own; the core never lets them confirm anything.
13. *Ticks* follow a monotonic clock. After a pause of the process feed at most the ticks of one heartbeat before
    stepping the messages that waited, so that a stalled member does not campaign on waking; with lease reads, on the
    contrary, a leader must be told all ticks that passed before it serves another read.
14. *Delivery.* Messages may be lost, repeated, delayed and reordered at will, across restarts of either side. Those to
    and from this member's own workers may not.

Invariants (asserted, also in production)
-----------------------------------------
- term and commit never fall; vote changes at most once in a term, and is durable before anyone hears of it
- applied <= applying <= committed <= last; entries at or below committed are never removed or replaced
- an entry is removed only when an append of the current leader proves another one at its index
- a leader commits by counting only entries of its own term, and counts itself only when its own disk has them
- a member counts towards ``match`` only by replies to what this leadership sent to this incarnation of it
- nothing is applied here before it is durable here
- no two configurations that could decide alone exist at the same time
"""
