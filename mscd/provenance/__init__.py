"""Where things come from: third-party files by URL and sha256, their licences, and the code and software that ran.

Files: `urls` distinguishes URLs from paths, `fetch` gets a file from either, `transfer` downloads its bytes over
http(s), `pins` keeps its expected sha256, `licenses` the terms of known files. What ran: `code_version` and `software`.

May import `parallel`, `files` and `mscd.errors`, as `make lint` checks. What it finds is recorded in the metadata of
everything that is made.
"""
