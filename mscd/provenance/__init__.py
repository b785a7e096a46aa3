"""Where things come from: third-party files by URL and sha256, their licences, and the code and software that ran.

Files: `urls` tells addresses from paths, `fetch` gets a file from either, `transfer` its bytes over http(s), `pins` has
the sha256 that it must have, `licenses` the terms of known ones. What ran: `code_version` and `software`.

May import `parallel`, `files` and `mscd.errors`, as `make lint` checks. What is here ends up in the metadata of what is
made.
"""
