"""Every bound of the system in one place. Bytes, counts and seconds; relations are asserted at import."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Names and inodes
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
FILE_BYTES_MAX = (1 << 63) - 1
LINKS_MAX = 65_000
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 64 * KIB
XATTRS_BYTES_MAX = 64 * KIB  # names and values of one inode together

# Blocks
BLOCK_BYTES_MAX = 1 * MIB  # plaintext of a block, and the size of a file chunk
PIECE_BYTES = 64 * KIB
BLOCK_STORED_BYTES_MAX = BLOCK_BYTES_MAX + 4 * KIB  # raw pieces and the piece table
SEGMENT_BYTES_MAX = 256 * MIB
PUT_BLOCKS_MAX = 1024
PUT_BYTES_MAX = 4 * BLOCK_STORED_BYTES_MAX
GET_RANGES_MAX = 1024
GET_BYTES_MAX = 8 * MIB  # encoded, of one reply
STORE_GROUP_BYTES_MAX = 16 * MIB  # what one fdatasync of a chunk server covers
STORE_PENDING_BYTES_MAX = 64 * MIB  # puts that a chunk server holds in memory; beyond: OVERLOADED
STORE_RESERVE_BYTES = 16 * MIB  # of a disk, kept free of data so that touches and deletions work on a full one
STORE_OPEN_SEGMENTS_MAX = 128
STORE_SEGMENTS_MIN = 32  # a store of small capacity has smaller segments, so that compaction needs little room
SEGMENT_BYTES_MIN = 8 * MIB
SEGMENT_AHEAD_BYTES = 64 * MIB  # set aside in the active segment, where the disk has room for so many times that:
SEGMENT_AHEAD_SHARE = 32
WRITTEN_CACHED_BYTES = 128 * MIB  # of what was written last, kept in the kernel's memory; the rest when it is read
WRITTEN_STEP_BYTES = 8 * MIB
UNCONFIRMED_MAX = 16_384  # blocks in one list
LOCATE_BLOCKS_MAX = 256  # in one request: a few milliseconds of a chunk server
SUSPECTS_MAX = 256  # copies that a reader has a chunk server look at, in one request
SUSPECTS_KEPT_MAX = 4096  # of them that are missing and wait for the next heartbeats
GROUP_DIGESTS_MAX = 4096  # groups in one request
ORDERS_MAX = 256  # in one reply to a heartbeat
REPORTS_MAX = 256  # in one heartbeat
SYNC_SOURCES_MAX = 16  # of one order
SYNC_GROUPS_MAX = 4  # that a chunk server makes complete at a time
SYNC_PAGE_BLOCKS = 1024
SYNC_WANTED_MAX = 4096  # blocks that a group is known to lack; then they are pulled before more are listed
SYNC_PULLS_MAX = 4  # under way for one group
SYNC_BATCH_BLOCKS_MAX = 256
SYNC_BATCH_BYTES = 1 * MIB  # soft: one block always travels
SYNC_BYTES_PER_S = 128 * MIB  # that a chunk server pulls from others
SYNC_CALL_S = 15.0
SYNC_PAUSE_S_MIN = 0.5  # between two rounds, doubled up to
SYNC_PAUSE_S_MAX = 30.0
SCRUB_BYTES_PER_S = 8 * MIB  # a terabyte in a day and a half
SCRUB_INTERVAL_S = 86_400.0  # from the beginning of a pass to that of the next, where it takes less
SCRUB_STEP_BYTES = 1 * MIB  # soft: one block is always whole
DROP_BATCH_BLOCKS = 512
QUARANTINE_S = 86_400.0  # a deleted block can be brought back for as long, while there is room for it
STORE_PRESSURE = 0.8  # of its capacity in use: a store gives up quarantine, and compacts more eagerly
COMPACTION_DEAD = 0.5  # of a segment: then it is compacted
COMPACTION_DEAD_PRESSED = 0.05
COMPACTION_STEP_BYTES = 4 * MIB
COMPACTION_BYTES_PER_S = 64 * MIB
CATALOG_MAP_BYTES = 64 * GIB
CATALOG_PENDING_MAX = 65_536  # entries; then the catalog is committed
CATALOG_LAG_BYTES_MAX = 256 * MIB  # of segments that a start has to scan
CATALOG_COMMIT_S = 5.0

# Extents
INLINE_EXTENTS_MAX = 16
EXTENTS_PER_CHUNK_MAX = 64  # a writer that would leave more rewrites the chunk instead
REWRITTEN_CHUNKS_MAX = 8  # at a time, in one commit
COMMIT_EXTENTS_MAX = 4096
LOG_DATA_COMMIT_BYTES = 16 * KIB  # plaintext that a commit may bring along in the log entry
LOG_DATA_ENTRY_BYTES = 1 * MIB  # that all commits of one entry may
LOG_DATA_STATE_BYTES = 64 * MIB  # of it in the state, until it is moved to chunk servers
LOG_DATA_ROW_BYTES = 256  # what a block counts there beside its bytes: so its rows are bounded too
LOG_DATA_PAGE_BYTES = 256 * KIB  # soft: of it in one answer about extents
LOG_MOVE_S = 1.0  # how often what came with log entries is moved: what is overwritten sooner never moves
LOG_MOVE_BLOCKS = 256  # in one request
LOG_MOVE_BYTES = 1 * MIB  # soft
LOG_MOVE_CALL_S = 10.0
EXTENT_PAGE_MAX = 2048
COMPACT_EXTENTS_MIN = 8  # of a chunk: then they are put together, some time after the last write
COMPACT_QUIET_S = 10.0
COMPACT_FOUND_S = 60.0  # what a reader finds is left to whoever wrote it for so long
COMPACT_BYTES_PER_S = 8 * MIB
CHUNK_EXTENTS_MAX = 256  # refused above: what a chunk may hold at all
SUBMIT_EXTENTS_MAX = 8192  # of all operations of a Submit together, so that applying it is short
ERASE_ROWS_MAX = 1024  # rows of extents that a truncate or punch removes at once; the rest is paced
ERASE_EXTENTS_MAX = 4096
SUBMIT_WORK_MAX = 65_536  # rows and extents that a Submit may touch beside its own; the rest of it is refused
PURGES_MAX = 8  # paced erasures of one file at a time

# Requests
FRAME_PARTS_MAX = PUT_BLOCKS_MAX + 2
HEADER_BYTES_MAX = 256
BODY_BYTES_MAX = 4 * MIB
MESSAGE_BYTES_MAX = 16 * MIB
SUBMIT_OPS_MAX = 1024
SUBMIT_BASES_MAX = 4 * SUBMIT_OPS_MAX  # inodes that an operation touches at most, for each
READ_QUERIES_MAX = 1024
READDIR_PAGE_MAX = 1024
READDIR_PAGE_BYTES_MAX = 512 * KIB
LOOKUP_PATH_DEPTH_MAX = 256
DEADLINE_S_MAX = 300.0
REQUEST_TIMEOUT_S = 30.0
IN_FLIGHT_PER_PEER_MAX = 1024  # requests
CREDIT_BYTES = 32 * MIB  # payload in flight to one peer

# Sessions
SESSION_LEASE_S = 10.0
SESSION_RENEW_S = 2.5
LEASE_MARGIN_S = 0.5  # how far two clocks may drift apart in the course of a lease: 5 %
SURRENDER_S_MAX = 300.0  # to bring what was changed under exclusive leases and others want, for a mount that lives
RECLAIM_AFTER_S = 2.0  # to bring it to a new leader, who is told of it instead when that takes longer
LEASES_PER_SESSION_MAX = 100_000
SESSION_EXPIRY_S = 60.0
ROOM_BYTES_MAX = 1 * GIB  # what a session may acknowledge before it is durable
ROOM_MARGIN_BYTES = 64 * MIB  # of the free space; heartbeats tell of it a little late
RESULT_WINDOW = 4096  # unacknowledged results kept for a session
SESSIONS_MAX = 4096
INO_RANGE_MAX = 65_536
INO_UNUSED_MAX = 4 * INO_RANGE_MAX  # inode numbers that a session was given and has not used
SESSION_RESULT_BYTES_MAX = 64 * MIB  # of the results kept for a session
SESSION_TEXT_BYTES_MAX = 4096  # host, mount, version; name, address of a chunk server
RELEASE_INOS_MAX = 4096
NOT_HELD_MAX = 4096
ORPHANS_PAGE_MAX = 4096

# Locks of files
LOCKS_PER_INODE_MAX = 4096  # held and waited for
LOCKS_PER_SESSION_MAX = 16_384  # inodes: their locks go in one entry when the session ends
LOCK_CYCLE_STEPS_MAX = 65_536  # comparisons until a search for a deadlock is given up
LOCAL_LOCKS_MAX = 128  # of an inode, held and waited for, that a mount decides about by itself: many in one Submit
LOCAL_LOCKED_FILES_MAX = 4096  # inodes with such
LOCK_ALONE_ASK_S = 1.0  # a mount that may not decide about a file's locks asks again after this
LOCK_ASK_S = 2.0  # a waiter asks this often whether its turn has come, should the message have been lost

# The state machine
DIRECTORY_DEPTH_MAX = 16_384  # directories between the root and the target of a directory's rename
RECLAIM_ROWS_MAX = 4096  # of one paced step
RECLAIM_BLOCKS_MAX = 16_384  # block names in one command of the garbage collector
INODE_CACHE_MAX = 16_384

# Raft
RAFT_TICK_S = 0.05
RAFT_ELECTION_TICKS = 10
RAFT_HEARTBEAT_TICKS = 2
RAFT_ENTRY_BYTES_MAX = BODY_BYTES_MAX + 4 * KIB
RAFT_MESSAGE_BYTES_MAX = 1 * MIB  # soft: at least one entry always travels
RAFT_INFLIGHT_MESSAGES_MAX = 256
RAFT_INFLIGHT_BYTES_MAX = 16 * MIB
RAFT_UNCOMMITTED_BYTES_MAX = 64 * MIB
RAFT_READS_WAITING_MAX = 65_536  # linearizable reads that one member has under way
RAFT_ENVELOPE_BYTES_MAX = 4 * MIB  # soft: one message always travels
PEER_GREET_RETRY_S = 0.2
LOG_SEGMENT_BYTES = 64 * MIB
LOG_RESERVE_BYTES = 16 * MIB  # kept free so that unlink works on a full disk
LOG_TRAILING_ENTRIES = 50_000
LOG_TRAILING_BYTES = 256 * MIB  # of them, where data travels in the log
LOG_CACHE_BYTES = 16 * MIB
LOG_RECORD_BYTES = 1 * MIB  # soft: one entry is never split
LOG_BUFFER_BYTES = 1 * MIB  # written to the file, unsynced, when as many wait
LOG_ZERO_BYTES = 1 * MIB  # zeros written ahead in a segment
LOG_OPEN_FILES_MAX = 16
SNAPSHOT_CHUNK_BYTES = 1 * MIB
SNAPSHOT_BYTES_PER_S = 64 * MIB  # leaves the others their share of the network and the disk
SNAPSHOT_LOAD_S = 600.0  # the receiver builds its state of it meanwhile
SNAPSHOT_STALL_S = 30.0  # a stream in which nothing moves for this long is given up
READ_ROUNDS_MAX = 2  # read-index rounds under way: one is asked while the answers of the one before are made
READ_ROUND_PATIENCE_S = 0.2  # a read-index round without an answer is followed by another
STATE_COMMIT_ENTRIES = 4096
STATE_COMMIT_S = 1.0
STATE_COMMIT_CHANGES = 16_384  # rows: a dirty page is 4 KiB of private memory
STATE_MAP_BYTES = 64 * GIB
STATE_LOAD_ITEMS = 10_000  # a transaction, while a snapshot is loaded
STATE_MARGIN_BYTES = 4 * MIB  # left free on disk beyond what a commit may need

# Placement
PLACEMENT_GROUPS_MIN = 64  # powers of two: a group splits in two when the table doubles
PLACEMENT_GROUPS_MAX = 1 << 16
PLACEMENT_GROUPS_PER_SERVER = 8
TABLE_ITEMS_MAX = 4096  # of one entry
TABLE_SETTLE_S = 3.0  # a new volume's first table waits this long for the servers that the configuration names
SERVER_SILENT_S = 10.0  # without a heartbeat a chunk server counts as not alive
NOOUT_S = 600.0  # and is given up after this, so that its groups get a substitute for good
INTRODUCED_MAX = 4096  # chunk servers whose keys came after cluster.toml
ROW_SERVERS_MAX = 32  # of a group, with all that come and go
TABLE_ROWS_MAX = 8192  # of a difference that a chunk server gets with one heartbeat; the others follow at once
TABLE_REPLY_ROWS_MAX = 512  # of one that comes with the answer to a put; who lacks more asks the metadata service
TABLE_WAIT_S = 2.0  # a delete of a newer table waits this long until the chunk server knows that too

# Healing
HEAL_DUTY_S = 0.5  # how often the leader looks at rows and reports
HEAL_ASK_S = 2.0  # how often it asks every chunk server what it holds
HEAL_CALL_S = 5.0
HEAL_AGAIN_ASKS = 5  # groups whose members differ are read again after so many of these, if they still do
CENSUS_BUSY_ROUNDS = 10  # of questions, about a group that never gives the same answers twice
HEAL_GROUPS_MAX = 64  # reading orders under way in the whole cluster
HEAL_GROUPS_PER_SERVER_MAX = 16
HEAL_MOVES_MAX = 16  # groups that move for balance or a drain at the same time

# The metadata leader
METADATA_WAITING_MAX = 16_384  # requests that wait in one member
LEADER_DUTY_S = 0.5  # how often the leader looks at what is due
LAST_ANSWERS_S = 2.0  # a member that stops waits this long for what runs, and for its successor
RECLAIM_ROWS = 512  # one entry frees so many rows
GC_INTERVAL_S = 60.0  # between rounds of the garbage collector; blocks are deleted two to three rounds after their end
GC_PAGE_BLOCKS = 4096
GC_PAGES_PER_ROUND_MAX = 256
GC_CALL_S = 10.0
GC_COUNT_MAX = 65_536  # candidates that are counted for people
AUDIT_S = 2.0  # the leader has all members digest a slice of their state this often, while the state changes
AUDIT_IDLE_S = 10.0  # and this often while nothing else is in the log
AUDIT_ROWS = 2048  # of a slice: about a millisecond
AUDIT_ROWS_MAX = 16_384
PROMOTE_LAG_MAX = 1000  # entries that a learner may lack and still become a voter
TRANSFER_WAIT_S = 3.0  # the answer to a transfer of leadership waits this long for it

# The mount
GROUP_BYTES_MAX = 4 * MIB  # plaintext that is encoded, put and committed together; one thread hop, one request
DIRTY_BYTES_MAX = 64 * MIB
BLOCK_CACHE_BYTES = 64 * MIB
READ_AHEAD_BLOCKS = 8
PLACES_MAX = 16_384  # blocks of which a mount remembers where chunk servers of its own host have them
PLACE_BYTES = 400  # of memory for one of them
PIECE_TABLES_MAX = 1024  # of blocks there that are read in part, for each server
PIECE_TABLE_BYTES = 2048  # of memory for one of them
SHORT_CIRCUIT_THREADS = 4
SHORT_CIRCUIT_READING_MAX = 16  # at a time; more are asked for
SHORT_CIRCUIT_S = 0.5  # what a disk may take; then the block is asked for, and the disk is left alone for:
SHORT_CIRCUIT_PAUSE_S = 10.0
SHORT_CIRCUIT_AGAIN_S = 300.0  # and a server whose files cannot be read for so long
SHORT_CIRCUIT_FILES_MAX = 64  # open segments of one server
SHORT_CIRCUIT_IDLE_S = 1.0  # an open segment is let go when it was removed, or not read for so long
DISK_READS_MAX = 64  # reads that are under way without a thread
DISK_READ_SLOW_S = 0.02  # while one takes longer, no other one is begun where it might keep the caller waiting
LEASE_CACHE_BYTES = 64 * MIB  # what a mount remembers of inodes under its leases
STORED_BYTES_MAX = 64 * KIB  # of a file that is put into the kernel's pages when it is opened
KERNEL_NAMES_BYTES = 16 * MIB  # to know which names the kernel believes; it is told no more than fit
KERNEL_INODES_BYTES = 64 * MIB  # to know which inodes the kernel knows
FUSE_REQUEST_BYTES_MAX = 1 * MIB
BUFFER_BYTES_MAX = 8 * MIB  # of one buffer that is kept for the next one when it is free
BUFFERS_KEPT_BYTES = 32 * MIB  # of free memory at the end of a heap
OPEN_HANDLES_MAX = 1 << 20

# Processes
STOP_FLUSH_S = 60.0
SOCKET_PATH_BYTES_MAX = 107

assert BLOCK_BYTES_MAX % PIECE_BYTES == 0
assert BLOCK_STORED_BYTES_MAX <= PUT_BYTES_MAX <= MESSAGE_BYTES_MAX
assert BODY_BYTES_MAX + PUT_BYTES_MAX <= MESSAGE_BYTES_MAX
assert BODY_BYTES_MAX + GET_BYTES_MAX <= MESSAGE_BYTES_MAX
assert SYNC_BATCH_BYTES + BLOCK_STORED_BYTES_MAX <= GET_BYTES_MAX and SYNC_BATCH_BLOCKS_MAX <= GET_RANGES_MAX
assert SYNC_PAGE_BLOCKS <= UNCONFIRMED_MAX
assert PUT_BYTES_MAX <= STORE_GROUP_BYTES_MAX <= STORE_PENDING_BYTES_MAX
assert INLINE_EXTENTS_MAX <= EXTENTS_PER_CHUNK_MAX
assert BLOCK_BYTES_MAX <= GROUP_BYTES_MAX <= PUT_BYTES_MAX
assert SESSION_RENEW_S * 2 < SESSION_LEASE_S < SESSION_EXPIRY_S
assert RAFT_HEARTBEAT_TICKS < RAFT_ELECTION_TICKS
assert RAFT_ENTRY_BYTES_MAX > BODY_BYTES_MAX
assert CREDIT_BYTES >= MESSAGE_BYTES_MAX
assert RAFT_ENVELOPE_BYTES_MAX + RAFT_ENTRY_BYTES_MAX + RAFT_MESSAGE_BYTES_MAX <= MESSAGE_BYTES_MAX

# Connections
RECONNECT_GRACE_S = 1.0  # a request waits this long for a connection, then the peer counts as down
INTRODUCTION_GRACE_S = 5.0  # and this long where somebody is there and the handshake has not ended
RECONNECT_MIN_S = 0.025
RECONNECT_MAX_S = 0.1  # a dead peer costs ten attempts a second; it is back within one of them
REFUSED_RETRY_S = 1.0  # after a refusal (key, cluster, version): somebody has to change something first
HEARTBEAT_INTERVAL_S = 5.0
HEARTBEAT_TIMEOUT_S = 15.0
HANDSHAKE_TIMEOUT_S = 5.0
LINGER_S = 1.0  # how long a stopping server's last answers may take to leave
CREDIT_ACK_BYTES = CREDIT_BYTES // 8  # one-way traffic is acknowledged in steps of this
PEERS_MAX = 16_384  # connections to one server
PEER_SWEEP_S = 10.0  # idle peers are asked whether they are still there

assert HEARTBEAT_INTERVAL_S < HEARTBEAT_TIMEOUT_S
assert RECONNECT_MIN_S <= RECONNECT_MAX_S < RECONNECT_GRACE_S <= INTRODUCTION_GRACE_S
assert CREDIT_ACK_BYTES * 2 <= CREDIT_BYTES
assert COMPACT_EXTENTS_MIN < EXTENTS_PER_CHUNK_MAX
assert INLINE_EXTENTS_MAX <= EXTENTS_PER_CHUNK_MAX <= CHUNK_EXTENTS_MAX <= EXTENT_PAGE_MAX
assert COMMIT_EXTENTS_MAX <= SUBMIT_EXTENTS_MAX
assert LOG_DATA_COMMIT_BYTES <= LOG_DATA_ENTRY_BYTES <= BODY_BYTES_MAX // 2
assert LOG_DATA_PAGE_BYTES + LOG_DATA_COMMIT_BYTES <= BODY_BYTES_MAX // 2
assert LOG_MOVE_BLOCKS <= PUT_BLOCKS_MAX and 2 * LOG_MOVE_BYTES <= PUT_BYTES_MAX
