"""Make the last snapshot of the teacher the teacher of the students."""

import json
from pathlib import Path

from mscd.checkpoints.metadata import read_metadata
from mscd.files.atomic import atomic_write
from mscd.launch.script import record_events, script_log

with script_log(snakemake.log.text):
    source = {"made_from": snakemake.input[0], **read_metadata(snakemake.input[0])}
    with atomic_write(snakemake.output.network) as file:
        file.write(Path(snakemake.input[0]).read_bytes())
    Path(snakemake.output.source).write_text(json.dumps(source, indent=1) + "\n")
    record_events(snakemake.log.events, tags={"network": source["digest"]})
