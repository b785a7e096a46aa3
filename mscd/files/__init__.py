"""Reading and writing files of any kind: atomically, under a lock, or from untrusted sources.

`atomic` writes files that are complete or absent, `event_log` appends one line at a time, `markdown` formats tables;
`folder_lock` admits one process at a time to a folder; `safe_pickle` reads pickles without running anything in them.

Does not use torch. Imports nothing from mscd except `mscd.errors`; every package except `networks` may import it
(`make lint` checks both).
"""
