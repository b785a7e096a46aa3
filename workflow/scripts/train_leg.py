"""Train one leg of the teacher, or of a student."""

import json
import os
from pathlib import Path

from mscd.config.loading import load_config
from mscd.launch.resources import resources_of_rule
from mscd.launch.run_leg import run_leg
from mscd.launch.script import script_log
from mscd.training.leg import Leg

with script_log(snakemake.log.text):
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
        data_origin=json.loads(Path(snakemake.input.summary).read_text())["origin"],
        run_dir=str(Path(snakemake.output[0]).parent.parent),
        start_kimg=end_kimg - settings.snapshot_kimg,
        end_kimg=end_kimg,
    )
    run_leg(
        leg,
        resources_of_rule(snakemake.resources, snakemake.threads, snakemake.rule),
        log_dir=Path(snakemake.log.text).with_suffix(""),
        events=snakemake.log.events,
        parent=int(os.environ["MSCD_SNAKEMAKE"]),
    )
