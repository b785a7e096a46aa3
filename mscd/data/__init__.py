"""Training images: `sources` opens what a data set is packed from, `packing` packs it, `dataset` reads the packed one.

The rest is what those come in and go by: `archives` (folders, zips, tars), `cifar10` and `mnist` as their sites have
them, `zip_format` and `name_table` for zips of over a million files, `images` and `transforms` for decoding and
cropping, `labels` for classes.

Imports parallel, files and mscd.errors alone, so that it needs neither networks nor settings.
"""
