rule pack_data:
    "Pack the images into the data set for training."
    input:
        downloaded("data"),
    output:
        zip=paths.data,
        summary=paths.data_summary,
    log:
        text=paths.log("pack_data", "data"),
        events=paths.events("pack_data", "data"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=data_identity,
    script:
        "../scripts/pack_data.py"
