"""The figures of a run: they show what they say. What they look like is for the eye to judge."""

import pytest
from matplotlib.collections import LineCollection
from PIL import Image
from score_frames import extrapolated, scores_of, with_real, with_replicate

from mscd.errors import UserError
from mscd.reporting import curves

TEACHER = [("teacher", 400, "ema", "euler", 8, 28.0, 30.0), ("teacher", 400, "ema", "heun", 18, 5.0, 5.5)]
STUDENT = [("s8", kimg, ema, "euler", 8, 500 / kimg, 520 / kimg) for kimg in (25, 50) for ema in ("ema", "phema-0.050")]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the saved figures."""
    axes = []
    save = curves.save_figure
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: (axes.append(figure.axes[0]), save(figure, path)))
    return axes


def labels(axes):
    return [line.get_label() for line in axes.get_lines()]


def test_a_students_plot_has_one_curve_per_ema_and_two_teacher_lines(drawn, tmp_path):
    curves.score_vs_kimg(scores_of(*TEACHER, *STUDENT), tmp_path / "a.png", "s8")
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


def test_the_nfe_plot_shows_the_teacher_and_the_best_students(drawn, tmp_path):
    s4 = ("s4", 50, "ema", "euler", 4, 15.0, 16.0)
    curves.score_vs_nfe(
        scores_of(*TEACHER, ("teacher", 400, "ema", "heun", 9, 7.0, 7.5), s4, *STUDENT), tmp_path / "a.png"
    )
    (axes,) = drawn
    assert labels(axes) == ["teacher, euler", "teacher, heun", "s8, 50 kimg, ema", "s4, 50 kimg, ema"]
    heun, best = axes.get_lines()[1:3]
    assert list(heun.get_xdata()) == [17, 35] and list(heun.get_ydata()) == [7.25, 5.25]
    assert list(best.get_xdata()) == [8] and list(best.get_ydata()) == pytest.approx([10.2])


def test_log_axes_have_plain_numbers_that_do_not_overlap(drawn, tmp_path):
    curves.score_vs_nfe(scores_of(*TEACHER, *STUDENT, ("s9", 50, "ema", "euler", 9, 9.9, 9.9)), tmp_path / "a.png")
    (axes,) = drawn
    assert [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks()] == ["8", "9", "35"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert curves.spread_ticks([8, 9, 16, 17, 18, 35], 1.1) == [8, 9, 16, 18, 35]


def test_evaluations_of_a_student_have_a_tick_even_next_to_the_teachers(drawn, tmp_path):
    heun = [("teacher", 400, "ema", "heun", steps, 5.0, 5.5) for steps in (4, 24)]  # 7 and 47 evaluations
    s4 = ("s4", 50, "ema", "euler", 4, 9.9, 9.9)
    curves.score_vs_nfe(scores_of(*TEACHER, *heun, s4, *STUDENT), tmp_path / "a.png")
    (axes,) = drawn
    assert list(axes.get_xticks()) == [4, 8, 35, 47]


@pytest.mark.parametrize("rows", [STUDENT, STUDENT[:1], [*TEACHER[1:], *STUDENT]])
def test_figures_need_neither_a_teacher_nor_a_second_snapshot(rows, tmp_path):
    curves.score_vs_kimg(scores_of(*rows), tmp_path / "a.png", "s8")
    curves.score_vs_nfe(scores_of(*rows), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (1260, 660)


def test_a_student_without_scores_is_refused_naming_the_others(tmp_path):
    with pytest.raises(UserError, match="no scores of student s5; there are scores of teacher, s8"):
        curves.score_vs_kimg(scores_of(*TEACHER, *STUDENT), tmp_path / "a.png", "s5")


def test_equal_scores_give_equal_bytes_without_date_or_software(tmp_path):
    scores = scores_of(*TEACHER, *STUDENT, ("s8", 50, "posthoc-0.075", "euler", 8, 9.0, 9.5))
    for name in "ab":
        curves.score_vs_kimg(scores, tmp_path / f"k{name}.png", "s8")
        curves.score_vs_nfe(scores, tmp_path / f"n{name}.png")
        curves.score_vs_ema_length(scores, tmp_path / f"l{name}.png", "s8")
    for kind in "knl":
        assert (tmp_path / f"{kind}a.png").read_bytes() == (tmp_path / f"{kind}b.png").read_bytes()
        with Image.open(tmp_path / f"{kind}a.png") as picture:
            assert picture.info.keys() <= {"dpi"}


CHURN = "heun S_churn=40 S_min=0.05 S_max=50 S_noise=1.003"
POSTHOC = [
    ("s8", kimg, f"posthoc-{std:.3f}", "euler", 8, *(kimg / 25 + 100 * abs(std - 0.06) + block for block in range(3)))
    for kimg in (25, 50)
    for std in (0.03, 0.06, 0.1)
]


def test_ema_length_plot_has_snapshot_curves_stored_points_and_the_best(drawn, tmp_path):
    curves.score_vs_ema_length(scores_of(*TEACHER, *STUDENT, *POSTHOC), tmp_path / "a.png", "s8")
    (axes,) = drawn
    assert labels(axes) == ["25 kimg", "50 kimg", "kept in training", "best: posthoc-0.060 at 25 kimg, 2.00"]
    first, _, stored, best = axes.get_lines()
    assert list(first.get_xdata()) == pytest.approx([3, 5, 6, 10])  # includes the stored one of 5 % but not "ema"
    assert list(first.get_ydata()) == pytest.approx([5, 20.4, 2, 6])
    assert list(stored.get_xdata()) == [5, 5] and list(stored.get_ydata()) == pytest.approx([20.4, 10.2])
    assert (best.get_xdata()[0], best.get_ydata()[0]) == pytest.approx((6, 2))
    assert axes.get_xlabel() == "relative width of the average (%)" and axes.get_ylabel().startswith("FD(classifier)")


def test_many_snapshots_differ_in_shade_and_only_some_are_named(drawn, tmp_path):
    rows = [("s8", kimg, f"posthoc-{std:.3f}", "euler", 8, 100 / kimg) for kimg in range(1, 31) for std in (0.05, 0.1)]
    curves.score_vs_ema_length(scores_of(*rows), tmp_path / "a.png", "s8")
    (axes,) = drawn
    lines = axes.get_lines()
    assert len(lines) == 31 and len({tuple(line.get_color()) for line in lines[:30]}) == 30
    named = [label for label in axes.get_legend_handles_labels()[1] if not label.startswith("best")]
    assert named == [f"{kimg} kimg" for kimg in range(3, 31, 3)]


def test_a_student_without_posthoc_scores_has_no_ema_length_plot(tmp_path):
    with pytest.raises(UserError, match="no scores of post-hoc averages .* of student s8; score some first"):
        curves.score_vs_ema_length(scores_of(*TEACHER, *STUDENT), tmp_path / "a.png", "s8")


def test_the_best_posthoc_average_is_a_star_next_to_the_training_curves(drawn, tmp_path):
    curves.score_vs_kimg(scores_of(*TEACHER, *STUDENT, *POSTHOC), tmp_path / "a.png", "s8")
    (axes,) = drawn
    assert labels(axes)[:3] == ["ema", "phema-0.050", "best post-hoc: posthoc-0.060"]
    mark = axes.get_lines()[2]
    assert (list(mark.get_xdata()), list(mark.get_ydata()), mark.get_marker()) == ([25], [pytest.approx(2)], "*")


def test_samplers_of_equal_cost_have_distinct_marks_and_wrapped_names(drawn, tmp_path):
    heun, churned = ("teacher", 0, "ema", "heun", 256, 2.3), ("teacher", 0, "ema", CHURN, 256, 1.4)
    published = ("published-eight-step-student", 157698, "ema", "euler", 8, 2.3), ("other", 0, "ema", "euler", 2, 6.0)
    scores = scores_of(*TEACHER, heun, churned, *published)
    scores["nfe"] = scores["nfe"].where(scores["sampler"] != CHURN, 511)
    curves.score_vs_nfe(scores, tmp_path / "a.png")
    (axes,) = drawn
    _, plain, churn, *students = axes.get_lines()
    assert list(plain.get_xdata()) == [35, 511] and list(churn.get_xdata()) == [511]
    assert plain.get_marker() != churn.get_marker() and plain.get_color() != churn.get_color()
    assert [line.get_label() for line in students] == [
        "published-eight-step-student, 157698 kimg, ema",
        "other, ema",
    ]
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names[2] == "teacher, heun S_churn=40\nS_min=0.05 S_max=50\nS_noise=1.003"
    assert axes.get_position().width > 0.5


def test_a_long_run_is_drawn_as_lines_without_markers(drawn, tmp_path):
    for last in (40, 41):
        rows = [("s8", 1000 * kimg, "ema", "euler", 8, 9 / kimg, 10 / kimg) for kimg in range(1, last + 1)]
        curves.score_vs_kimg(scores_of(*rows), tmp_path / "a.png", "s8")
    short, long = drawn
    assert [axes.get_lines()[0].get_marker() for axes in drawn] == ["o", "none"]
    assert len(short.collections) == 2 and len(long.collections) == 1  # the band stays
    assert len(long.get_xticks()) <= 8


def test_with_fd_inf_the_nfe_plot_shows_it_with_intervals_and_what_real_images_score(drawn, tmp_path):
    scores = with_real(extrapolated(), "resampled", 1.5, 0.25)
    scores = with_real(scores, "halves", 1.5, 0.5, 50)  # against another reference, so not drawn
    curves.score_vs_nfe(scores, tmp_path / "a.png")
    (axes,) = drawn
    assert labels(axes) == [
        "teacher, heun",
        "s8, 50 kimg, ema",
        "s4, 50 kimg, ema",
        "training images, drawn with replacement",
    ]
    assert [line.get_ydata()[0] for line in axes.get_lines()] == [1, 2, 4, 0.25]
    assert axes.get_ylabel().startswith("FD∞(classifier)")
    bars = [lines.get_segments()[0] for lines in axes.collections if isinstance(lines, LineCollection)]
    ends = [(float(low), float(high)) for (_, low), (_, high) in bars]
    assert all(low < value < high for (low, high), value in zip(ends, (1, 2, 4), strict=True))


def test_real_images_below_zero_are_shown_by_the_upper_end_of_their_interval(drawn, tmp_path):
    curves.score_vs_nfe(with_real(extrapolated(), "resampled", 1.5, -0.25), tmp_path / "a.png")
    floor = drawn[0].get_lines()[-1]
    assert floor.get_label() == "training images, drawn with replacement: upper end of the interval"
    assert floor.get_ydata()[0] > 0


def test_replicates_are_one_point_at_their_mean(drawn, tmp_path):
    curves.score_vs_nfe(with_replicate(extrapolated(), "s8", 2, 3.0), tmp_path / "a.png")
    curves.score_vs_kimg(with_replicate(extrapolated(), "s8", 2, 3.0), tmp_path / "b.png", "s8")
    by_nfe, by_kimg = drawn
    assert list(by_nfe.get_lines()[1].get_ydata()) == [2.5] == list(by_kimg.get_lines()[0].get_ydata())


def test_precision_and_recall_are_one_point_per_network_and_of_real_images(drawn, tmp_path):
    scores = extrapolated().assign(precision=[0.9, 0.92, 0.8, 0.82, 0.7, 0.72], recall=[0.5, 0.5, 0.6, 0.6, 0.7, 0.7])
    scores = with_real(scores, "resampled", 1.5, 0.25, precision=0.95, recall=0.9)
    scores = with_real(scores, "halves", 1.5, 0.25, 50, precision=0.95, recall=0.9)  # of other training images
    curves.precision_vs_recall(scores, tmp_path / "a.png")
    (axes,) = drawn
    names = ["teacher, heun, 35 NFE", "s8, 8 NFE", "s4, 4 NFE", "training images, drawn with replacement"]
    assert labels(axes) == names
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()]
    assert points == [pytest.approx(point) for point in ((0.5, 0.91), (0.6, 0.81), (0.7, 0.71), (0.9, 0.95))]


def test_without_precision_its_plot_is_refused_naming_the_setting(tmp_path):
    with pytest.raises(UserError, match="list pr in scoring.metrics"):
        curves.precision_vs_recall(extrapolated(), tmp_path / "a.png")


def test_without_fd_inf_real_images_at_another_number_of_images_are_no_floor(drawn, tmp_path):
    for images, lines in ((100, 3), (30, 2)):
        scores = with_real(scores_of(*TEACHER), "held-out", 1.5, 0.25, images).drop(columns="fd_inf")
        curves.score_vs_nfe(scores, tmp_path / "a.png")
        assert len(drawn[-1].get_lines()) == lines
