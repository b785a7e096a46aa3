"""Training: a leg of a run, from the state it starts from to the snapshot it leaves.

`leg` says what a leg is and what it leaves on disk, `loop` trains one and reads from top to bottom; `setup` makes what
the loop needs, `batches` feeds it, `objectives` has the losses (their formulas are in mscd.diffusion), `state` and
`optimizer` hold what changes, `diagnostics` what is watched, `snapshot` what is left. `randomness` and `attempts` are
why a leg cut anywhere ends in the same bytes.

May import evaluation and everything below it. `leg` and `attempts` load no torch: launchers use them.
"""
