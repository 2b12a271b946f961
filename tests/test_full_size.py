"""ViT-B/16 at its real size, 600 MB: files of torch against our towers at 512 pixels."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import openai_clip
import pytest
from flax import nnx
from oracles import torch
from transformers import CLIPConfig, CLIPModel

from otseg_jax import build
from otseg_jax.convert import convert
from otseg_jax.weights import source


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(1, 512, 512, 3)).astype(np.float32)


def ours(clip, image):
    graphdef, state = nnx.split(clip.build_vision())

    # the session compiles fast code slowly or slow code fast; here the run is what takes long
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def run(state, image):
        tower = nnx.merge(graphdef, state)
        return tower.project(tower.encode(image))

    return np.asarray(run(state, jnp.asarray(image)))


def test_transformers_model_through_a_model_directory(tmp_path, image):
    config = CLIPConfig(vision_config={"patch_size": 16})
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size > 590e6
    try:
        convert(str(tmp_path / "hf"), tmp_path / "clip")
        # trained at 224, used at 512: positions resized once here, by transformers bicubically, so
        # that it is given ours
        clip = build.load_clip(tmp_path / "clip", image_size=512).clip
    finally:
        shutil.rmtree(tmp_path)
    assert clip.vision["position_embedding"].shape == (1025, 768)
    embeddings = model.vision_model.embeddings
    embeddings.image_size = 512
    positions = torch.tensor(clip.vision["position_embedding"])
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(positions)
    embeddings.position_ids = torch.arange(1025)[None]
    with torch.no_grad():
        hidden = model.vision_model(torch.tensor(image).permute(0, 3, 1, 2)).last_hidden_state
        want = model.visual_projection(model.vision_model.post_layernorm(hidden)).numpy()
    got = ours(clip, image)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_openai_torchscript_in_half_precision(tmp_path, image):
    sizes = {"size": 512, "patch": 16, "width": 768, "layers": 12, "out": 512}
    model = openai_clip.make(
        **sizes, vocab=49408, context=77, text_width=512, text_layers=12
    ).half()
    openai_clip.script(model, tmp_path / "ViT-B-16.pt")
    assert (tmp_path / "ViT-B-16.pt").stat().st_size > 290e6
    try:
        clip = source.find(tmp_path / "ViT-B-16.pt").clip
    finally:
        (tmp_path / "ViT-B-16.pt").unlink()
    with torch.no_grad():
        want = model.visual.float()(torch.tensor(image).permute(0, 3, 1, 2)).numpy()
    got = ours(clip, image)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
