# Where Snakemake runs: nodes of a cluster seldom reach the internet. A file that was put at its place by hand is taken.
localrules:
    download,


rule download:
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
