"""The command line, `mscd`. Each command has its own module, which declares the command's options, help and examples
and calls one function of the library.

Networks: `convert`, `ema`, `generate`, `export`. Images and their scores: `pack`, `reference`, `score`. Settings and
files: `plan`, `info`. `main` collects the commands; `options` holds what they share.

May import every package except launch, which belongs to the workflow. Each command imports what it runs inside its
function, so that help appears at once.
"""
