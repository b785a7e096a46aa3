"""Images from a network, each a function of its seed alone, and the files they go to.

`sample` makes them in memory, `generate` from a network file into a file of images. Imports what is below it:
mscd.checkpoints, mscd.data, mscd.networks, mscd.diffusion, mscd.provenance, mscd.parallel, mscd.files.
"""
