"""The example that the README shows."""

from pathlib import Path

import pytest
from mlflow_workflows import Flow, plugin_lines

LOGGER = Path(__file__).parents[1]
EXAMPLE = (LOGGER / "examples" / "Snakefile").read_text()


def test_readme_shows_the_example():
    assert f"```python\n{EXAMPLE}```" in (LOGGER / "README.md").read_text()


@pytest.mark.slow
def test_example_records_params_curves_and_artifacts(tmp_path):
    flow = Flow(tmp_path / "flow")
    flow.write(EXAMPLE)
    done = flow.run()
    assert done.returncode == 0 and plugin_lines(done.stderr) == [], done.stderr
    descents = [f"descend rate={rate}" for rate in ("0.01", "0.03", "0.1")]
    assert flow.states() == dict.fromkeys(["workflow", "all", *descents, "compare"], "FINISHED")
    for name in descents:
        [run] = flow.job_runs(name)
        assert run.data.params.items() >= {"params.steps": "100", "initial_x": "5.0"}.items()
        assert [step for step, _ in flow.curve(name, "loss")] == list(range(1, 101))
    assert "0.03," in flow.artifacts("compare", "output")["output/losses.csv"]
    [run] = flow.job_runs("compare")
    assert [file.path for file in flow.client.list_artifacts(run.info.run_id, "figures")] == ["figures/losses.pdf"]
