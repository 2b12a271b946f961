"""Windows against plain loops, torch, OpenCV and the authors' resized scores."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DATA, torch

from otseg_jax.evaluation import windows

SIZES = [  # (height, width, window, stride): exact fit, shifted, one row, smaller than the window
    (48, 72, 32, 24),
    (64, 64, 32, 16),
    (33, 100, 32, 32),
    (32, 32, 32, 20),
    (20, 70, 32, 24),
    (70, 9, 32, 7),
    (1, 1, 8, 1),
]
RESIZES = [((12, 17), (24, 31)), ((31, 24), (13, 11)), ((16, 16), (32, 32)), ((32, 24), (16, 12))]
RESIZES += [((1, 1), (5, 3)), ((9, 2), (1, 1)), ((13, 29), (13, 29)), ((32, 32), (32, 1))]


def sizes(*pair):
    return jnp.array(pair, jnp.int32)


def reference_grid(height, width, window, stride):
    """mmsegmentation's slide_inference, word for word."""
    boxes = []
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom = min(row * stride + window, height)
            right = min(column * stride + window, width)
            boxes.append((max(bottom - window, 0), max(right - window, 0)))
    return boxes


@pytest.mark.parametrize("height", [1, 31, 32, 33, 55, 56, 57, 140])
@pytest.mark.parametrize("width", [5, 32, 99])
@pytest.mark.parametrize(("window", "stride"), [(32, 24), (32, 32), (32, 1), (30, 5)])
def test_grid_equals_the_reference(height, width, window, stride):
    origins = windows.grid(height, width, window=window, stride=stride)
    assert origins.dtype == np.int32
    assert [tuple(origin) for origin in origins] == reference_grid(height, width, window, stride)


@pytest.mark.parametrize("arguments", [(0, 5, 4, 2), (5, 5, 4, 0), (5, 5, 4, 5), (5, 5, 0, 1)])
def test_grid_refuses_gaps(arguments):
    height, width, window, stride = arguments
    with pytest.raises(ValueError, match=f"height={height}.*stride={stride}.*wanted"):
        windows.grid(height, width, window=window, stride=stride)


@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_cut_copies_and_pads(height, width, window, stride):
    image = np.random.default_rng(0).normal(size=(height, width, 3)).astype(np.float32)
    origins = windows.grid(height, width, window=window, stride=stride)
    result = windows.cut(image, origins, window=window)
    padded = np.pad(image, ((0, window), (0, window), (0, 0)))
    expected = [padded[y : y + window, x : x + window] for y, x in origins]
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32


@pytest.mark.parametrize("origin", [(-1, 0), (0, 7), (5, 0)])
def test_cut_refuses_origins_outside(origin):
    with pytest.raises(ValueError, match="5 × 7"):
        windows.cut(np.ones((5, 7, 3), np.float32), np.array([origin], np.int32), window=4)


@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_stitch_equals_a_plain_loop(height, width, window, stride):
    rng = np.random.default_rng(0)
    origins = windows.grid(height, width, window=window, stride=stride)
    canvas = [windows.bucket(max(side, window), 16) for side in (height, width)]
    scores = rng.normal(size=(len(origins), 4, window, window)).astype(np.float32)
    total, count = np.zeros((4, *canvas)), np.zeros(canvas)
    for (y, x), score in zip(origins, scores, strict=True):
        total[:, y : y + window, x : x + window] += score
        count[y : y + window, x : x + window] += 1
    weights = np.ones(len(origins), np.float32)

    # windows that only fill up the batch may hold anything, and lie anywhere
    filler = np.full((2, *scores.shape[1:]), np.nan, np.float32)
    scores = np.concatenate([scores, filler])
    origins = np.concatenate([origins, np.zeros((2, 2), np.int32)])
    weights = np.concatenate([weights, np.zeros(2, np.float32)])
    stitch = jax.jit(windows.stitch, static_argnames=("height", "width"))
    result = stitch(
        jnp.asarray(scores),
        jnp.asarray(origins),
        jnp.asarray(weights),
        height=canvas[0],
        width=canvas[1],
    )
    assert count[:height, :width].all()
    np.testing.assert_allclose(result, total / np.maximum(count, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_stitch_undoes_cut(height, width, window, stride):
    image = np.random.default_rng(0).normal(size=(height, width, 3)).astype(np.float32)
    origins = windows.grid(height, width, window=window, stride=stride)
    parts = windows.cut(image, origins, window=window)
    result = windows.stitch(
        jnp.asarray(parts.transpose(0, 3, 1, 2)),
        jnp.asarray(origins),
        jnp.ones(len(origins)),
        height=max(height, window),
        width=max(width, window),
    )
    # the mean of up to five equal numbers
    np.testing.assert_allclose(result[:, :height, :width], image.transpose(2, 0, 1), rtol=5e-7)


def test_stitch_weighs_windows():
    scores = jnp.stack([jnp.full((1, 2, 2), 1.0), jnp.full((1, 2, 2), 5.0)])
    result = windows.stitch(
        scores, jnp.array([[0, 0], [0, 1]]), jnp.array([3.0, 1.0]), height=2, width=4
    )
    np.testing.assert_array_equal(result[0], [[1, 2, 5, 0]] * 2)


def test_stitch_refuses_a_small_canvas():
    with pytest.raises(ValueError, match=r"canvas of 3 × 8.*4 × 4"):
        windows.stitch(
            jnp.ones((1, 2, 4, 4)), jnp.zeros((1, 2), jnp.int32), jnp.ones(1), height=3, width=8
        )


@pytest.mark.parametrize(("size", "output_size"), RESIZES)
def test_resize_equals_torch_jax_and_opencv(size, output_size):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(3, *size)).astype(np.float32)
    canvas = np.full((3, 32, 32), np.nan, np.float32)  # NaN shows any read outside the true size
    canvas[:, : size[0], : size[1]] = true
    result = windows.resize(
        jnp.asarray(canvas), sizes(*size), sizes(*output_size), height=33, width=40
    )
    assert result.shape == (3, 33, 40)
    assert np.isfinite(result).all()
    result = result[:, : output_size[0], : output_size[1]]
    exact = torch.nn.functional.interpolate(
        torch.tensor(true, dtype=torch.float64)[None],
        output_size,
        mode="bilinear",
        align_corners=False,
    )[0]
    np.testing.assert_allclose(result, exact, rtol=0, atol=1e-6)
    # these two place their samples in float32, up to 2e-6 pixels off, in noise of slope 5
    for oracle in (
        jax.image.resize(true, (3, *output_size), "bilinear", antialias=False),
        np.stack([cv2.resize(plane, output_size[::-1]) for plane in true]),
    ):
        np.testing.assert_allclose(result, oracle, rtol=0, atol=1e-5)


def test_resize_is_the_authors_last_step():
    data = np.load(DATA / "otseg_tiny_io.npz")
    result = windows.resize(
        jnp.asarray(data["scores_slide"][0]), sizes(48, 72), sizes(60, 90), height=60, width=90
    )
    np.testing.assert_allclose(result, data["scores_slide_rescaled"][0], rtol=0, atol=1e-6)


def test_resize_is_exact_on_a_ramp_of_thousands_of_pixels():
    # a linear ramp shows the sample positions themselves: half-pixel centres, clamped at the edge
    size, output = 4000, 3001
    canvas = jnp.arange(4096.0)[None, :, None]
    result = windows.resize(canvas, sizes(size, 1), sizes(output, 1), height=3008, width=1)
    position = (np.arange(output) + 0.5) * size / output - 0.5
    np.testing.assert_allclose(
        result[0, :output, 0], np.clip(position, 0, size - 1), rtol=2e-7, atol=2e-7
    )


def test_resize_compiles_once_for_all_true_sizes():
    resize = jax.jit(windows.resize, static_argnames=("height", "width"))
    canvas = jnp.ones((2, 32, 32))
    for size, output_size in RESIZES:
        result = resize(canvas, sizes(*size), sizes(*output_size), height=48, width=48)
        assert np.all(result[:, : output_size[0], : output_size[1]] == 1.0)
    assert resize._cache_size() == 1


def test_resize_stays_finite_outside_and_does_not_overflow():
    canvas = jnp.ones((1, 2, 30000))
    result = windows.resize(canvas, sizes(1, 30000), sizes(2, 30001), height=64, width=32000)
    assert np.all(result[:, :2, :30001] == 1.0)
    assert np.isfinite(result).all()


def test_whole_line_with_padding_batch_equals_a_plain_one():
    """grid → cut → stitch → resize of a photo in buckets, against resizing the photo itself."""
    photo = np.random.default_rng(3).random((50, 70, 3)).astype(np.float32)
    origins = windows.grid(50, 70, window=32, stride=24)
    parts = windows.cut(photo, origins, window=32)
    canvas = windows.stitch(
        jnp.asarray(parts.transpose(0, 3, 1, 2)),
        jnp.asarray(origins),
        jnp.ones(len(origins)),
        height=windows.bucket(50, 64),
        width=windows.bucket(70, 64),
    )
    result = windows.resize(canvas, sizes(50, 70), sizes(101, 93), height=128, width=128)
    np.testing.assert_allclose(
        result[:, :101, :93].transpose(1, 2, 0), cv2.resize(photo, (93, 101)), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(("size", "multiple"), [(0, 4), (4, 0)])
def test_bucket_refuses_nothing(size, multiple):
    with pytest.raises(ValueError, match=f"size={size}, multiple={multiple}"):
        windows.bucket(size, multiple)


@pytest.mark.parametrize(("size", "output_size"), RESIZES)
def test_a_mirrored_resize_is_the_resize_mirrored(size, output_size):
    canvas = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32)), jnp.float32)
    how = {"height": 33, "width": 40}
    plain = windows.resize(canvas, sizes(*size), sizes(*output_size), **how)
    turned = windows.resize(canvas, sizes(*size), sizes(*output_size), mirrored=True, **how)
    height, width = output_size
    np.testing.assert_array_equal(turned[:, :height, :width], plain[:, :height, :width][..., ::-1])
