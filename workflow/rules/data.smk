rule pack_data:
    input:
        downloaded("data"),
    output:
        zip=data_zip,
        summary=data_summary,
    log:
        text=logs / "pack_data/data.log",
        events=logs / "pack_data/data.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=data_identity,
    script:
        "../scripts/pack_data.py"
