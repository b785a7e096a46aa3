"""Training images: `sources` opens what a data set is packed from, `packing` packs it, `splitting` holds images
out, and `dataset` reads the packed one.

The other modules support these: `archives` (folders, zips and tars), `cifar10` and `mnist` (these data sets as they are
published), `zip_format` and `name_table` (zips of over a million files), `images` and `transforms` (decoding and
cropping), and `labels` (classes).

Imports only parallel, files and mscd.errors, so it needs neither networks nor settings.
"""
