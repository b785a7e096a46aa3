"""Training of one leg of a run, from the state it starts from to the snapshot it leaves.

`leg` defines a leg and its files on disk; `loop` trains one and reads from top to bottom. `setup` prepares what the
loop needs, `batches` feeds it, `denoising` is how a teacher is trained (students: mscd.methods), `state` and
`optimizer` hold what changes, `diagnostics` collects what is monitored and `snapshot` writes the result. Thanks to
mscd.methods.randomness and `attempts`, a leg that is interrupted anywhere ends in the same bytes.

May import methods and everything below it. `leg` and `attempts` do not load torch, because launchers use them.
"""
