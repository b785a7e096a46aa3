"""The names of metrics in settings, score files, tables and the command line. Loads no torch."""

from typing import Literal, get_args

# What each measures: docs/explanation/metrics.md.
Metric = Literal["fd", "fd_inf", "kid", "pr", "dc", "is", "sfid", "cmmd", "memorised"]
METRICS: tuple[Metric, ...] = get_args(Metric)

SPLITS = 10  # of is
NEIGHBOURS = 3  # k: the ball of an image reaches to its k-th nearest other image
# Images that a metric needs at least, where that is more than two.
LEAST_IMAGES: dict[Metric, int] = {"fd_inf": 4, "pr": NEIGHBOURS + 1, "dc": NEIGHBOURS + 1, "is": SPLITS}
