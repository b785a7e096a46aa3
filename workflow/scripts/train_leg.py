"""Train one leg of the teacher or of a student."""

import json
import os
from pathlib import Path

from mscd.config.loading import load_config
from mscd.launch.resources import resources_of_rule
from mscd.launch.run_leg import run_leg
from mscd.launch.script import script_log
from mscd.training.leg import ScoringFiles, StudentLeg, TeacherLeg

with script_log(snakemake.log.text):
    config, files = load_config(snakemake.config), snakemake.input
    student, end_kimg = snakemake.wildcards.get("student"), int(snakemake.wildcards.kimg)
    model = student or snakemake.wildcards.teacher
    settings = config.all_students()[model] if student else config.all_teachers()[model]
    common = {
        "data": files.data,
        "run_dir": str(config.paths.training(model)),
        "start_kimg": end_kimg - settings.snapshot_kimg,
        "end_kimg": end_kimg,
        "scoring": ScoringFiles(files.detector, files.reference),
        "data_origin": json.loads(Path(files.summary).read_text())["origin"],
    }
    if student:
        leg = StudentLeg(model=model, settings=settings, teacher=files.teacher, **common)
    else:
        leg = TeacherLeg(model=model, settings=settings, **common)
    run_leg(
        leg,
        resources_of_rule(snakemake.resources, snakemake.threads, snakemake.rule),
        log_dir=Path(snakemake.log.text).with_suffix(""),
        events=snakemake.log.events,
        parent=int(os.environ["MSCD_SNAKEMAKE"]),
    )
