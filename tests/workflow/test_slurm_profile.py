"""What profiles/slurm says where no Slurm is there to be asked (tests/cluster runs it on one)."""

from project import profile_settings

RUNS_HERE = {"all", "teacher_network"}


def test_every_submitted_rule_has_resources_of_its_own_and_no_name_is_misspelled(unfinished_project):
    listed = unfinished_project.snakemake("--list-rules")
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) - RUNS_HERE == set(profile_settings("slurm")["set-resources"])
