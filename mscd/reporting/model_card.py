"""The model card of an exported network: README.md with the YAML header that huggingface_hub reads."""

from __future__ import annotations

import pandas as pd
import yaml

from mscd.checkpoints.metadata import DataFacts, NetworkFileMetadata, NetworkMetadata, StudentFacts
from mscd.config.methods import DEFAULT, METHODS
from mscd.diffusion.solvers import Solver
from mscd.files.markdown import markdown_table
from mscd.provenance.code_version import code_identity
from mscd.reporting.scores import decimals_for
from mscd.sampling.student import student_solver

# The hub's licence identifiers, by the beginning of the licence text.
_HUB_LICENSES = {
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY 4.0": "cc-by-4.0",
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
}
_USE = """## Use

    pip install torch safetensors
    python sample.py 0-63 images.ppm

This samples seeds 0 to 63, with a random class per image if the network has classes. `mscd/` is the part of the
software that the network needs, and `config.json` holds its settings. If mscd is installed,
`mscd generate model.safetensors{asked}` gives the same images for the same seeds.
"""
SAMPLER_NAMES = {"euler": "Euler (DDIM)", "ancestral": "ancestral sampling", "renoise": "denoising and new noise"}
_TABLE = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe", "min", "mean", "std"]
_MEASURED = ["fd_inf", "fd_inf_low", "fd_inf_high", "ratio", "ratio_low", "ratio_high", "kid", "precision", "recall"]
_MEASURED += ["density", "coverage", "is", "sfid", "cmmd", "memorised"]


def model_card(
    metadata: NetworkFileMetadata,
    student: StudentFacts,
    solver: Solver,
    sigmas: list[float],
    scores: pd.DataFrame | None,
) -> str:
    """Return the README.md of a student with this metadata, sampled by `solver` at these noise levels.

    scores: the rows of the student and its teacher, from `scores_of_network`, or None.
    """
    asked = "" if solver == student_solver(student) else f" --sampler {solver}"
    sections = [_header(metadata, student), _title(metadata, student), _USE.format(asked=asked)]
    if scores is not None:
        sections.append(_scores(scores))
    sections += [_making(metadata, student, solver, sigmas), _limits(student), _license(metadata)]
    return "\n".join(sections)


def hub_license(metadata: NetworkMetadata) -> dict[str, str]:
    """Return the licence keys of the hub's header, from the file that the network was made from; else claim none."""
    if "origin" not in metadata:
        return {"license": "other", "license_name": "not-stated", "license_link": "README.md"}
    for text, identifier in _HUB_LICENSES.items():
        if metadata["origin"]["license"] == text or metadata["origin"]["license"].startswith(f"{text} "):
            return {"license": identifier}
    return {"license": "other", "license_name": "as-of-the-original", "license_link": "README.md"}


def _header(metadata: NetworkMetadata, student: StudentFacts) -> str:
    method = student.get("method", "consistency-distillation")
    header = {
        **hub_license(metadata),
        "library_name": "mscd",
        "pipeline_tag": "unconditional-image-generation",
        "tags": [method, "few-step", "edm", "pytorch", "safetensors"],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def _title(metadata: NetworkFileMetadata, student: StudentFacts) -> str:
    network, segments = metadata["network"], student["segments"]
    size = f"{network['img_resolution']}×{network['img_resolution']}"
    kind = "RGB" if network["img_channels"] == 3 else "grey"
    classes = f"of {network['label_dim']} classes" if network["label_dim"] else "without classes"
    evaluations = "1 network evaluation" if segments == 1 else f"{segments} network evaluations"
    return (
        f"# {metadata['model']}: {size} images in {evaluations}\n\n"
        f"A generator of {size} {kind} images {classes}. It was distilled from an EDM teacher\n"
        f"([Karras et al. 2022](https://arxiv.org/abs/2206.00364)) by {method_title(student)}.\n"
        f"Each image takes {evaluations}.\n"
    )


def method_title(student: StudentFacts) -> str:
    """Return the name of the method that trained a student and its paper, as Markdown."""
    method = student.get("method", DEFAULT)
    return METHODS[method].title if method in METHODS else f"the method `{method}`"


def _scores(scores: pd.DataFrame) -> str:
    one = scores.iloc[0]
    decimals = decimals_for(scores["mean"].min())
    measured = [name for name in _MEASURED if name in scores and scores[name].notna().any()]
    cells = []
    for _, row in scores.iterrows():
        texts = ["" if pd.isna(row[name]) else str(row[name]) for name in _TABLE[:6]]
        values = ["" if pd.isna(row[name]) else f"{row[name]:.{decimals}f}" for name in _TABLE[6:]]
        cells.append([*texts, *values, *("" if pd.isna(row[name]) else f"{row[name]:.4g}" for name in measured)])
    table = markdown_table(["model", "kimg", *_TABLE[2:], *measured], cells, padded=False)
    about = (
        f"{one['metric']}, lower is better: minimum, mean and standard deviation over seed blocks of {one['images']} "
        f"images,\nagainst reference `{one['reference'][:12]}`."
    )
    if "fd_inf" in measured:
        about += " fd_inf: extrapolated to infinitely many images, with a 95 % interval."
    return f"## Scores\n\n{about} The teacher's rows are for comparison.\n\n" + "\n".join(table) + "\n"


def _making(metadata: NetworkMetadata, student: StudentFacts, solver: Solver, sigmas: list[float]) -> str:
    kimg = metadata.get("snapshot_kimg")
    facts = [
        f"training images: {_data(metadata.get('data'))}",
        f"training: {'not recorded' if kimg is None else f'{kimg} thousand images seen'}, "
        f"weight average `{metadata['ema']}`",
        f"segments: {student['segments']}{_grid(student)}",
        f"sampler: {SAMPLER_NAMES[solver]} at noise levels {', '.join(f'{sigma:.6g}' for sigma in sigmas)}",
        f"network digest: `{metadata['digest']}`",
        f"exported by: {code_identity()}",
    ]
    if "origin" in metadata:
        facts.insert(0, f"made from: {metadata['origin']['source']} (sha256 `{metadata['origin']['sha256']}`)")
    return "## How it was made\n\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"


def _grid(student: StudentFacts) -> str:
    if "nodes" in student:
        return ""
    return f", on the Karras grid from {student['sigma_max']:g} to {student['sigma_min']:g} with rho {student['rho']:g}"


def _data(data: DataFacts | None) -> str:
    if data is None or not data.get("digest"):
        return "not recorded"
    origin = data.get("origin")
    made_from = f", made from {origin['source']} (sha256 `{origin['sha256'] or 'none'}`)" if origin else ""
    return f"data set with digest `{data['digest']}`{made_from}"


def _limits(student: StudentFacts) -> str:
    return (
        "## Limits\n\n"
        f"- The network is meant to be evaluated at these {student['segments']} noise levels; other samplers or steps "
        "give worse images.\n"
        "- It shows what its training images show, including their biases, and may closely resemble some of them.\n"
        "- A seed gives the same image on the same kind of device; other kinds round differently.\n"
        "- Scores can be compared only if their metric and reference are the same.\n"
    )


def _license(metadata: NetworkMetadata) -> str:
    weights, images = "No licence is stated for the weights; whoever publishes them chooses one.", "not recorded here."
    if "origin" in metadata:
        origin = metadata["origin"]
        weights = f"The weights are made from {origin['source']} and inherit its terms: {origin['license']}."
    data = metadata.get("data")
    if data and (made_from := data.get("origin")):
        images = f"{made_from['license']} ({made_from['source']})."
    return (
        f"## Licence\n\n{weights}\nThe terms of the training images: {images}\n"
        "`sample.py` and `mscd/`: Apache-2.0 (`mscd/LICENSE`).\n"
    )
