"""The command line, `mscd`: one module per command, which declares its options, help and examples, and calls one
function of the library.

Networks: `convert`, `ema`, `generate`, `export`. Images and what they are compared by: `pack`, `reference`, `score`.
Settings and files: `plan`, `info`. `main` gathers the commands, `options` holds what they share.

May import every package but launch, which is the workflow's. A command imports what it runs inside its function, so
that help is there at once.
"""
