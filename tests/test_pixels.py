"""Photos are normalised on the device as they were on the host: by the formula, in float32."""

from functools import partial

import jax
import numpy as np
import pytest

from configs import common
from otseg_jax.models import pixels


@pytest.mark.parametrize(("mean", "std"), [common.IMAGENET, common.CLIP])
def test_bytes_are_normalised_by_the_formula(mean, std):
    every = np.arange(256, dtype=np.uint8).repeat(4).reshape(2, 1, 128, 4)
    every[..., 3] = 1
    every[1, :, :5, 3] = 0
    found = jax.jit(partial(pixels.normalised, mean=mean, std=std))(every)
    expected = (every[..., :3].astype(np.float64) - np.array(mean)) / np.array(std)
    expected[1, :, :5] = 0
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-7)
    assert (np.asarray(found)[1, :, :5] == 0).all()


def test_what_is_normalised_stays():
    image = jax.random.normal(jax.random.key(0), (1, 2, 3, 3))
    np.testing.assert_array_equal(pixels.normalised(image, mean=(9.0,) * 3, std=(9.0,) * 3), image)
