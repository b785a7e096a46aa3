"""What profiles/slurm says where no Slurm is there to be asked (tests/cluster runs it on one)."""

from project import REPOSITORY, profile_settings

RUNS_HERE = {"all", "download", "teacher_network"}
CONFIGS = ["config/config.yaml", REPOSITORY / "config/imagenet64.yaml"]  # trained and published, which differ in rules


def test_every_submitted_rule_has_resources_of_its_own_and_no_name_is_misspelled(unfinished_project):
    rules = set()
    for config in CONFIGS:
        listed = unfinished_project.snakemake("--list-rules", "--configfile", str(config))
        assert listed.returncode == 0, listed.stderr
        rules |= set(listed.stdout.split())
    assert rules - RUNS_HERE == set(profile_settings("slurm")["set-resources"])


def test_the_demo_is_planned_with_it(unfinished_project):
    profile, config = str(REPOSITORY / "profiles/slurm"), str(REPOSITORY / "config/config.yaml")
    planned = unfinished_project.planned("--profile", profile, "--configfile", config)
    assert {("train_teacher", "300"), ("fid_table", ""), ("export", "s4"), ("export", "s8")} <= planned
