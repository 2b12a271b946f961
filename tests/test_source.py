"""CLIP in every format that it is published in: the same leaves, or one clear error."""

import ast
import json
import re
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import openai_clip
import pytest
import small
from flax import serialization
from oracles import torch
from safetensors.numpy import save_file
from test_hugging_face import torch_clip
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from configs import common
from otseg_jax import build
from otseg_jax.convert import convert, write
from otseg_jax.data import classes
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.weights import clip, files, hugging_face, openai, rules, source
from otseg_jax.weights.towers import Stated

TINY = Stated(vision_heads=2, text_heads=1, activation="quick_gelu")  # of `openai_clip.make()`


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    torch_clip().save_pretrained(folder)
    return folder


def beside(hf: Path, folder: Path) -> Path:
    """A folder with the configuration alone, to put other weight files in."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((hf / "config.json").read_text())
    return folder


def flax_tree(state: dict[str, torch.Tensor]) -> dict:
    """What transformers' converter made of a torch state dict, by the kind of each weight."""
    tree: dict = {}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        array = tensor.float().numpy()
        if leaf == "weight" and array.ndim == 4:
            leaf, array = "kernel", array.transpose(2, 3, 1, 0)
        elif leaf == "weight" and "embedding" in path[-1]:
            leaf = "embedding"
        elif leaf == "weight" and array.ndim == 2:
            leaf, array = "kernel", array.T
        elif leaf == "weight":
            leaf = "scale"
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = np.ascontiguousarray(array) if array.ndim else array
    return tree


def test_pytorch_model_bin_is_read_as_safetensors(hf, tmp_path):
    folder = beside(hf, tmp_path)
    torch.save(torch_clip().state_dict(), folder / "pytorch_model.bin")
    assert hugging_face.load(folder).fingerprint == hugging_face.load(hf).fingerprint


def test_flax_model_msgpack_is_read_as_safetensors(hf, tmp_path):
    folder = beside(hf, tmp_path)
    tree = flax_tree(torch_clip().state_dict())
    (folder / "flax_model.msgpack").write_bytes(serialization.to_bytes(tree))
    assert hugging_face.load(folder).fingerprint == hugging_face.load(hf).fingerprint
    whole = (folder / "flax_model.msgpack").read_bytes()
    for share in (0.001, 0.5, 0.999):
        (folder / "flax_model.msgpack").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"flax_model\.msgpack .*damaged or cut short"):
            hugging_face.load(folder)


def test_sharded_checkpoints(hf, tmp_path):
    want = hugging_face.load(hf).fingerprint
    torch_clip().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert hugging_face.load(tmp_path).fingerprint == want

    state = torch_clip().state_dict()
    names, index = list(state), {}
    folder = tmp_path / "bin"
    folder.mkdir()
    beside(hf, folder)
    for part in range(3):
        shard = {name: state[name] for name in names[part::3]}
        torch.save(shard, folder / f"pytorch_model-{part}.bin")
        index |= dict.fromkeys(shard, f"pytorch_model-{part}.bin")
    listing = folder / "pytorch_model.bin.index.json"
    listing.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert hugging_face.load(folder).fingerprint == want

    for change, message in (
        (lambda i: {**i, names[0]: "../model.bin"}, "outside of its own folder: refused"),
        (lambda i: {**i, "surplus": "pytorch_model-0.bin"}, r"lack \['surplus'\]"),
        (lambda i: {n: f for n, f in i.items() if n != names[0]}, "does not list"),
        (lambda i: [], "is not the index of a sharded checkpoint"),
    ):
        listing.write_text(json.dumps({"weight_map": change(index)}))
        with pytest.raises(ValueError, match=message):
            hugging_face.load(folder)
    listing.write_text(json.dumps({"weight_map": {**index, "x": "pytorch_model-9.bin"}}))
    with pytest.raises(FileNotFoundError, match=r"not there: pytorch_model-9\.bin"):
        hugging_face.load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_torch_files(hf, tmp_path, dtype):
    folder, model = beside(hf, tmp_path), torch_clip().to(dtype)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    clip = hugging_face.load(folder)
    want = model.vision_model.embeddings.class_embedding.detach().float().numpy()
    np.testing.assert_array_equal(clip.vision["class_embedding"], want)
    assert {leaf.dtype for leaf in clip.vision.values()} == {np.dtype(np.float32)}


def features(clip, image, tokens):
    vision, text = clip.build_vision(), clip.build_text()
    encoded = jax.jit(lambda x: vision.project(vision.encode(x)))(jnp.asarray(image))
    return np.asarray(encoded), np.asarray(jax.jit(lambda x: text(x))(jnp.asarray(tokens)))


def check_features(model: openai_clip.CLIP, clip):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(1, 62, size=(3, 12))
    tokens[0, -1] = tokens[1, 5] = tokens[2, 1] = 63
    with torch.no_grad():
        want = model(torch.tensor(image).permute(0, 3, 1, 2), torch.tensor(tokens))
    for got, expected in zip(features(clip, image, tokens), want, strict=True):
        scale = expected.abs().max()
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-5 * scale)


def open_clip_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of open_clip's models with a text tower of their own."""
    inside = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_proj")
    return {f"text.{n}" if n.startswith(inside) else n: tensor for n, tensor in state.items()}


def test_openai_files_and_state_dicts(tmp_path):
    model = openai_clip.make()
    openai_clip.script(model, tmp_path / "ViT.pt")
    clip = source.find(tmp_path / "ViT.pt", stated=TINY).clip
    check_features(model, clip)
    state = model.state_dict()
    # the state dict of OpenAI's own files holds three numbers besides
    numbers = {n: torch.tensor(1) for n in ("input_resolution", "context_length", "vocab_size")}
    for name, value in {
        "state_dict.pt": {**state, **numbers},
        "checkpoint.pt": {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}},
        "distributed.pt": {"state_dict": {f"module.{n}": tensor for n, tensor in state.items()}},
        "open_clip.pt": {**open_clip_names(state), "text.attn_mask": torch.ones(2, 2)},
    }.items():
        torch.save(value, tmp_path / name)
        found = source.find(tmp_path / name, stated=TINY)
        assert (found.kind, found.format) == ("clip", "openai")
        assert found.clip.fingerprint == clip.fingerprint, name


def test_openai_half_precision(tmp_path):
    model = openai_clip.make().half()
    openai_clip.script(model, tmp_path / "ViT.pt")
    clip = source.find(tmp_path / "ViT.pt", stated=TINY).clip
    check_features(model.float(), clip)


def test_open_clip_folders_tell_heads_and_activation(tmp_path):
    model = openai_clip.make()
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_file(arrays, tmp_path / "open_clip_model.safetensors")
    sizes = {"width": 128, "head_width": 32, "layers": 2, "patch_size": 8, "image_size": 32}
    config = {"embed_dim": 32, "vision_cfg": sizes, "text_cfg": {"heads": 4, "width": 64}}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    clip = source.find(tmp_path).clip
    assert (clip.vision_config.heads, clip.text_config.heads) == (4, 4)
    assert clip.vision_config.activation == clip.text_config.activation == "gelu"
    path.write_text(json.dumps({"model_cfg": {**config, "quick_gelu": True}}))
    assert source.find(tmp_path).clip.vision_config.activation == "quick_gelu"
    assert source.find(tmp_path, stated=Stated(vision_heads=2)).clip.vision_config.heads == 2
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"open_clip_config\.json does not describe a ViT CLIP"):
        source.find(tmp_path)


OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("preprocessor_config.json", lambda m, s: {"image_mean": m, "image_std": s}),
        (
            "processor_config.json",
            lambda m, s: {"image_processor": {"image_mean": m, "image_std": s}},
        ),
        ("open_clip_config.json", lambda m, s: {"preprocess_cfg": {"mean": m, "std": s}}),
    ],
)
def test_the_normalisation_of_a_clip_is_read(hf, tmp_path, name, told):
    folder = tmp_path / "clip"
    shutil.copytree(hf, folder)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    assert source.find(folder).clip.normalisation is None
    (folder / name).write_text(json.dumps(told(*map(list, OPENAI))))
    loaded = source.find(folder).clip
    assert np.allclose(loaded.normalisation, common.CLIP)
    for wrong in ([0.5, 0.5], [122.0, 116.0, 104.0], "mean"):
        (folder / name).write_text(json.dumps(told(wrong, wrong)))
        with pytest.raises(ValueError, match=rf"{name} does not tell the mean and the standard"):
            source.find(folder)


def test_a_clip_keeps_its_normalisation(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "clip")
    told = {"image_mean": OPENAI[0], "image_std": OPENAI[1]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(told))
    convert(str(tmp_path / "clip"), tmp_path / "model")
    convert(str(tmp_path / "model"), tmp_path / "out", format="hf")
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose((processor.image_mean, processor.image_std), OPENAI, rtol=1e-6)


def test_another_normalisation_is_told_with_the_flags_that_mend_it(hf, tmp_path, caplog):
    folder = tmp_path / "clip"
    shutil.copytree(hf, folder)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(half))
    loaded = source.find(folder).clip
    caplog.set_level("INFO", logger="otseg_jax")

    def lines(**fields):
        caplog.clear()
        build.tell_normalisation(small.settings(**fields), loaded)
        return [(r.levelname, r.getMessage()) for r in caplog.records]

    ((level, line),) = lines()
    assert level == "WARNING"
    mend = re.findall(r"--config\.(data\.\w+)=(\S+)", line)
    assert lines(**{name: ast.literal_eval(values) for name, values in mend}) == []
    near = {"data.mean": (120.0,) * 3, "data.std": (120.0,) * 3}
    assert [level for level, _ in lines(**near)] == ["INFO"]
    np.save(tmp_path / "text.npy", np.ones((20, 2, 24), np.float32))
    fields = {"clip.source": str(folder), "text.embeddings": str(tmp_path / "text.npy")}
    caplog.clear()
    build.assemble(small.settings(**fields), classes.VOCABULARIES["shapes"])
    assert line in caplog.messages


def test_every_openai_leaf_goes_back(tmp_path):
    model = openai_clip.make()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    found = source.find(tmp_path / "a.pt", stated=TINY)
    back = rules.invert(found.rules, found.clip.leaves())
    state = {n: t.numpy() for n, t in model.state_dict().items() if n != "logit_scale"}
    assert set(back) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.ln_pre.bias"), "missing: visual.ln_pre.bias is not in the source"),
        (lambda s: s.update(surplus=torch.ones(1)), "unmapped: surplus is in the source"),
        (lambda s: s.pop("visual.proj"), "visual.proj is missing"),
        (lambda s: s.pop("visual.conv1.weight"), "a ResNet's cannot be used"),
        (lambda s: s["ln_final.bias"].fill_(float("nan")), r"not finite, in text/ln_final/bias"),
        (lambda s: s["visual.proj"].__setitem__((0, 0), float("inf")), r"projection/kernel \(1 of"),
    ],
)
def test_openai_files_that_do_not_fit(tmp_path, change, message):
    state = openai_clip.make().state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as error:
        source.find(tmp_path / "a.pt", stated=TINY)
    assert str(tmp_path / "a.pt") in str(error.value)


def test_heads_that_no_file_tells(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(openai_clip.make(width=192).state_dict(), path)
    with pytest.raises(ValueError, match=r"a\.pt.*give --vision_heads=3 --text_heads=1 to .*conv"):
        source.find(path)
    with pytest.raises(ValueError, match=r"or --config\.clip\.text_heads=1 to a training"):
        source.find(path, stated=Stated(vision_heads=6))
    with pytest.raises(ValueError, match="vision_heads=5 does not divide the 192 channels"):
        source.find(path, stated=Stated(vision_heads=5, text_heads=1))
    found = source.find(path, stated=Stated(vision_heads=6, text_heads=2)).clip
    assert (found.vision_config.heads, found.text_config.heads) == (6, 2)
    arrays = {n: t.numpy() for n, t in openai_clip.make().state_dict().items()}
    arrays["visual.conv1.weight"] = np.zeros((100, 3, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"give --vision_heads=N"):
        openai.load(arrays, Path("a.pt"))


def test_lone_files_and_other_content(hf, tmp_path):
    assert (
        source.find(hf / "model.safetensors").clip.fingerprint == source.find(hf).clip.fingerprint
    )
    folder = beside(hf, tmp_path / "two")
    (folder / "model.safetensors").write_bytes((hf / "model.safetensors").read_bytes())
    other = torch_clip()
    torch.nn.init.zeros_(other.visual_projection.weight)
    torch.save(other.state_dict(), folder / "pytorch_model.bin")
    named = source.find(folder / "pytorch_model.bin").clip
    assert not named.vision["projection/kernel"].any(), "the file that was named is the one read"
    lone = tmp_path / "model.safetensors"
    lone.write_bytes((hf / "model.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"no config\.json beside it"):
        source.find(lone)
    save_file({"conv.weight": np.zeros(3, np.float32)}, lone)
    with pytest.raises(ValueError, match=r"holds no CLIP.*named like conv\.weight"):
        source.find(lone)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list, wanted weights by name"):
        source.find(tmp_path / "list.pt")
    torch.save({"meta": {"a": 1}}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"holds no weights by name, only meta"):
        source.find(tmp_path / "none.pt")


def test_msgpack_and_nesting_made_to_harm(tmp_path):
    def deep(levels):
        return {"a": deep(levels - 1)} if levels else {"a": np.zeros(1, np.float32)}

    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(deep(100)))
    with pytest.raises(ValueError, match="nests deeper than 64 levels"):
        files.read(path)
    code = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."  # a dict that holds itself
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("a/data.pkl", code)
    with pytest.raises(ValueError, match="nests deeper than 64 levels"):
        files.read(tmp_path / "a.pt")
    lie = {"a": np.zeros(4, np.float32)}
    whole = serialization.msgpack_serialize(lie)
    path.write_bytes(whole.replace(b"float32", b"object "))
    with pytest.raises(ValueError, match="damaged or cut short"):
        files.read(path)


def test_clip_source_takes_every_format(hf, tmp_path):
    openai_clip.script(openai_clip.make(), tmp_path / "ViT.pt")
    found = build.load_clip(tmp_path / "ViT.pt", image_size=64, stated=TINY).clip
    assert found.vision_config.image_size == 64
    assert found.vision["position_embedding"].shape == (65, 128)
    assert found.build_text()(jnp.ones((1, 12), jnp.int32)).shape == (1, 32)
    with pytest.raises(ValueError, match=r"no tokenizer beside .*ViT\.pt: put its token"):
        found.tokenise(["cat"])


SIZES = {  # width, layers, heads, MLP, patch, image, text width, layers, heads, embedding
    "B/32": (768, 12, 12, 3072, 32, 224, 512, 12, 8, 512),
    "B/16": (768, 12, 12, 3072, 16, 224, 512, 12, 8, 512),
    "L/14": (1024, 24, 16, 4096, 14, 224, 768, 12, 12, 768),
    "L/14@336": (1024, 24, 16, 4096, 14, 336, 768, 12, 12, 768),
    # as the config.json of LAION's models tell them
    "H/14": (1280, 32, 16, 5120, 14, 224, 1024, 24, 16, 1024),
    "g/14": (1408, 40, 16, 6144, 14, 224, 1024, 24, 16, 1024),
    "bigG/14": (1664, 48, 16, 8192, 14, 224, 1280, 32, 20, 1280),
}


def published(name):
    """Our sizes of a published CLIP, and its arrays by transformers' and by OpenAI's names.

    They take no memory: all are views of one zero.
    """
    width, layers, heads, mlp, patch, size, words, depth, word_heads, embed = SIZES[name]
    ours = (
        VisionConfig(
            image_size=size,
            patch_size=patch,
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=mlp,
            embed_dim=embed,
            activation="gelu",
        ),
        TextConfig(
            vocab_size=49408,
            context_length=77,
            width=words,
            layers=depth,
            heads=word_heads,
            mlp_width=4 * words,
            embed_dim=embed,
            activation="gelu",
        ),
    )
    config = CLIPConfig.from_dict(write.hugging_face_config(*ours))
    sizes = {"size": size, "patch": patch, "width": width, "layers": layers, "out": embed}
    sizes |= {"vocab": 49408, "context": 77, "text_width": words, "text_layers": depth}
    with torch.device("meta"):
        models = {"hf": CLIPModel(config), "openai": openai_clip.CLIP(**sizes, mlp=mlp)}
    zero = np.zeros((), np.float32)
    arrays = {
        kind: {n: np.broadcast_to(zero, t.shape) for n, t in model.state_dict().items()}
        for kind, model in models.items()
    }
    return *ours, arrays


# the larger ones have the same names, more often
@pytest.mark.parametrize("name", ["B/32", "B/16", "L/14", "L/14@336"])
def test_published_towers_are_covered_name_by_name(name):
    vision, words, arrays = published(name)
    target = clip.shapes(vision, words)
    for kind, module in (("hf", hugging_face), ("openai", openai)):
        table = module.rules(vision.layers, words.layers)
        assert set(rules.fill(table, arrays[kind], target, unused=module.UNUSED)) == set(target)


@pytest.mark.parametrize("name", SIZES)
def test_published_towers_are_known_by_their_sizes(name, caplog):
    vision, words, arrays = published(name)
    said = Stated(activation="gelu")
    assert openai.configs(arrays["openai"], "visual.", "", "file", said) == (vision, words)
    caplog.clear()
    assert (
        openai.configs(arrays["openai"], "visual.", "", "file", Stated())[0].heads == vision.heads
    )
    (line,) = caplog.messages
    wide = vision.width > 1024
    assert (
        f"assumed {'gelu' if wide else 'quick_gelu'}, as in {'LAION' if wide else 'OpenAI'}" in line
    )
    assert f"--activation={'quick_gelu' if wide else 'gelu'}" in line


def test_a_wrapper_changes_nothing(tmp_path):
    model = openai_clip.make()
    state = model.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    want = source.find(tmp_path / "plain.pt", stated=TINY).clip.fingerprint
    other = {name: tensor * 0.5 for name, tensor in state.items()}
    for i, value in enumerate(
        (
            {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
            {"state_dict": {f"clipmodel.{n}": t for n, t in state.items()}},
            {"state_dict": state, "state_dict_ema": other, "model_ema": {"module": other}},
            {f"module._orig_mod.{n}": t for n, t in state.items()},
            {"model_state_dict": open_clip_names(state)},
        )
    ):
        torch.save(value, tmp_path / f"{i}.pt")
        assert source.find(tmp_path / f"{i}.pt", stated=TINY).clip.fingerprint == want, i
    arrays = {f"model.{n}": t.numpy() for n, t in state.items()}
    save_file(arrays, tmp_path / "a.safetensors")
    assert source.find(tmp_path / "a.safetensors", stated=TINY).clip.fingerprint == want


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_small_floats_in_safetensors(tmp_path, dtype):
    tensors = {"a": torch.randn(5, 3).to(dtype), "b": torch.arange(4)}
    import safetensors.torch

    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    got = files.read(tmp_path / "a.safetensors").arrays
    np.testing.assert_array_equal(got["a"].astype(np.float32), tensors["a"].float().numpy())
    np.testing.assert_array_equal(got["b"], np.arange(4))
