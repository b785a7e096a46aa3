"""Settings of a run as pydantic models, how they are loaded, and where a run's files are.

`run` combines the sections, each defined in its own module: `data`, `network`, `training`, `reference` and `scoring`.
`methods` finds the settings of each method in mscd/methods. `base` has the building blocks of all sections, `loading`
reads a configuration, `error_text` describes an error in one line, and `docs` generates config/README.md and
config/schema.json. `run_paths` names every file in results/<name>.

May import diffusion (its torch-free parts), provenance, parallel, files and errors, and loads no torch; `make lint`
checks this.
"""
