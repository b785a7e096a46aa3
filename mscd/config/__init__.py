"""Settings of a run as pydantic models, how they are read, and where a run's files are.

`run` puts the sections together: `data`, `network`, `training`, `reference` and `scoring`, each in a module of its own.
`base` has what all are made of, `loading` reads them, `error_text` tells what is wrong in a line, `docs` makes
config/README.md of them. `run_paths` names every file of results/<name>.

May import diffusion (what is torch-free there), provenance, parallel, files and errors, and loads no torch: `make lint`
checks it.
"""
