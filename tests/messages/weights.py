"""Rows: weights from elsewhere, what their files do not tell, and converting them."""

import argparse
import functools
import json
import pathlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import small
from oracles import torch
from safetensors.numpy import save_file
from test_hugging_face import torch_clip

import otseg_jax
from messages import Row
from otseg_jax import build
from otseg_jax.convert import convert
from otseg_jax.convert.hints import Hints
from otseg_jax.weights import files, source
from otseg_jax.weights.clip import Clip
from otseg_jax.weights.towers import Stated

HEADS = Stated(vision_heads=2, text_heads=1)
SAID = HEADS._replace(activation="quick_gelu")


@functools.cache
def state() -> dict[str, Any]:
    """The state dict of a small CLIP with OpenAI's names."""
    import openai_clip  # needs torch: what asks for it is skipped without

    return openai_clip.make().state_dict()


def file(value: Callable[[], Any], stated: Stated = SAID) -> Callable[[pathlib.Path], Any]:
    """Saves a value as torch does, and reads it as a source of weights."""

    def act(folder: pathlib.Path) -> Clip:
        torch.save(value(), folder / "clip.pt")
        return read(folder / "clip.pt", stated)

    return act


def read(path: pathlib.Path, stated: Stated = SAID) -> Clip:
    found = source.find(path, stated=stated).clip
    assert found is not None
    return found


def prefixed(prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state().items()}


def arrays(folder: pathlib.Path, prefix: str) -> object:
    save_file({n: t.numpy() for n, t in prefixed(prefix).items()}, folder / "clip.safetensors")
    return read(folder / "clip.safetensors")


def transformers(folder: pathlib.Path, change: Mapping[str, Any]) -> object:
    """A folder of transformers, with another text configuration."""
    torch_clip().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    return read(folder, Stated())


def untold(folder: pathlib.Path, *names: str) -> object:
    """A folder of transformers, whose configuration leaves fields of both towers out."""
    torch_clip().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower] = {n: value for n, value in config[tower].items() if n not in names}
    (folder / "config.json").write_text(json.dumps(config))
    return read(folder, Stated())


def normalised(folder: pathlib.Path, value: object) -> None:
    """A folder of transformers, whose photos were normalised with this value, throughout."""
    torch_clip().save_pretrained(folder)
    told = json.dumps({"image_mean": [value] * 3, "image_std": [value] * 3})
    (folder / "preprocessor_config.json").write_text(told)
    build.tell_normalisation(small.settings(), read(folder, Stated()))


def open_clip(**vision: Any) -> Callable[[pathlib.Path], object]:
    """A folder of open_clip, with these sizes of the vision tower."""

    def act(folder: pathlib.Path) -> object:
        save_file({"visual.x": np.zeros(1, np.float32)}, folder / "open_clip_model.safetensors")
        config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"heads": 1}}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return read(folder, Stated())

    return act


def float8(folder: pathlib.Path, name: str) -> object:
    """One tensor of four numbers of 8 bits, 1.0 each where they are E4M3."""
    header = json.dumps({"a": {"dtype": name, "shape": [4], "data_offsets": [0, 4]}}).encode()
    size = len(header).to_bytes(8, "little")
    (folder / "a.safetensors").write_bytes(size + header + b"\x38" * 4)
    return files.read(folder / "a.safetensors")


def tokenise(folder: pathlib.Path, tokenizer: str) -> object:
    """Words through a small CLIP and a tokenizer of this name."""
    return file(state, SAID._replace(tokenizer=tokenizer))(folder).tokenise(["cat"])


def training(folder: pathlib.Path, **fields: Any) -> object:
    torch.save(state(), folder / "clip.pt")
    settings = small.settings(**{"clip.source": str(folder / "clip.pt"), **fields})
    return build.open_clip(settings).clip.tokenise(["cat"])


def onto_a_folder(folder: pathlib.Path) -> object:
    return convert("shapes-clip", folder, format="mmseg")


def converted(folder: pathlib.Path, **hints: Any) -> object:
    torch.save(state(), folder / "clip.pt")
    return convert(str(folder / "clip.pt"), folder / "out", hints=Hints(**hints))


class Config:
    """An object of a program that is not here."""

    __module__, __qualname__ = "their.program", "Config"


def foreign() -> Config:
    import sys
    import types

    module = types.ModuleType("their.program")
    module.Config = Config  # type: ignore[attr-defined]
    sys.modules.setdefault("their", types.ModuleType("their"))
    sys.modules["their.program"] = module
    made = Config()
    made.rate = np.arange(3.0)  # type: ignore[attr-defined]
    return made


ROWS = [
    Row(
        "load('no/such'): a hub name that cannot be had",
        lambda folder: otseg_jax.load("no/such"),
        r"'no/such' is no folder here, and could not be had from the Hugging Face hub: ",
    ),
    Row(
        "convert shapes-clip /proc/clip",
        lambda folder: convert("shapes-clip", "/proc/clip"),
        r"^/proc/clip cannot be written \(.*\): choose another name",
    ),
    Row(
        "load('gs://bucket/run')",
        lambda folder: otseg_jax.load("gs://bucket/run"),
        r"gs://bucket/run is a bucket, and no place for this",
    ),
    Row(
        "convert --upload=no/such, not logged in",
        lambda folder: convert("shapes-clip", folder / "clip", upload="no/such"),
        r"no/such cannot be published: .*log in with `hf auth login`, or set HF_TOKEN",
    ),
    Row(
        "convert ViT.pt: heads that no file tells",
        file(state, Stated()),
        r"clip\.pt: its number of attention heads is not in the file.*--vision_heads=2 "
        r"--text_heads=1 to otseg_jax\.convert, or --config\.clip\.vision_heads=2",
    ),
    Row(
        "--vision_heads=3, 128 channels",
        file(state, HEADS._replace(vision_heads=3)),
        r"clip\.pt: vision_heads=3 does not divide the 128 channels",
    ),
    Row(
        "convert ViT.pt --vision_heads=2 --text_heads=1, and no word of the activation",
        file(state, HEADS),
        r"does not tell its activation: assumed quick_gelu, as in OpenAI's weights; "
        r"--activation=gelu .* for LAION's",
        refused=False,
    ),
    Row(
        "--config.clip.activation=relu",
        lambda folder: small.settings(**{"clip.activation": "relu"}),
        r"clip\.activation='relu': wanted '', 'quick_gelu' or 'gelu'",
    ),
    Row(
        "--config.clip.vision_heads=-1",
        lambda folder: small.settings(**{"clip.vision_heads": -1}),
        r"clip\.vision_heads=-1: wanted greater than or equal to 0",
    ),
    Row(
        "--config.clip.source=ViT.pt",
        training,
        r"its number of attention heads is not in the file",
    ),
    Row(
        "--config.clip.source=ViT.pt --config.clip.vision_heads=2 --config.clip.text_heads=1",
        lambda folder: training(folder, **{"clip.vision_heads": 2, "clip.text_heads": 1}),
        r"no tokenizer beside .*clip\.pt: put its tokenizer\.json there, or name .*"
        r"--config\.clip\.tokenizer",
    ),
    Row(
        "--config.clip.tokenizer=shapes-clip, of another tower",
        lambda folder: training(
            folder,
            **{"clip.vision_heads": 2, "clip.text_heads": 1, "clip.tokenizer": "shapes-clip"},
        ),
        r"shapes_clip has 692 token ids, the text tower of .*clip\.pt 64: it is not",
    ),
    Row(
        "convert ViT.pt --tokenizer=shapes-clip, of another tower",
        lambda folder: converted(
            folder, vision_heads=2, text_heads=1, tokenizer="shapes-clip", activation="gelu"
        ),
        r"shapes_clip has 692 token ids, the text tower of .*clip\.pt 64: it is not",
    ),
    Row(
        "--tokenizer=a folder without one",
        lambda folder: tokenise(folder, str(folder)),
        r"is no folder that holds a tokenizer \(tokenizer\.json, or vocab\.json and merges",
    ),
    Row(
        "--tokenizer=ViT.pt",
        lambda folder: tokenise(folder, str(folder / "clip.pt")),
        r"is no folder that holds a tokenizer",
    ),
    Row(
        "convert shapes-clip --vision_heads=2, where its config.json tells 4",
        lambda folder: read(pathlib.Path("shapes-clip"), Stated(vision_heads=2)),
        r"vision_heads=2 as stated, where .*config\.json tells 4",
        refused=False,
    ),
    *[
        Row(
            f"a state dict in {name!r}",
            file(lambda value=value: value()),
            rf"clip\.pt: the weights are those below {below!r}",
            refused=False,
        )
        for name, value, below in (
            ("model", lambda: {"model": state(), "epoch": 3}, "model."),
            ("model_state_dict", lambda: {"model_state_dict": state()}, "model_state_dict."),
            ("module.", lambda: prefixed("module."), "module."),
            ("_orig_mod.", lambda: {"state_dict": prefixed("_orig_mod.")}, "state_dict._orig_mod."),
            ("net.clip", lambda: {"net": {"clip": state()}}, "net.clip."),
        )
    ],
    Row(
        "a Lightning module's state dict, with a head of its own",
        file(lambda: {"state_dict": {**prefixed("clipmodel."), "head.bias": torch.zeros(3)}}),
        r"below 'state_dict\.clipmodel\.'; beside them, and not read: state_dict\.head",
        refused=False,
    ),
    Row(
        "an average beside the weights",
        file(lambda: {"state_dict": state(), "state_dict_ema": state()}),
        r"below 'state_dict\.'; beside them, and not read: state_dict_ema",
        refused=False,
    ),
    Row(
        "a student and a teacher",
        file(lambda: {"student": state(), "teacher": state()}),
        r"clip\.pt holds several sets of weights, student\., teacher\.: save the one",
    ),
    Row(
        "module. in safetensors",
        lambda folder: arrays(folder, "module."),
        r"clip\.safetensors: the weights are those below 'module\.'",
        refused=False,
    ),
    Row(
        "arguments and a path beside the weights",
        file(lambda: {"model": state(), "args": argparse.Namespace(to=pathlib.PurePosixPath("x"))}),
        r"nothing was executed of the objects beside .*: argparse\.Namespace, pathlib\S*PosixPath",
        refused=False,
    ),
    Row(
        "an array and an object of another program beside the weights, as mmengine saves",
        file(lambda: {"state_dict": state(), "hub": OrderedDict(loss=foreign()), "a": np.ones(2)}),
        r"left out: their\.program\.Config, numpy\S*_reconstruct",
        refused=False,
    ),
    Row(
        "a whole object in place of its weights",
        file(lambda: foreign()),
        r"clip\.pt is one object of their\.program\.Config.*torch\.save\(model\.state_dict\(\)",
    ),
    Row(
        "a list of tensors",
        file(lambda: list(state().values())),
        r"clip\.pt holds a list, wanted weights by name",
    ),
    Row(
        "a checkpoint without weights",
        file(lambda: {"epoch": 3}),
        r"holds no weights by name, only epoch: they are saved by",
    ),
    Row(
        "tokens behind the end token, as config.json tells",
        lambda folder: transformers(folder, {"eos_token_id": 61}),
        r"eos_token_id is 61, wanted the largest token id 63.*set it to 2.*--tokenizer=",
    ),
    Row(
        "config.json without num_attention_heads and hidden_act",
        lambda folder: untold(folder, "num_attention_heads", "hidden_act"),
        r"config\.json does not tell vision_heads=12, text_heads=8, activation=quick_gelu: "
        r"taken as transformers' own default; --vision_heads",
        refused=False,
    ),
    Row(
        "a CLIP that was trained with another mean and deviation of photos",
        lambda folder: normalised(folder, 0.5),
        r"are not those that the CLIP was trained with .*for these, --config\.data\.mean="
        r"127\.5,127\.5,127\.5 --config\.data\.std=127\.5,127\.5,127\.5$",
        refused=False,
    ),
    Row(
        "a mean of photos in words",
        lambda folder: normalised(folder, "half"),
        r"preprocessor_config\.json does not tell the mean and the standard deviation of photos, "
        r"three numbers in 0\.\.1 each .*: mend or remove that file",
    ),
    Row(
        "--config.clip.source=random --config.clip.tokenizer=shapes-clip",
        lambda folder: build.open_clip(small.settings(**{"clip.tokenizer": "shapes-clip"})),
        r"clip\.source=random has the sizes of clip\.random and the built-in tokenizer: leave",
    ),
    Row(
        "--config.clip.tokenizer=no/such/folder",
        lambda folder: small.settings(**{"clip.tokenizer": "no/such/folder"}),
        r"no/such/folder is no folder that holds a tokenizer .*and no hub name such as openai/",
    ),
    Row(
        "open_clip's SigLIP",
        open_clip(timm_model_name="vit_base_patch16_siglip_224"),
        r"open_clip_config\.json describes other towers .*\(vision_cfg\.timm_model_name="
        r"'vit_base_patch16_siglip_224'\).*take a CLIP such as",
    ),
    Row(
        "open_clip's tower that pools by an average",
        open_clip(width=128, pool_type="avg"),
        r"describes other towers than CLIP's .*vision_cfg\.pool_type='avg'",
    ),
    Row(
        "safetensors in a float of 8 bits that is none",
        lambda folder: float8(folder, "F8_E8M0"),
        r"a\.safetensors holds numbers of type F8_E8M0, which are not read: save it in",
    ),
    Row(
        "convert … --format=mmseg onto a folder",
        onto_a_folder,
        r"is a folder, and one file is written: name it, .*/model\.pth",
    ),
]
