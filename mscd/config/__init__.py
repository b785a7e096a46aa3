"""Settings of a run as pydantic models, how they are read, and where a run's files are.

`run` puts the sections together, `loading` reads them, `run_paths` names every file of results/<name>. May import
diffusion, provenance, parallel, files and errors, and loads no torch.
"""
