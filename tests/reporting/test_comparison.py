"""The picture that compares models: it uses the networks and samplers that the table names."""

import pytest
from score_frames import scores_of

from mscd.config.scoring import SamplerSettings
from mscd.reporting import comparison

CHURN = {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
SAMPLERS = [
    SamplerSettings(sampler="euler", steps=8),
    SamplerSettings(sampler="heun", steps=256),
    SamplerSettings(sampler="heun", steps=256, **CHURN),
    SamplerSettings(sampler="heun", steps=256, S_churn=40),
]
NAMES = [
    "euler",
    "heun",
    "heun S_churn=40 S_min=0.05 S_max=50 S_noise=1.003",
    "heun S_churn=40 S_min=0 S_max=inf S_noise=1",
]


@pytest.fixture
def shown(monkeypatch):
    """The rows that are generated: (label, network file, keywords of generate)."""
    rows, calls = [], []
    monkeypatch.setattr(comparison, "generate", lambda network, dest, **how: calls.append((network, how)))

    def grid(labelled, path, columns):
        assert columns == 3
        rows.extend((label, *call) for (label, _), call in zip(labelled, calls, strict=True))

    monkeypatch.setattr(comparison, "labelled_grid", grid)
    return rows


@pytest.mark.parametrize("best", range(4))
def test_the_teacher_is_sampled_as_it_scores_best_including_churn(shown, tmp_path, best):
    teacher = [
        ("teacher", 0, "ema", name, 8 if name == "euler" else 256, 5.0 - (i == best)) for i, name in enumerate(NAMES)
    ]
    comparison.compare_images(scores_of(*teacher), tmp_path, SAMPLERS, tmp_path / "a.png", images=3)
    ((_, network, how),) = shown
    assert network == tmp_path / "teacher/network.safetensors"
    assert {name: how[name] for name in SAMPLERS[best].model_dump()} == SAMPLERS[best].model_dump()
    assert how["seeds"] == range(3)


def test_published_students_and_posthoc_averages_are_found_too(shown, tmp_path):
    scores = scores_of(
        ("teacher", 0, "ema", "heun", 256, 2.3),
        ("s8", 50, "phema-0.050", "euler", 8, 3.0),
        ("s8", 50, "posthoc-0.075", "euler", 8, 2.5),
        ("published", 157698, "ema", "euler", 8, 2.3),
        ("other", 0, "ema", "euler", 2, 6.0),
    )
    comparison.compare_images(scores, tmp_path, SAMPLERS, tmp_path / "a.png", images=3)
    assert [(label, network.relative_to(tmp_path).as_posix()) for label, network, _ in shown] == [
        ("teacher\n8 NFE", "teacher/network.safetensors"),
        ("teacher\n2 NFE", "teacher/network.safetensors"),
        ("s8\n8 NFE", "students/s8/50/posthoc-0.075.safetensors"),
        ("published\n8 NFE", "students/published/157698/ema.safetensors"),
        ("other\n2 NFE", "students/other/0/ema.safetensors"),
        ("teacher\n511 NFE", "teacher/network.safetensors"),
    ]
