rule pack_data:
    "Pack the images into the data set for training, apart from those that are held out."
    input:
        downloaded("data"),
    output:
        **({"holdout": paths.holdout} if run.reference.held_out_share else {}),
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


if run.reference.held_out_source:

    rule pack_holdout:
        "Pack held-out images from a source of their own."
        input:
            downloaded("reference.holdout"),
        output:
            paths.holdout,
        log:
            text=paths.log("pack_holdout", "holdout"),
            events=paths.events("pack_holdout", "holdout"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=digest([run.data_identity(), run.reference.holdout]),
        script:
            "../scripts/pack_holdout.py"
