"""Work that goes on at the same time: processes that compute together, threads that read ahead, requests to stop.

`group` is the processes that train one network, `shared_memory` what those of a node share; `prefetch` works ahead in
a thread or on a GPU; `stop_request` asks a process to stop where it can go on later.

May import `files` and `mscd.errors`, as `make lint` checks. Knows nothing of networks, images or legs.
"""
