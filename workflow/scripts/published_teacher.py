"""Convert a published diffusion model into the teacher of the students."""

import json

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.checkpoints.convert import convert
    from mscd.config.loading import load_config
    from mscd.config.run_paths import TEACHER
    from mscd.files.atomic import atomic_write
    from mscd.provenance.fetch import fetch

with script_log(snakemake.log.text):
    config = load_config(snakemake.config)
    teacher = config.teacher
    path, origin = fetch(teacher.source, teacher.sha256, teacher.license)
    made = convert(path, snakemake.output.network, model=TEACHER, origin=origin, expected=config.expected_network())
    with atomic_write(snakemake.output.source) as file:
        file.write((json.dumps({"made_from": str(path), **made}, indent=1) + "\n").encode())
    record_events(snakemake.log.events, params=origin, tags={"network": made["digest"]})
