"""Scripted interactions of Raft members, with expected output.

``python -m tests.golden.raft SCRIPT`` replays a script. A script is a sequence of directives:

    # a comment
    add-nodes 3 voters=(1,2,3) index=10
    ----
    ok

The first line is a verb with arguments ``value``, ``key=value`` or ``key=(value, value)``. Further lines are its
input: more verbs of the same directive, or for ``propose-conf-change`` the changes (``v4`` add or promote a voter,
``l5`` add or demote a learner, ``r2`` remove). After ``----`` stands the expected output, up to a blank line.

Nothing happens by itself: messages wait until ``deliver-msgs``, a member's output until ``process-ready``, and with
``async-storage-writes=true`` its disk and its state machine until ``process-append-thread`` and
``process-apply-thread``. ``stabilize`` does all of it until nothing is left. ``world.VERBS`` lists the verbs.
"""
