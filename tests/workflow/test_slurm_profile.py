"""What can be checked of profiles/slurm without a Slurm; tests/cluster runs it on one."""

import yaml
from project import REPOSITORY, profile_settings

RUNS_HERE = {"all", "download", "teacher_network"}
CONFIGS = ["config/config.yaml", REPOSITORY / "config/imagenet64.yaml"]  # with different rules for the teacher


def test_the_profile_sets_resources_for_exactly_the_submitted_rules(unfinished_project):
    rules, everything = set(), unfinished_project.folder / "config/everything.yaml"
    settings = yaml.safe_load(unfinished_project.config_file.read_text())
    settings["scoring"] |= {"keep_samples": True, "metrics": ["fd", "cmmd"]}
    settings["reference"] |= {"holdout": {"source": "more"}, "clip": {"source": "m"}, "further_detectors": ["clip"]}
    everything.write_text(yaml.safe_dump(settings))
    for config in [*CONFIGS, everything]:
        listed = unfinished_project.snakemake("--list-rules", "--configfile", str(config))
        assert listed.returncode == 0, listed.stderr
        rules |= {line.split()[0] for line in listed.stdout.splitlines()}  # "name (docstring)"
    assert rules - RUNS_HERE == set(profile_settings("slurm")["set-resources"])


def test_the_demo_can_be_planned_with_the_profile(unfinished_project):
    profile, config = str(REPOSITORY / "profiles/slurm"), str(REPOSITORY / "config/config.yaml")
    planned = unfinished_project.planned("--profile", profile, "--configfile", config)
    assert {("train_teacher", "teacher 300"), ("fid_table", ""), ("export", "s4"), ("export", "s8")} <= planned
