"""Images from a network, each a function of its seed alone, and the files they go to.

`sample` makes them in memory, with what `seeds` draws; `generate` from a network file into a file of images.
`image_writers` are the kinds of those, `sample_file` the `.npz` that is scored, `image_grid` pictures to look at.

May import what is below it: checkpoints, data, networks, config, diffusion, provenance, parallel, files and
mscd.errors, as `make lint` checks.
"""
