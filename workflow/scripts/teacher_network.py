"""Use the teacher's last snapshot as the teacher of the students."""

import json
from pathlib import Path

from mscd.checkpoints.metadata import read_metadata
from mscd.files.atomic import write_whole
from mscd.launch.script import record_events, script_log

with script_log(snakemake.log.text):
    source = {"made_from": snakemake.input[0], **read_metadata(snakemake.input[0])}
    write_whole(snakemake.output.network, Path(snakemake.input[0]).read_bytes())
    write_whole(snakemake.output.source, (json.dumps(source, indent=1) + "\n").encode())
    record_events(snakemake.log.events, tags={"network": source["digest"]})
