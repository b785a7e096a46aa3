"""The sentences under the score table."""

import pytest
from score_frames import extrapolated, scores_of, with_real, with_replicate

from mscd.reporting.conclusions import conclusions
from mscd.reporting.summary import NETWORK, summarize
from mscd.reporting.table_text import best_networks


def sentences(scores):
    networks = summarize(scores, NETWORK)
    return conclusions(networks, best_networks(networks), scores)


def starting(scores, start):
    """The only sentence that starts like this."""
    [found] = [sentence for sentence in sentences(scores) if sentence.startswith(start)]
    return found


def test_a_student_is_so_many_times_the_teachers_best():
    sentence = starting(extrapolated(), "s8 at 8 NFE: 2.00, 2.00 [")
    times, difference = sentence.split(" times the teacher's best (1.00 at 35 NFE), a difference of 1.00 [")
    low, high = map(float, difference.rstrip("]").split(", "))
    assert 0.9 < low < 1 < high < 1.1  # the noise that both share is not in it


def test_without_intervals_there_is_neither_an_interval_nor_a_verdict():
    scores = scores_of(("teacher", 400, "ema", "heun", 18, 5.0), ("s8", 50, "ema", "euler", 8, 9.0))
    assert sentences(scores) == ["s8 at 8 NFE: 9.00, 1.80 times the teacher's best (5.00 at 35 NFE)"]


def test_each_replicate_has_its_number():
    scores = with_replicate(with_replicate(extrapolated(), "s8", 2, 2.5), "s8", 3, 3.0)
    assert starting(scores, "s8: trained") == "s8: trained 3 times from different seeds, with 2.00, 2.50, 3.00"


def test_another_training_seed_makes_the_verdict_less_sure():
    assert "s8 is better than s4" in " ".join(sentences(extrapolated()))
    assert "s8 and s4 do not differ clearly" in " ".join(sentences(with_replicate(extrapolated(), "s8", 2, 5.5)))


@pytest.mark.parametrize(
    ("which", "images", "sentence"),
    [
        (
            "resampled",
            100,
            "Real images: 100 training images drawn with replacement score 1.50 at this count, as a perfect copy of "
            "the training set would, and 0.25 [-1.02, 1.52] extrapolated to infinitely many",
        ),
        (
            "held-out",
            40,
            "Real images: 40 held-out images score 1.50, and 0.25 [-1.02, 1.52] extrapolated to infinitely many",
        ),
        (
            "halves",
            50,
            "Real images: 50 training images score 1.50 against the other half of them, and 0.25 [-1.02, 1.52] "
            "extrapolated to infinitely many",
        ),
    ],
)
def test_real_images_are_the_measure(which, images, sentence):
    assert starting(with_real(extrapolated(), which, 1.5, 0.25, images), "Real images") == sentence


def test_memorised_images_are_compared_with_held_out_ones_or_else_with_training_images():
    scores = extrapolated().assign(memorised=[0.2, 0.2, 0.3, 0.3, 0.9, 0.9], memorised_real=0.4)
    expected = "teacher at 35 NFE 20.0%, s8 at 8 NFE 30.0%, s4 at 4 NFE 90.0%. For comparison, {}. A share"
    assert expected.format("training images, each left out in turn, 40.0%") in starting(scores, "Memorised")
    scores = with_real(scores, "held-out", 1.5, 0.25, 40, memorised=0.25)
    assert expected.format("held-out images 25.0%") in starting(scores, "Memorised")
