"""How images may be cropped to a resolution; imports nothing, so that a command's help may name them."""

TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal")
