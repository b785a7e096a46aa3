"""Sampling: images from a network, each a function of its seed alone, and the files they are written to.

`sample` makes images in memory from the draws of `seeds`; `generate` turns a network file into a file of images.
`student` says how a student is sampled. `image_writers` writes all forms of such files, `sample_file` the `.npz` that
is scored, and `image_grid` grids for viewing.

May import the packages below it: checkpoints, data, networks, config, diffusion, provenance, parallel, files and
mscd.errors, as `make lint` checks.
"""
