"""Names of weight averages: formatting, distinguishing and parsing them."""

import re

import pytest

from mscd.diffusion.ema_names import EMA, EMA_PATTERN, is_phema, is_posthoc, phema_name, posthoc_name, std_of


@pytest.mark.parametrize(
    ("name", "std"),
    [("phema-0.050", 0.05), ("posthoc-0.275", 0.275), ("ema", None), ("phema-0.05", None), ("xphema-0.050", None)],
)
def test_the_std_of_an_average_is_parsed_from_its_name(name, std):
    assert std_of(name) == std


def test_names_of_averages_survive_a_round_trip():
    kept, made = phema_name(0.1), posthoc_name(0.075)
    assert (kept, made) == ("phema-0.100", "posthoc-0.075")
    assert (std_of(kept), std_of(made), std_of(EMA)) == (0.1, 0.075, None)
    assert [(is_phema(name), is_posthoc(name)) for name in (EMA, kept, made)] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert all(re.fullmatch(EMA_PATTERN, name) for name in (EMA, kept, made))
