"""Concurrent work: processes that compute together, threads that read ahead, requests to stop.

`group` joins the processes that train one network, `shared_memory` lets those on a node share memory; `prefetch` works
ahead in a thread or on a GPU; `stop_request` asks a process to stop where it can resume later.

May import `files` and `mscd.errors`, as `make lint` checks. Knows nothing of networks, images or legs.
"""
