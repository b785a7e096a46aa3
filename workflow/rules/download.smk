# Runs where Snakemake runs, since cluster nodes seldom have internet access. A file that is already in place is used.
localrules:
    download,


rule download:
    "Download a published file and check its sha256."
    output:
        "{downloaded}",
    log:
        text=paths.log("download", "{downloaded}"),
        events=paths.events("download", "{downloaded}"),
    priority: 20
    conda:
        "../envs/mscd.yaml"
    params:
        key=key_of_download,
    script:
        "../scripts/download.py"
