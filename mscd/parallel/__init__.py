"""Work that goes on at the same time: processes that compute together, threads that read ahead, requests to stop.

May import `files`. Knows nothing of networks, images or legs.
"""
