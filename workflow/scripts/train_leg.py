"""Train one leg of the teacher, or of a student."""

from pathlib import Path

from mscd.config import load_config
from mscd.job import logged
from mscd.launch import run_leg
from mscd.train import Leg

with logged(snakemake.log.text):
    config, model = load_config(snakemake.config), snakemake.wildcards.get("student", "teacher")
    settings = config.students.get(model, config.teacher)
    end_kimg = int(snakemake.wildcards.kimg)
    leg = Leg(
        kind="teacher" if model == "teacher" else "student",
        model=model,
        settings=settings,
        data=snakemake.input.data,
        teacher=snakemake.input.get("teacher"),
        detector=snakemake.input.detector,
        reference=snakemake.input.reference,
        run_dir=str(Path(snakemake.output[0]).parent.parent),
        start_kimg=end_kimg - settings.snapshot_kimg,
        end_kimg=end_kimg,
        events=snakemake.log.events,
    )
    run_leg(
        leg,
        processes=snakemake.resources.processes,
        batch_per_process=snakemake.resources.batch_per_process or None,
        threads=max(1, snakemake.threads // snakemake.resources.processes),
        log_dir=Path(snakemake.log.text).with_suffix(""),
    )
