"""A plan as Markdown, ready to paste into a proposal."""

from __future__ import annotations

from mscd.files.markdown import markdown_table
from mscd.networks.meta import parameter_count
from mscd.planning.disk import Files
from mscd.planning.plan import Plan, Stage

UNITS = ["", "k", "M", "G", "T", "P", "E", "Z"]


def markdown(plan: Plan, *, gpus: int = 1, images_per_second: float | None = None, tflops: float = 150.0) -> str:
    """Return tables of work, time and disk space.

    gpus: how many share the work, with perfect scaling; images_per_second: what ONE of them distils, which also sets
    the speed of all other work. Without it, a GPU is assumed to do `tflops` 10¹² FLOP per second.
    """
    speed = images_per_second * plan.distillation if images_per_second else tflops * 1e12
    lines = [f"**{plan.name}**: {_network(plan)}", "", *_work(plan, speed, gpus), "", *_assumptions(plan, speed, gpus)]
    if images_per_second:
        lines[-1] += f" (measured: {images_per_second:g} distilled images per second per GPU)"
    lines += [f"- {note}" for note in plan.notes]
    return "\n".join([*lines, "", *_memory(plan), "", *_disk(plan)]) + "\n"


def _network(plan: Plan) -> str:
    net, cost = plan.net, plan.cost
    return (
        f"{net.init_kwargs['model_type']} for {net.img_resolution}×{net.img_resolution}×{net.img_channels} images of "
        f"{net.label_dim} classes, {parameter_count(net):,} parameters, {quantity(cost.forward)}FLOP per evaluation"
    )


def _work(plan: Plan, speed: float, gpus: int) -> list[str]:
    total = sum(stage.flops for stage in plan.stages)
    header = ["stage", "images", "optimiser steps", "evaluations per image", "network evaluations", "FLOP", "GPU-hours"]
    header += [f"hours on {gpus} GPUs"] if gpus > 1 else []

    def row(name: str, cells: list[str], flops: int) -> list[str]:
        hours = flops / speed / 3600
        return [name, *cells, quantity(flops), amount(hours), *([amount(hours / gpus)] if gpus > 1 else [])]

    rows = [row(stage.name, _cells(stage), stage.flops) for stage in plan.stages]
    steps, evaluations = sum(stage.steps or 0 for stage in plan.stages), sum(s.evaluations for s in plan.stages)
    rows.append(row("**all**", ["", f"{steps:,}", "", f"{evaluations:,}"], total))
    return numbers_table(header, rows)


def _cells(stage: Stage) -> list[str]:
    steps = "–" if stage.steps is None else f"{stage.steps:,}"
    return [f"{stage.images:,}", steps, f"{stage.nfe:g}" if stage.nfe else "–", f"{stage.evaluations:,}"]


def _assumptions(plan: Plan, speed: float, gpus: int) -> list[str]:
    machine = f"{gpus} GPUs with perfect scaling, each" if gpus > 1 else "1 GPU"
    forward, both = quantity(plan.cost.forward), quantity(plan.cost.forward_backward)
    return [
        f"- FLOPs are counted on the network, a multiply-add as two: {forward}FLOP per evaluation, {both}FLOP with its "
        f"backward pass. A training image of the first student takes {quantity(plan.distillation)}FLOP. What a method "
        "computes besides evaluating these networks is left out.",
        f"- Scores: {plan.scores:,}. Their stages include the work of detectors and metrics; reading data is left out.",
        f"- Time: {machine} at {quantity(speed)}FLOP/s",
    ]


def _memory(plan: Plan) -> list[str]:
    """Return a table of what a process holds in memory for each training."""
    rows = [[held.model, ", ".join(held.networks), f"{quantity(held.bytes)}B"] for held in plan.memory]
    header = ["in memory per process, without activations", "networks", "size"]
    return numbers_table(header, rows)


def _disk(plan: Plan) -> list[str]:
    rows = [*_files(plan.files, "at the end"), *_files(plan.passing, "in addition, while it runs")]
    return numbers_table(["on disk", "files", "size"], rows)


def _files(files: list[Files], total: str) -> list[list[str]]:
    rows = [[file.what, f"{file.count:,}", f"{quantity(file.bytes)}B"] for file in files]
    return [*rows, [f"**{total}**", "", f"{quantity(sum(file.bytes for file in files))}B"]]


def quantity(value: float) -> str:
    """Return the value with four digits and a unit prefix for powers of 1000, such as "276.3 E"."""
    prefix = 0
    while value >= 999.95 and prefix < len(UNITS) - 1:
        value, prefix = value / 1000, prefix + 1
    return f"{value:.0f} " if prefix == 0 else f"{value:.4g} {UNITS[prefix]}"


def amount(hours: float) -> str:
    """Return hours with the digits that matter."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}" if hours >= 0.01 else "< 0.01"


def numbers_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table whose first column names what the others count."""
    return markdown_table(header, rows, right=range(1, len(header)), solid_rule=True)
