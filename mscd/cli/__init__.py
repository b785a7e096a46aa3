"""The command line, `mscd`: one module per command, which declares its options, help and examples, and calls one
function of the library; `main` gathers them and `options` holds what they share.

May import every package but launch. A command imports what it runs inside its function, so that help is there at once.
"""
