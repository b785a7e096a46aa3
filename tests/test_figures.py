"""The pictures of a run. What they look like is for eyes; that they are what they say is tested here."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mscd import figures
from mscd.errors import UserError
from mscd.samples import write_samples


def scores_of(*rows):
    """Scores as `read_scores` gives them, from (model, kimg, ema, sampler, steps, value a seed block)."""
    table = []
    for model, kimg, ema, sampler, steps, *values in rows:
        for block, value in enumerate(values):
            seeds = {"first_seed": 100 * block, "last_seed": 100 * block + 99}
            nfe = steps if sampler == "euler" else 2 * steps - 1
            how = {"model": model, "snapshot_kimg": kimg, "ema": ema, "sampler": sampler, "steps": steps, "nfe": nfe}
            about = {"images": 100, "metric": "FD(classifier)", "network": f"{model}{kimg}{ema}", "reference": "r"}
            table.append({**how, **about, "value": value, **seeds})
    return pd.DataFrame(table).astype({"snapshot_kimg": "Int64"})


TEACHER = [("teacher", 400, "ema", "euler", 8, 28.0, 30.0), ("teacher", 400, "ema", "heun", 18, 5.0, 5.5)]
STUDENT = [("s8", kimg, ema, "euler", 8, 500 / kimg, 520 / kimg) for kimg in (25, 50) for ema in ("ema", "phema-0.050")]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures that are saved."""
    axes = []
    save = figures._save
    monkeypatch.setattr(figures, "_save", lambda figure, path: (axes.append(figure.axes[0]), save(figure, path)))
    return axes


def labels(axes):
    return [line.get_label() for line in axes.get_lines()]


def test_a_student_is_drawn_with_a_curve_an_ema_and_the_teachers_two_lines(drawn, tmp_path):
    figures.score_vs_kimg(scores_of(*TEACHER, *STUDENT), tmp_path / "a.png", "s8")
    (axes,) = drawn
    assert labels(axes) == [
        "ema",
        "phema-0.050",
        "teacher, heun, 35 NFE: 5.25",
        "teacher, euler, 8 NFE: 29.00",
    ]
    curve = axes.get_lines()[0]
    assert list(curve.get_xdata()) == [25, 50] and list(curve.get_ydata()) == pytest.approx([20.4, 10.2])
    assert axes.get_xlabel() == "training (kimg)" and axes.get_ylabel().startswith("FD(classifier)")
    low, high = axes.get_ylim()
    assert low < 5.25 and high > 29


def test_teacher_and_best_students_are_drawn_against_nfe(drawn, tmp_path):
    s4 = ("s4", 50, "ema", "euler", 4, 15.0, 16.0)
    figures.score_vs_nfe(
        scores_of(*TEACHER, ("teacher", 400, "ema", "heun", 9, 7.0, 7.5), s4, *STUDENT), tmp_path / "a.png"
    )
    (axes,) = drawn
    assert labels(axes) == ["teacher, euler", "teacher, heun", "s4, 50 kimg, ema", "s8, 50 kimg, ema"]
    heun, best = axes.get_lines()[1], axes.get_lines()[3]
    assert list(heun.get_xdata()) == [17, 35] and list(heun.get_ydata()) == [7.25, 5.25]
    assert list(best.get_xdata()) == [8] and list(best.get_ydata()) == pytest.approx([10.2])


def test_log_axes_have_plain_numbers_that_do_not_collide(drawn, tmp_path):
    figures.score_vs_nfe(scores_of(*TEACHER, *STUDENT, ("s9", 50, "ema", "euler", 9, 9.9, 9.9)), tmp_path / "a.png")
    (axes,) = drawn
    assert [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks()] == ["8", "9", "35"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert figures._spread([8, 9, 16, 17, 18, 35], 1.1) == [8, 9, 16, 18, 35]


@pytest.mark.parametrize("rows", [STUDENT, STUDENT[:1], [*TEACHER[1:], *STUDENT]])
def test_figures_need_neither_a_teacher_nor_a_second_snapshot(rows, tmp_path):
    figures.score_vs_kimg(scores_of(*rows), tmp_path / "a.png", "s8")
    figures.score_vs_nfe(scores_of(*rows), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (1260, 660)


def test_a_student_without_scores_is_refused_naming_those_there_are(tmp_path):
    with pytest.raises(UserError, match="no scores of student s5; there are scores of teacher, s8"):
        figures.score_vs_kimg(scores_of(*TEACHER, *STUDENT), tmp_path / "a.png", "s5")


def test_equal_scores_give_equal_bytes_without_date_or_software(tmp_path):
    scores = scores_of(*TEACHER, *STUDENT)
    for name in "ab":
        figures.score_vs_kimg(scores, tmp_path / f"k{name}.png", "s8")
        figures.score_vs_nfe(scores, tmp_path / f"n{name}.png")
    for kind in "kn":
        assert (tmp_path / f"{kind}a.png").read_bytes() == (tmp_path / f"{kind}b.png").read_bytes()
        with Image.open(tmp_path / f"{kind}a.png") as picture:
            assert picture.info.keys() <= {"dpi"}


def pictures(seed, channels=1, size=8):
    return np.random.default_rng(seed).integers(0, 256, [5, size, size, channels], dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_enlarges_each_pixel_to_a_square_of_its_colour(tmp_path, channels):
    rows = [("teacher\n8 evaluations", pictures(0, channels)), ("student", pictures(1, channels))]
    figures.image_grid(rows, tmp_path / "a.png", columns=4, scale=5)
    with Image.open(tmp_path / "a.png") as picture:
        grid = np.asarray(picture)
    for _, images in rows:
        for image in images[:4]:
            tile = np.broadcast_to(image, (8, 8, 3)).repeat(5, axis=0).repeat(5, axis=1)
            windows = np.lib.stride_tricks.sliding_window_view(grid, tile.shape)[:, :, 0]
            corner = (windows[:, :, 0, 0] == tile[0, 0]).all(-1)
            assert sum(np.array_equal(window, tile) for window in windows[corner]) == 1


def test_a_grid_takes_the_first_columns_of_sample_files_of_the_same_seeds(tmp_path):
    for name, last in (("a", 4), ("b", 9)):
        write_samples(tmp_path / f"{name}.npz", pictures(ord(name)), {"seeds": [0, last]})
    figures.image_grid([(name, tmp_path / f"{name}.npz") for name in "ab"], tmp_path / "files.png", columns=4)
    figures.image_grid([(name, pictures(ord(name))) for name in "ab"], tmp_path / "arrays.png", columns=4)
    assert (tmp_path / "files.png").read_bytes() == (tmp_path / "arrays.png").read_bytes()


def test_a_grid_refuses_rows_of_other_seeds(tmp_path):
    for name, first in (("a", 0), ("b", 5)):
        write_samples(tmp_path / f"{name}.npz", pictures(0), {"seeds": [first, first + 4]})
    with pytest.raises(UserError, match=r"same seeds \(a: from 0, b: from 5\)"):
        figures.image_grid([(name, tmp_path / f"{name}.npz") for name in "ab"], tmp_path / "a.png", columns=4)


def test_a_grid_refuses_too_few_images_and_other_sizes(tmp_path):
    with pytest.raises(UserError, match="student: 5 images, too few for a row of 6"):
        figures.image_grid([("student", pictures(0))], tmp_path / "a.png", columns=6)
    with pytest.raises(UserError, match=r"different sizes .*a: 8x8, b: 16x16"):
        figures.image_grid([("a", pictures(0)), ("b", pictures(0, size=16))], tmp_path / "a.png", columns=4)
