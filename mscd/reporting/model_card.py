"""The model card of an exported network: README.md with the YAML header that huggingface_hub reads."""

from __future__ import annotations

import pandas as pd
import yaml

from mscd.checkpoints.metadata import DataFacts, NetworkFileMetadata, NetworkMetadata, StudentFacts
from mscd.files.markdown import markdown_table
from mscd.provenance.code_version import code_identity
from mscd.reporting.scores import decimals_for

# Beginnings of license texts, and the identifiers that the hub has for them.
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

draws the images of seeds 0 to 63, of random classes where there are classes. `mscd/` is the part of the software that
the network needs, `config.json` holds its settings. Where mscd is installed, `mscd generate model.safetensors` gives
the same images for the same seeds.
"""
_TABLE = ["model", "snapshot_kimg", "ema", "sampler", "steps", "nfe", "min", "mean", "std"]


def model_card(
    metadata: NetworkFileMetadata, student: StudentFacts, sigmas: list[float], scores: pd.DataFrame | None
) -> str:
    """README.md of a student whose file has this metadata and is sampled at these noise levels.

    scores: its rows and its teacher's, of `scores_of_network`, or None.
    """
    sections = [_header(metadata), _title(metadata, student), _USE]
    if scores is not None:
        sections.append(_scores(scores))
    sections += [_making(metadata, student, sigmas), _limits(student), _license(metadata)]
    return "\n".join(sections)


def hub_license(metadata: NetworkMetadata) -> dict[str, str]:
    """The license keys of the hub's header: those of the file that the network was made from, else none is claimed."""
    if "origin" not in metadata:
        return {"license": "other", "license_name": "not-stated", "license_link": "README.md"}
    for text, identifier in _HUB_LICENSES.items():
        if metadata["origin"]["license"] == text or metadata["origin"]["license"].startswith(f"{text} "):
            return {"license": identifier}
    return {"license": "other", "license_name": "as-of-the-original", "license_link": "README.md"}


def _header(metadata: NetworkMetadata) -> str:
    header = {
        **hub_license(metadata),
        "library_name": "mscd",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["consistency-distillation", "few-step", "edm", "pytorch", "safetensors"],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def _title(metadata: NetworkFileMetadata, student: StudentFacts) -> str:
    network, segments = metadata["network"], student["segments"]
    size = f"{network['img_resolution']}×{network['img_resolution']}"
    kind = "RGB" if network["img_channels"] == 3 else "grey"
    classes = f"{network['label_dim']} classes" if network["label_dim"] else "no classes"
    evaluations = "1 network evaluation" if segments == 1 else f"{segments} network evaluations"
    return (
        f"# {metadata['model']}: {size} images in {evaluations}\n\n"
        f"A generator of {size} {kind} images of {classes}. It was distilled from an EDM teacher\n"
        "([Karras et al. 2022](https://arxiv.org/abs/2206.00364)) by multistep consistency distillation\n"
        f"([Heek et al. 2024](https://arxiv.org/abs/2403.06807)). An image takes {evaluations}.\n"
    )


def _scores(scores: pd.DataFrame) -> str:
    one = scores.iloc[0]
    decimals = decimals_for(scores["mean"].min())
    cells = []
    for _, row in scores.iterrows():
        texts = ["" if pd.isna(row[name]) else str(row[name]) for name in _TABLE[:6]]
        values = ["" if pd.isna(row[name]) else f"{row[name]:.{decimals}f}" for name in _TABLE[6:]]
        cells.append([*texts, *values])
    table = markdown_table(["model", "kimg", *_TABLE[2:]], cells, padded=False)
    return (
        f"## Scores\n\n{one['metric']}, lower is better, over blocks of {one['images']} images against reference "
        f"`{one['reference'][:12]}`: minimum, mean and standard\ndeviation over the blocks of seeds. "
        "The teacher's rows are for comparison.\n\n" + "\n".join(table) + "\n"
    )


def _making(metadata: NetworkMetadata, student: StudentFacts, sigmas: list[float]) -> str:
    kimg = metadata.get("snapshot_kimg")
    facts = [
        f"training images: {_data(metadata.get('data'))}",
        f"training: {'not recorded' if kimg is None else f'{kimg} thousand images seen'}, weights `{metadata['ema']}`",
        f"segments: {student['segments']}, of the Karras grid from {student['sigma_max']:g} to "
        f"{student['sigma_min']:g} with rho {student['rho']:g}",
        f"sampler: Euler at noise levels {', '.join(f'{sigma:.6g}' for sigma in sigmas)}",
        f"network digest: `{metadata['digest']}`",
        f"exported by: {code_identity()}",
    ]
    if "origin" in metadata:
        facts.insert(0, f"made from: {metadata['origin']['source']} (sha256 `{metadata['origin']['sha256']}`)")
    return "## How it was made\n\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"


def _data(data: DataFacts | None) -> str:
    if data is None or not data.get("digest"):
        return "not recorded"
    origin = data.get("origin")
    made_from = f", made from {origin['source']} (sha256 `{origin['sha256'] or 'none'}`)" if origin else ""
    return f"data set of digest `{data['digest']}`{made_from}"


def _limits(student: StudentFacts) -> str:
    return (
        "## Limits\n\n"
        f"- It is made to be evaluated at these {student['segments']} noise levels; other samplers or steps give worse "
        "images.\n"
        "- It shows what its training images show, with their biases, and may come close to single ones.\n"
        "- Seeds give the same images on one kind of device; another rounds differently.\n"
        "- A score compares with others of the same metric and reference only.\n"
    )


def _license(metadata: NetworkMetadata) -> str:
    weights, images = "The weights: not stated; whoever publishes them chooses.", "not recorded here."
    if "origin" in metadata:
        origin = metadata["origin"]
        weights = f"The weights are made from {origin['source']}, whose terms pass on to them: {origin['license']}."
    data = metadata.get("data")
    if data and (made_from := data.get("origin")):
        images = f"{made_from['license']} ({made_from['source']})."
    return (
        f"## Licence\n\n{weights}\nThe terms of the training images: {images}\n"
        "`sample.py` and `mscd/`: Apache-2.0 (`mscd/LICENSE`).\n"
    )
