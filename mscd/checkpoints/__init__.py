"""Network and state files: written, read, converted from pickled checkpoints, averaged after training.

Files of mscd: `tensor_file` is their form, `metadata` what they say of themselves, `network_file` those of networks.
Published ones: `edm_pickle` reads pickled checkpoints, `pickled_tensors` the tensors in them, `convert` makes network
files of them. `posthoc_ema` makes averages of other lengths from stored ones.

May import networks, config, diffusion, provenance, parallel, files and mscd.errors, as `make lint` checks. `metadata`
loads no torch.
"""
