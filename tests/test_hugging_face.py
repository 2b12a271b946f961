"""CLIP from Hugging Face: transformers' own torch model, randomly filled, is the reference."""

import json
from types import SimpleNamespace

import hub_server
import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from otseg_jax.weights.clip import resize_position_embedding
from otseg_jax.weights.hugging_face import load, read_config, rules
from otseg_jax.weights.rules import invert

VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 96,
}
TEXT = {
    "vocab_size": 64,
    "max_position_embeddings": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "bos_token_id": 62,
    "eos_token_id": 63,
}


def torch_clip(vision=None, text=None, projection=24):
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            vision_config={**VISION, **(vision or {})},
            text_config={**TEXT, **(text or {})},
            projection_dim=projection,
        )
    ).eval()
    # transformers starts with biases at 0 and norms at 1, which would hide a swap of two of them
    for name, parameter in model.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean=one, std=scale)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A torch CLIP and its folder; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("clip")
    model = torch_clip()
    model.save_pretrained(folder)
    return SimpleNamespace(model=model, folder=folder)


@pytest.fixture
def copy(saved, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in saved.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("vision", "text", "projection"),
    [
        ({}, {}, 24),
        ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}, 40),
        ({"num_attention_heads": 4, "layer_norm_eps": 1e-2}, {"num_attention_heads": 8}, 16),
        ({"image_size": 21, "patch_size": 7, "num_hidden_layers": 1}, {"layer_norm_eps": 1e-2}, 8),
        ({}, {"eos_token_id": 2, "hidden_size": 24, "num_hidden_layers": 3}, 24),
    ],
)
def test_features_are_those_of_transformers(tmp_path, vision, text, projection):
    model = torch_clip(vision, text, projection)
    model.save_pretrained(tmp_path)
    clip = load(tmp_path)
    vision_tower, text_tower = clip.build_vision(), clip.build_text()
    rng = np.random.default_rng(0)
    size = clip.vision_config.image_size
    image = rng.normal(size=(2, 3, size, size)).astype(np.float32)
    tokens = rng.integers(3, 62, size=(3, 12))
    tokens[0, -1] = tokens[1, 5] = tokens[2, 1] = 63
    with torch.no_grad():
        hidden = model.vision_model(torch.tensor(image)).last_hidden_state
        features = model.visual_projection(model.vision_model.post_layernorm(hidden))
        pooled = model.get_image_features(torch.tensor(image)).pooler_output
        texts = model.get_text_features(torch.tensor(tokens)).pooler_output
    encoded = jax.jit(lambda x: vision_tower.encode(x))(jnp.asarray(image.transpose(0, 2, 3, 1)))
    close(encoded, hidden.numpy())
    close(vision_tower.project(encoded), features.numpy())
    close(vision_tower.project(encoded)[:, 0], pooled.numpy())
    close(jax.jit(lambda x: text_tower(x))(jnp.asarray(tokens)), texts.numpy())


def test_the_table_gives_the_file_back(saved):
    clip = load(saved.folder)
    back, stored = invert(rules(3, 2), clip.leaves()), load_file(saved.folder / "model.safetensors")
    del stored["logit_scale"]
    assert set(back) == set(stored)
    for name, array in stored.items():
        np.testing.assert_array_equal(back[name], array)


def test_image_size_resizes_the_stored_positions_once(saved):
    native, large = load(saved.folder), load(saved.folder, image_size=72)
    assert (native.vision_config.grid, large.vision_config.grid) == (4, 9)
    assert (native.vision_config.image_size, large.vision_config.image_size) == (32, 72)
    want = resize_position_embedding(native.vision["position_embedding"], 9)
    np.testing.assert_array_equal(large.vision["position_embedding"], want)
    vision_tower = large.build_vision()
    tokens = jax.eval_shape(lambda x: vision_tower.encode(x), jnp.zeros((1, 72, 72, 3)))
    assert tokens.shape == (1, 82, 48)
    with pytest.raises(ValueError, match="image_size 7 is below patch_size 8"):
        load(saved.folder, image_size=7)


def test_fingerprints_follow_the_weights(saved, copy):
    clip = load(saved.folder)
    assert load(copy, image_size=64).fingerprint == clip.fingerprint
    weights = copy / "model.safetensors"
    arrays = load_file(weights)
    arrays["vision_model.pre_layrnorm.bias"][0] += 1
    save_file(arrays, weights)
    changed = load(copy)
    assert changed.fingerprint != clip.fingerprint
    assert changed.text_fingerprint == clip.text_fingerprint
    arrays["text_model.final_layer_norm.bias"][0] += 1
    save_file(arrays, weights)
    assert load(copy).text_fingerprint != clip.text_fingerprint
    edit(copy, lambda config: config["text_config"].update(num_attention_heads=2))
    assert load(copy).text_fingerprint != load(saved.folder).text_fingerprint


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_become_float32(tmp_path, dtype):
    model = torch_clip().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    clip = load(tmp_path)
    assert {leaf.dtype for leaf in (*clip.vision.values(), *clip.text.values())} == {
        np.dtype("float32")
    }
    want = model.vision_model.embeddings.class_embedding.detach().float().numpy()
    np.testing.assert_array_equal(clip.vision["class_embedding"], want)


def test_position_ids_of_old_files_are_known(saved, copy):
    arrays = load_file(copy / "model.safetensors")
    for tower, length in (("text", 12), ("vision", 17)):
        arrays[f"{tower}_model.embeddings.position_ids"] = np.arange(length)[None]
    save_file(arrays, copy / "model.safetensors")
    assert load(copy).fingerprint == load(saved.folder).fingerprint


def test_what_a_config_leaves_out_has_transformers_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "clip", "vision_config": {"patch_size": 16}}))
    vision, text = read_config(tmp_path)
    assert (vision, text) == read_config(path)
    assert (vision.image_size, vision.patch_size, vision.width, vision.heads) == (224, 16, 768, 12)
    assert (vision.layers, vision.mlp_width, vision.embed_dim) == (12, 3072, 512)
    assert (text.vocab_size, text.context_length, text.width, text.heads) == (49408, 77, 512, 8)
    assert (text.activation, text.eps) == ("quick_gelu", 1e-5)


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="siglip"), "model_type is 'siglip', wanted 'clip'"),
        (lambda c: c["text_config"].update(eos_token_id=5), "eos_token_id is 5.*largest.*63"),
        (lambda c: c["vision_config"].update(num_channels=4), "num_channels is 4, wanted 3"),
        (lambda c: c["vision_config"].update(image_size=[32, 16]), "image_size is .*one integer"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "activation is 'relu'"),
        (lambda c: c["vision_config"].update(num_attention_heads=7), "48.*not a multiple"),
        (lambda c: c["text_config"].update(hidden_size="wide"), "hidden_size"),
        (lambda c: c["text_config"].update(num_hidden_layers=0), "layers is 0"),
        (lambda c: c.update(vision_config=3), "vision_config"),
    ],
)
def test_configs_that_are_refused(copy, change, message):
    edit(copy, change)
    with pytest.raises(ValueError, match=message) as error:
        load(copy)
    assert str(error.value).startswith(f"{copy / 'config.json'} does not describe a CLIP")


@pytest.mark.parametrize("content", ["", "{", "[]", '"clip"', "\x00"])
def test_configs_that_are_not_json_objects(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json does not describe a CLIP"):
        load(copy)


def test_weights_that_do_not_fit_the_config(copy):
    edit(copy, lambda config: config["vision_config"].update(image_size=64))
    weights = copy / "model.safetensors"
    arrays = load_file(weights)
    arrays["surplus"] = arrays.pop("visual_projection.weight")
    save_file(arrays, weights)
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not fit .*config\.json"
    ) as error:
        load(copy)
    for line in (
        "3 problem(s)",
        "unmapped: surplus",
        "missing: visual_projection.weight",
        "shape: vision/position_embedding wants (65, 48)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short(copy, share):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"model\.safetensors .*damaged or cut short, fetch"):
        load(copy)


def test_a_git_lfs_pointer_in_place_of_the_weights(copy):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 598641023\n"
    (copy / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match=r"\(\d+ bytes\) is damaged or cut short"):
        load(copy)


def test_a_folder_without_weights_says_what_it_holds(copy):
    (copy / "model.safetensors").rename(copy / "tf_model.h5")
    with pytest.raises(FileNotFoundError) as error:
        load(copy)
    message = str(error.value)
    assert f"{copy} holds no weights that are read (model.safetensors, " in message
    assert message.endswith("only config.json, tf_model.h5")


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "../nowhere", "/nowhere/clip", "~/clip"])
def test_a_source_that_is_nothing(source):
    with pytest.raises(FileNotFoundError, match=r"is no folder, and no hub name of the form"):
        load(source)


def test_a_file_or_an_empty_folder(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load(copy / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there; a CLIP folder"):
        load(tmp_path)


def test_hub_names_are_read_through_the_hub_cache(saved, tmp_path, monkeypatch):
    # offline, as on a cluster node: the hub library answers from its cache and asks no server
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    (repository / "snapshots").mkdir()
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.symlink_to(saved.folder)
    assert load("someone/tiny-clip").fingerprint == load(saved.folder).fingerprint
    with pytest.raises(FileNotFoundError, match="'someone/else' is no folder here, and could not"):
        load("someone/else")


def test_one_copy_of_the_weights_is_fetched(saved, tmp_path):
    files = {path.name: path.read_bytes() for path in saved.folder.iterdir()}
    others = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")
    with hub_server.at_hand(tmp_path) as server:
        server.repositories["some/clip"] = files | dict.fromkeys(others, b"the same once more")
        assert load("some/clip").fingerprint == load(saved.folder).fingerprint
    assert sorted(server.fetched) == ["config.json", "model.safetensors"]
