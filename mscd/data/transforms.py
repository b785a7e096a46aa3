"""Names of the ways to crop images to a resolution. Imports nothing, so that a command's help can list them."""

TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal")
