"""What the documents promise: links lead somewhere, commands and settings are accepted, examples are those that run."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from snakemake.cli import get_argument_parser

import mscd
from mscd.config.loading import load_config
from mscd.config.run_paths import RunPaths
from mscd.errors import UserError
from mscd.reporting.score_table import write_table
from mscd.reporting.scores import read_scores
from mscd.reporting.training_cost import Training

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
)


def tokens(page: Path) -> list[Token]:
    blocks = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    return [token for block in blocks for token in (block, *(block.children or []))]


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures, written in Markdown or in HTML."""
    found = [str(token.attrs[name]) for token in tokens(page) for name in ("href", "src") if name in token.attrs]
    html = [token.content for token in tokens(page) if token.type in ("html_block", "html_inline")]
    return found + [link for _, link in re.findall(r"""(?:href|src)=(["'])(.+?)\1""", " ".join(html))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    parsed = tokens(page)
    headings = [after.content for token, after in pairwise(parsed) if token.type == "heading_open"]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return those of a page's links that lead to no file or heading of the repository; web links are not followed."""
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if ":" not in path and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page):
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, *here*\n\n[ok](#a-title-here) [no](#other) [no](gone.md) <img src='x'> <img src=\"y.png\">\n"
    )
    assert broken_links(page) == ["#other", "gone.md", "x", "y.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "fault", "message"),
    [
        ("index.md", "[broken](nowhere.md)", "nowhere.md"),
        ("index.md", "[broken](design.md#nowhere)", "nowhere"),
        ("reference/api.md", "::: mscd.nowhere", "mscd.nowhere"),
        ("orphan.md", "# Not in the navigation", "orphan.md"),
        ("reference/data.md", '--8<-- "nowhere.md"', "nowhere.md"),
    ],
)
def test_site_is_not_built_with_a_fault(tmp_path, page, fault, message):
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    for name in ("mkdocs.yml", "config", "logger", "mscd"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    with (tmp_path / "docs" / page).open("a") as file:
        file.write(f"\n{fault}\n")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run([*build, "-f", str(tmp_path / "mkdocs.yml")], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode != 0 and message in built.stderr


def test_misspellings_are_found(tmp_path):
    misspelt = "suc" + "essful"
    (tmp_path / "page.md").write_text(f"A {misspelt} run.\n")
    checked = subprocess.run([sys.executable, "-m", "codespell_lib", str(tmp_path)], capture_output=True, text=True)
    assert checked.returncode != 0 and f"{misspelt} ==> successful" in checked.stdout


def code_blocks(page: Path) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "code_block"]


def snakemake_commands() -> set[tuple[Path, str]]:
    """Return every snakemake call with --configfile in the documents and settings files, with its page."""
    texts = [(page, block) for page in PAGES for block in code_blocks(page)]
    texts += [(page, page.read_text()) for page in REPOSITORY.glob("config/*.yaml")]
    lines = [(page, line) for page, text in texts for line in text.replace("\\\n", "").splitlines()]
    calls = [(page, line.split("snakemake ")[1].split("  ")[0]) for page, line in lines if "snakemake " in line]
    return {(page, call) for page, call in calls if "--configfile" in call}


@pytest.mark.parametrize(("page", "command"), sorted(snakemake_commands()), ids=str)
def test_documented_commands_name_existing_files(page, command):
    arguments = get_argument_parser(profiles=None).parse_args(command.split())
    for path in arguments.configfile:
        assert (REPOSITORY / path).is_file() or f"Save this as `{path}`" in page.read_text()


def test_settings_of_the_tutorial_are_valid():
    page = (REPOSITORY / "docs/tutorial/your-own-images.md").read_text().split("Save this as")[1]
    (block,) = [token.content for token in MarkdownIt().parse(page) if token.content.startswith("name: photos")]
    assert load_config(yaml.safe_load(block)).name == "photos"


@pytest.mark.parametrize("page", ["README.md", "docs/reference/api.md"])
def test_python_examples_are_those_of_the_package(page):
    """The package's own are run, line by line, in test_front_door."""
    example = next(block for block in code_blocks(REPOSITORY / page) if block.startswith("import mscd\n"))
    own = {line.strip() for line in (mscd.__doc__ or "").splitlines()}
    assert {line.split("   #")[0].strip() for line in example.splitlines()} <= own


def without_pictures(text):
    assert text.count("<img ") == 2
    return re.sub(r"<img [^>]*>", "", text)


def test_showcase_writes_results_into_the_pages_and_again_the_same(tmp_path):
    showcase = runpy.run_path(str(REPOSITORY / "docs/showcase.py"))
    run, pages = tmp_path / "results/digits", [tmp_path / "README.md", tmp_path / "docs/index.md"]
    for folder in (run / "figures", run / "logs/score", tmp_path / "docs/assets"):
        folder.mkdir(parents=True)
    for page in pages:
        page.write_text("before\n<!-- results: make showcase -->\nold\n<!-- /results -->\nafter\n")
    with pytest.raises(UserError, match=r"fid_table.csv: No such file or directory; run `make demo` first"):
        showcase["main"](tmp_path, 2)
    rows = [
        ("teacher", "euler", 8, 12.0),
        ("teacher", "heun", 35, 2.0),
        ("s4", "euler", 4, 4.0),
        ("s8", "euler", 8, 2.5),
    ]
    columns = "model,snapshot_kimg,ema,sampler,steps,nfe,images,metric,min,mean,std,network,reference"
    columns += ",fd_inf,fd_inf_low,fd_inf_high,ratio,ratio_low,ratio_high,precision,recall"
    how = "8,{nfe},1797,FD(x),1,9,0.1,a,b,{fd},{low},{high},{ratio},{low},3,0.9,0.8"
    lines = [
        f"{model},50,ema,{sampler}," + how.format(nfe=nfe, fd=fd, low=fd - 1, high=fd + 1, ratio=fd / 2)
        for model, sampler, nfe, fd in rows
    ]
    (run / "fid_table.csv").write_text("\n".join([columns, *lines]) + "\n")
    for name in ("images", "score-vs-nfe"):
        (run / f"figures/{name}.png").write_bytes(name.encode())
    (run / "logs/score/a.events.jsonl").write_text('{"time": 60.0}\n{"time": 480.0}\n')

    showcase["main"](tmp_path, 2)
    texts = [page.read_text() for page in pages]
    student = "| student s8 | 8 | 2.50 [1.50, 3.50] | 1.25 [1.50, 3.00] | 0.90 | 0.80 |"
    assert student in texts[0] and "7 minutes on\n2 CPU cores" in texts[0]
    assert texts[0].startswith("before\n") and texts[0].endswith("after\n") and "old" not in texts[0]
    assert without_pictures(texts[1]) == without_pictures(texts[0])
    assert (tmp_path / "docs/assets/digits.png").read_bytes() == b"images"
    showcase["main"](tmp_path, 2)
    assert [page.read_text() for page in pages] == texts


def test_pages_show_what_showcase_writes():
    """Both pages show the same results, whose pictures are in the repository."""
    block = re.compile(r"<!-- results: make showcase -->\n(.*?)<!-- /results -->", re.DOTALL)
    readme, index = (block.search((REPOSITORY / page).read_text())[1] for page in ("README.md", "docs/index.md"))
    assert without_pictures(index) == without_pictures(readme) and readme.count("| student s") == 2


SCORED = [  # of a run by several methods: folder of the scores, average, solver, steps, FD∞
    ("teacher", "ema", "heun", 18, 1.0),
    ("teacher", "ema", "euler", 1, 90.0),
    ("teacher", "ema", "euler", 4, 30.0),
    ("teacher", "ema", "euler", 8, 12.0),
    ("m4-50", "ema", "ancestral", 4, 2.0),
    ("m4-r2-50", "ema", "ancestral", 4, 3.0),
    ("m4-100", "ema", "ancestral", 4, 2.6),
    ("m4-r2-100", "ema", "ancestral", 4, 2.2),
    ("c4-100", "ema", "euler", 4, 5.0),
    ("c4-100", "phema-0.100", "euler", 4, 4.0),
    ("d1-50", "ema", "euler", 1, 3.0),
]
LEFT = [  # files that the settings no longer name, or of a further detector
    ("classifier", "c4-100", "ema", "ancestral", 4, 0.1),
    ("classifier", "gone-50", "ema", "euler", 4, 0.1),
    ("dinov2", "m4-50", "ema", "ancestral", 4, 0.1),
]


def put_score(run: RunPaths, detector, folder, ema, sampler, steps, fd_inf) -> Path:
    """Write a score of two blocks of images whose FD∞ varies with its groups of seeds."""
    model, kimg = ("teacher", 300) if folder == "teacher" else folder.rsplit("-", 1)
    values = {"fd": fd_inf + 1, "precision": 0.9, "recall": 0.8}
    score = {
        "blocks": [{"seeds": [100 * k, 100 * k + 99], "images": 100, "values": values} for k in range(2)],
        "pooled": {"fd_inf": fd_inf, "fd_inf_se": 0.1},
        "left_out": [fd_inf * factor for factor in (0.99, 1.02, 0.98, 1.01)],
        **{"nearest": [], "churn": None, "metric": f"FD({detector})", "reference_digest": detector},
        **{"model": model, "snapshot_kimg": int(kimg), "ema": ema, "sampler": sampler, "steps": steps},
        **{"nfe": 2 * steps - 1 if sampler == "heun" else steps, "network_digest": f"{folder}{ema}"},
        "detector": {"name": detector, "digest": detector},
    }
    path = run.score(detector, folder, ema, f"{sampler}-{steps}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(score))
    return path


def cells(text: str) -> list[list[str]]:
    """Return the cells of the first table in Markdown, without its heading."""
    lines = [line for line in text.split("| ---", 1)[1].split("\n\n")[0].splitlines()[1:] if line.startswith("|")]
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]


def test_showcase_writes_the_methods_table_with_the_numbers_of_the_runs_own(tmp_path):
    showcase = runpy.run_path(str(REPOSITORY / "docs/showcase.py"))
    run, page = RunPaths(tmp_path / "results/methods"), tmp_path / "docs/methods.md"
    page.parent.mkdir()
    page.write_text("before\n\n<!-- results of config/methods.yaml: make showcase -->\nold\n<!-- /results -->\nafter\n")
    files = [put_score(run, "classifier", *of) for of in SCORED]
    trained = {
        "teacher": Training("denoising", {300: 300_032}),
        "m4": Training("moment-matching", {50: 150_000, 100: 300_000}),
        "c4": Training("consistency", {50: 200_000, 100: 400_000}),
        "d1": Training("distribution-matching", {50: 1_850_000}),
    }
    write_table(read_scores(files), run.table, run.table_markdown, None, trained)
    for of in LEFT:
        put_score(run, *of)
    with pytest.raises(UserError, match="run `make demo` first"):  # after the page is written
        showcase["main"](tmp_path, 2)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\n<!-- /results -->\nafter\n") and "old" not in text
    rows = cells(text)
    assert [(row[0], row[1], row[2], row[8]) for row in rows] == [
        ("teacher, its best sampler", "denoising", "35", "0.30 M"),
        ("teacher, only 4 evaluations", "denoising", "4", "0.30 M"),
        ("teacher, only 1 evaluation", "denoising", "1", "0.30 M"),
        ("student m4, 2 replicates", "moment-matching", "4", "0.30 M"),  # better on average at 100 kimg than at 50
        ("student c4", "consistency", "4", "0.40 M"),
        ("student d1", "distribution-matching", "1", "1.85 M"),
    ]
    own = {tuple(row[1:6]) for row in cells(run.table_markdown.read_text())}  # method, nfe, cost, FD∞, ratio
    assert {(row[1], row[2], row[8], row[3], row[4]) for row in rows} == own
    assert rows[3][3].startswith("2.40 [") and rows[3][5:7] == ["0.90", "0.80"]
    assert [row[9] for row in rows] == ["", "", "", "", "2.32", "1.28"]
    assert rows[0][7].endswith(" (1.00)") and "FD of 100 images" in text


def test_showcase_asks_for_a_table_that_names_methods(tmp_path):
    showcase = runpy.run_path(str(REPOSITORY / "docs/showcase.py"))
    run = RunPaths(tmp_path / "results/methods")
    scores = read_scores([put_score(run, "classifier", *of) for of in SCORED])
    write_table(scores, run.table, run.table_markdown)
    with pytest.raises(UserError, match="fid_table.csv: has no column method; make it again"):
        showcase["main"](tmp_path, 2)


def test_citation_names_the_version():
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == mscd.__version__
