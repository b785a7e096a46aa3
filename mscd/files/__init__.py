"""How files are written and read, whatever is in them: whole or not at all, locked, or from somebody not to be trusted.

`atomic` writes a file whole or not at all, `event_log` a line at a time, `markdown` tables; `folder_lock` lets one
process at a time into a folder; `safe_pickle` reads pickles and runs nothing in them.

Torch-free. Imports nothing of mscd but `mscd.errors`; everything but networks may import it (`make lint` checks both).
"""
