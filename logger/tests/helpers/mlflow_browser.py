"""What a user does in the MLflow UI after a run, in a headless browser. Used by tests, and by hand as a script:

    python tests/helpers/mlflow_browser.py <project folder> <rule> <metric> <folder for pictures>

Opens the project's store with `mlflow ui`, unfolds the newest workflow run and compares the curves of the metric in two
runs of the rule.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking import MlflowClient
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 180  # how long anything may take on a slow machine


@contextmanager
def mlflow_ui(folder: Path):
    """Start `mlflow ui` in a project's folder, on its own port and with one worker for speed; yield its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + SECONDS
        while not is_up(address):
            assert time.monotonic() < end and server.poll() is None, "mlflow ui did not start"
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def is_up(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=2).status == 200
    except OSError:
        return False


@contextmanager
def browser():
    """Yield a headless Chromium."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1700,1000"):
        options.add_argument(argument)
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A browser in one MLflow UI; its screenshots go to the folder `pictures`."""

    def __init__(self, driver, address: str, pictures: Path):
        self.driver, self.address, self.pictures = driver, address, pictures

    def open(self, route: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#/{route}")

    def wait(self, condition, what: str):
        """Return the value of `condition(driver)` as soon as it is true; fail with `what` after SECONDS."""
        patient = WebDriverWait(self.driver, SECONDS, ignored_exceptions=[StaleElementReferenceException])
        return patient.until(condition, f"not seen: {what}")

    def wait_for_text(self, *texts: str) -> None:
        body = (By.TAG_NAME, "body")
        self.wait(lambda d: all(text in d.find_element(*body).text for text in texts), ", ".join(texts))

    def row(self, run_id: str):
        """The row of a run in the runs table."""
        [row] = self.wait(lambda d: d.find_elements(By.CSS_SELECTOR, f".ag-row[row-id='{run_id}']")[:1], run_id)
        return row

    def picture(self, name: str) -> None:
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))


def check_workflow_in_ui(folder: Path, rule: str, metric: str, pictures: Path) -> None:
    """Fail unless a user of `mlflow ui` in `folder` can find the newest workflow and its jobs, and compare two."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    [workflow, *_] = client.search_runs(experiments, "tags.`snakemake.job` = 'workflow'")
    jobs = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{workflow.info.run_id}'")
    compared = [run for run in jobs if run.data.tags["snakemake.rule"] == rule][:2]
    assert len(compared) == 2, f"the workflow has fewer than two runs of rule {rule}"
    with mlflow_ui(folder) as address, browser() as driver:
        page = Page(driver, address, pictures)
        finds_workflow_with_jobs(page, workflow, jobs)
        compares(page, workflow.info.experiment_id, rule, compared)
        for failed in [run for run in jobs if run.info.status == "FAILED"]:
            finds_log_of_failed_job(page, client, failed)
        sees_curves(page, client, compared, metric)


def finds_workflow_with_jobs(page: Page, workflow, jobs: list) -> None:
    page.open(f"experiments/{workflow.info.experiment_id}/runs")
    page.row(workflow.info.run_id)
    page.wait_for_text(workflow.info.run_name)
    assert not any(run.info.run_name in page.driver.find_element(By.TAG_NAME, "body").text for run in jobs)
    page.row(workflow.info.run_id).find_element(By.CSS_SELECTOR, "[col-id*='Run Name'] button").click()
    page.wait_for_text(*[run.info.run_name for run in jobs[:10]])  # the table only draws visible rows
    page.picture("workflow")


def compares(page: Page, experiment_id: str, rule: str, runs: list) -> None:
    search = urllib.parse.quote(f"tags.`snakemake.rule` = '{rule}'")
    page.open(f"experiments/{experiment_id}/runs?searchFilter={search}")
    for run in runs:
        page.row(run.info.run_id).find_element(By.CSS_SELECTOR, ".ag-selection-checkbox input").click()
    is_compare = "//button[normalize-space()='Compare']"
    page.wait(lambda d: d.find_elements(By.XPATH, is_compare), "Compare")[0].click()
    page.wait_for_text("Run details", *[run.info.run_name for run in runs])
    page.picture("compared")


def sees_curves(page: Page, client: MlflowClient, runs: list, metric: str) -> None:
    ids = [run.info.run_id for run in runs]
    query = {"runs": ids, "metric": metric, "experiments": [runs[0].info.experiment_id], "plot_metric_keys": [metric]}
    arguments = "&".join(f"{name}={urllib.parse.quote(json.dumps(value))}" for name, value in query.items())
    page.open(f"metric?{arguments}")
    page.wait(lambda d: d.find_elements(By.XPATH, "//label[contains(., 'Step')]"), "x-axis: Step")[0].click()
    page.wait_for_text(*[f"{run.info.run_name} ({metric})" for run in runs])
    drawn = "return [...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data).map(c => [c.name, c.x, c.y])"
    expected = {}
    for run in runs:
        points = client.get_metric_history(run.info.run_id, metric)
        expected[run.info.run_name] = sorted((point.step, point.value) for point in points)

    def curves(driver) -> dict:
        found = driver.execute_script(drawn)
        return {name: sorted(zip(x, y, strict=True)) for name, x, y in found if name}

    page.wait(lambda d: curves(d) == expected, f"the curves of {metric}")
    page.picture("curves")


def finds_log_of_failed_job(page: Page, client: MlflowClient, run) -> None:
    page.open(f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    page.wait_for_text("Failed")
    for log in client.list_artifacts(run.info.run_id, "log"):
        last = Path(client.download_artifacts(run.info.run_id, log.path)).read_text().splitlines()[-1]
        page.open(f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/{log.path}")
        page.wait_for_text(last)
    page.picture("failed")


if __name__ == "__main__":
    check_workflow_in_ui(Path(sys.argv[1]).absolute(), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    print(f"ok; pictures in {sys.argv[4]}")
