"""Network and state files: reading, writing, conversion from pickled checkpoints, and post-hoc averaging.

mscd's own files: `tensor_file` defines their format, `metadata` what they say about themselves, `student_sampling` what
they say about sampling a student, and `network_file` the files of networks. Published checkpoints: `edm_pickle` reads
pickled ones, `pickled_tensors` the tensors in them, and `convert` converts them to network files. `posthoc_ema`
combines stored averages into averages of other lengths.

May import networks, config, diffusion, provenance, parallel, files and mscd.errors, as `make lint` checks. `metadata`
does not import torch.
"""
