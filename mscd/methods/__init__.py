"""The methods by which students are trained, one folder each, and what a method is.

`interface` defines a method: the networks it trains, their losses, and which of them a step updates. `randomness` makes
every draw a function of (seed, purpose, position). A method is a folder: `settings` (read by mscd.config, without
torch), `training` and its mathematics.

The folder is all that names a method: a new one is found by its name. May import evaluation and everything below it.
"""
