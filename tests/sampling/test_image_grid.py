"""Image grids for viewing: every pixel is shown, and rows that do not belong together are refused."""

import numpy as np
import pytest
from PIL import Image

from mscd.errors import UserError
from mscd.sampling.image_grid import contact_sheet, labelled_grid
from mscd.sampling.sample_file import write_samples


def pictures(seed, channels=1, size=8):
    return np.random.default_rng(seed).integers(0, 256, [5, size, size, channels], dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_enlarges_each_pixel_to_a_square_of_its_colour(tmp_path, channels):
    rows = [("teacher\n8 evaluations", pictures(0, channels)), ("student", pictures(1, channels))]
    labelled_grid(rows, tmp_path / "a.png", columns=4, scale=5)
    with Image.open(tmp_path / "a.png") as picture:
        grid = np.asarray(picture)
    for _, images in rows:
        for image in images[:4]:
            tile = np.broadcast_to(image, (8, 8, 3)).repeat(5, axis=0).repeat(5, axis=1)
            windows = np.lib.stride_tricks.sliding_window_view(grid, tile.shape)[:, :, 0]
            corner = (windows[:, :, 0, 0] == tile[0, 0]).all(-1)
            assert sum(np.array_equal(window, tile) for window in windows[corner]) == 1


@pytest.mark.parametrize(("size", "width"), [(8, 64), (16, 64), (48, 48), (64, 64), (128, 128)])
def test_a_grid_enlarges_small_images_only(tmp_path, size, width):
    labelled_grid([("a", pictures(0, size=size))], tmp_path / "one.png", columns=1)
    labelled_grid([("a", pictures(0, size=size))], tmp_path / "two.png", columns=2)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width - one.width == width + max(2, width // size // 2)


def test_a_grid_takes_the_first_columns_of_sample_files_of_the_same_seeds(tmp_path):
    for name, last in (("a", 4), ("b", 9)):
        write_samples(tmp_path / f"{name}.npz", pictures(ord(name)), {"seeds": [0, last]})
    labelled_grid([(name, tmp_path / f"{name}.npz") for name in "ab"], tmp_path / "files.png", columns=4)
    labelled_grid([(name, pictures(ord(name))) for name in "ab"], tmp_path / "arrays.png", columns=4)
    assert (tmp_path / "files.png").read_bytes() == (tmp_path / "arrays.png").read_bytes()


def test_a_grid_refuses_rows_of_different_seeds(tmp_path):
    for name, first in (("a", 0), ("b", 5)):
        write_samples(tmp_path / f"{name}.npz", pictures(0), {"seeds": [first, first + 4]})
    with pytest.raises(UserError, match=r"same seeds \(a: from 0, b: from 5\)"):
        labelled_grid([(name, tmp_path / f"{name}.npz") for name in "ab"], tmp_path / "a.png", columns=4)


def test_a_grid_refuses_too_few_images_and_different_sizes(tmp_path):
    with pytest.raises(UserError, match="student: 5 images, too few for a row of 6"):
        labelled_grid([("student", pictures(0))], tmp_path / "a.png", columns=6)
    with pytest.raises(UserError, match=r"different sizes .*a: 8x8, b: 16x16"):
        labelled_grid([("a", pictures(0)), ("b", pictures(0, size=16))], tmp_path / "a.png", columns=4)


@pytest.mark.parametrize(("resolution", "scale"), [(8, 8), (32, 2), (64, 1), (128, 1)])
def test_a_grid_of_grey_images_is_grey_and_large_images_are_not_enlarged(resolution, scale):
    images = pictures(0, size=resolution)[:4]
    shown = contact_sheet(images)
    side = 2 * (resolution * scale + 2) + 2
    assert shown.shape == (side, side)
    assert np.array_equal(
        shown[2 : resolution * scale + 2 : scale, 2 : resolution * scale + 2 : scale],
        images[0, ..., 0],
    )
