"""What a metadata member keeps on disk.

``layout`` the directory · ``log`` the Raft log: ``record`` its bytes, ``segment`` writing, ``scan`` and ``replay``
starting, ``index`` and ``batches`` finding and reading, ``reserve`` the full disk · ``engine_lmdb`` and its twin
``engine_memory`` the applied state · ``snapshot`` a whole state on its way · ``disk`` what all of it (but LMDB) asks
of an operating system.
"""
