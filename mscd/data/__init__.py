"""Training images: `sources` opens what a data set is packed from, `packing` packs it, `dataset` reads the packed one.

The rest are the formats that those come in. May import parallel, files and errors.
"""
