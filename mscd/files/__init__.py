"""How files are written and read, whatever is in them: whole or not at all, locked, or from somebody not to be trusted.

Torch-free. Imports nothing of mscd but `mscd.errors`; everything else may import it.
"""
