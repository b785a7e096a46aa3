"""Network and state files: written, read, converted from pickled checkpoints, averaged after training.

May import networks, config, diffusion, provenance, parallel and files. `metadata` loads no torch.
"""
