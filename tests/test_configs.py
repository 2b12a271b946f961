"""Configurations: the published settings in numbers, full-size shapes, and no unread field."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from flax import nnx

from configs import ade20k, coco_stuff, common, folder, pascal_context, shapes, voc12
from configs.training_free import ade20k as ade20k_alone
from configs.training_free import cityscapes, coco_object, context59, context60, voc20, voc21
from configs.training_free import coco_stuff as coco_stuff_alone
from configs.training_free import common as alone
from configs.training_free import shapes as shapes_alone
from otseg_jax import build
from otseg_jax.data import templates
from otseg_jax.data.classes import VOCABULARIES, in_words
from otseg_jax.models.clip import VisionConfig
from otseg_jax.models.otseg import OTSeg, OTSegConfig
from otseg_jax.models.training_free import METHODS, TrainingFreeConfig

FILES = {
    "voc12": voc12,
    "pascal_context": pascal_context,
    "coco_stuff": coco_stuff,
    "ade20k": ade20k,
    "folder": folder,
    "shapes": shapes,
}
REGIMES = ("inductive", "transductive", "supervised")

# the published settings: iterations by regime, crop, prompt tokens, templates, train and test
# resize, stride
TABLE = {
    "voc12": ((20_000, 10_000, 20_000), 512, 10, 6, (2048, 512), (2048, 512), 426),
    "pascal_context": ((40_000, 20_000, 40_000), 480, 10, 8, (520, 520), (2048, 520), 80),
    "coco_stuff": ((80_000, 40_000, 80_000), 512, 100, 8, (2048, 512), (2048, 512), 426),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_published_settings(name):
    steps, crop, tokens, templates, train_scale, test_scale, stride = TABLE[name]
    configs = [FILES[name].get_config(regime) for regime in REGIMES]
    assert tuple(config.train.steps for config in configs) == steps
    for config in configs:
        assert config.data.dataset == name
        assert config.data.crop == crop
        assert config.model.prompt_tokens == tokens
        assert len(config.text.templates) == templates
        assert tuple(config.data.scale) == train_scale
        assert tuple(config.eval.scale) == test_scale
        assert config.eval.stride == stride
        assert (config.train.batch_size, config.train.learning_rate) == (16, 2e-4)
        assert (config.data.mean, config.data.std) == common.IMAGENET


def test_ade20k_has_clips_normalisation():
    config = ade20k.get_config()
    assert (config.data.mean, config.data.std) == common.CLIP


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", FILES)
def test_configs_are_locked(name, regime):
    config = FILES[name].get_config(regime)
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.regime == regime
    with pytest.raises(AttributeError, match="batchsize"):
        config.train.batchsize = 1


@pytest.mark.parametrize("name", ["voc12", "pascal_context", "coco_stuff", "ade20k"])
@pytest.mark.parametrize("decoder", ["mpsa", "cross_attention"])
def test_full_size_shapes(name, decoder):
    config = FILES[name].get_config("supervised")
    config.model.decoder = decoder
    sizes = config.clip.random
    vision = VisionConfig(
        image_size=config.data.crop,
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        **sizes.vision,
    )
    classes = len(VOCABULARIES[name])
    prompts = 1 if decoder == "cross_attention" else len(config.text.templates)
    crop = config.data.crop

    def run(image, text):
        return OTSeg(vision, OTSegConfig(**config.model), rngs=nnx.Rngs(0))(image, text)

    maps = jax.eval_shape(
        run, jnp.zeros((2, crop, crop, 3)), jnp.zeros((classes, prompts, sizes.embed_dim))
    )
    assert set(maps) == ({"decoder"} if decoder == "cross_attention" else {"decoder", "mps"})
    for logits in maps.values():
        assert logits.shape == (2, classes, crop // 16, crop // 16)


ALONE = {
    "voc20": voc20,
    "voc21": voc21,
    "context59": context59,
    "context60": context60,
    "coco_object": coco_object,
    "coco_stuff": coco_stuff_alone,
    "ade20k": ade20k_alone,
    "cityscapes": cityscapes,
}
# what the authors' configurations say, row by row: data set, method, short side, window (0: the
# whole photo), stride, scale of the softmax, threshold, least share, words of all classes
PROTOCOL = """
voc20 naclip 336 0 112 40 None 0 30
voc20 sclip 336 224 112 40 None 0 30
voc20 pearl 336 0 112 40 None 0 30
voc21 naclip 336 0 112 40 0.1 0 56
voc21 sclip 336 224 112 65 0.1 0.1 56
voc21 clearclip 448 448 224 50 0.5 0 21
voc21 resclip 336 0 112 40 0.1 0 56
voc21 sc_clip 336 224 112 50 0.15 0.1 56
voc21 pearl 336 0 112 40 0.1 0 56
context59 naclip 336 224 112 40 None 0 59
context60 naclip 336 224 112 40 0.1 0 60
context60 sclip 336 224 112 50 0.1 0 60
context60 clearclip 448 448 224 50 0.15 0 60
context60 sc_clip 336 224 112 40 0.15 0 60
coco_object naclip 336 224 112 40 0.1 0 113
coco_object sclip 336 224 112 50 0.1 0 113
coco_object clearclip 448 448 224 50 0.4 0 81
coco_object sc_clip 336 224 112 55 0.35 0 113
coco_stuff naclip 336 224 112 40 None 0 171
coco_stuff sclip 448 224 112 40 None 0 171
ade20k clearclip 448 448 224 50 None 0 150
ade20k resclip 336 224 112 40 None 0 150
cityscapes naclip 560 224 112 40 None 0 19
cityscapes clearclip 448 224 224 50 None 0 19
"""


@pytest.mark.parametrize("row", PROTOCOL.split("\n")[1:-1])
def test_the_published_protocol_of_a_clip_alone(row):
    name, method, short, window, stride, scale, threshold, share, words = row.split()
    config = ALONE[name].get_config(method)
    assert tuple(config.eval.scale) == (2048, int(short))
    assert (config.data.crop, config.eval.stride) == (int(window), int(stride))
    assert config.model.scale == float(scale)
    assert config.eval.threshold == (None if threshold == "None" else float(threshold))
    assert config.eval.least_share == float(share)
    options = build.settings_of(config)
    assert len(options.templates) == 80
    asked, class_of = in_words(VOCABULARIES[options.data.dataset].names, options.text.words)
    assert len(asked) == len(class_of) == int(words)


# temperature and share of the second pass, share of earlier blocks, first threshold
RESCLIP = {
    "ade20k": (2.1, 0.7, 0.3, 0.25),
    "cityscapes": (2.1, 0.6, 0.2, 0.1),
    "coco_object": (1.8, 0.7, 0.4, 0.11),
    "coco_stuff": (1.8, 0.7, 0.4, 0.11),
    "context59": (1.8, 0.7, 0.4, 0.25),
    "context60": (1.8, 0.7, 0.3, 0.3),
    "voc20": (2.1, 0.6, 0.6, 0.1),
    "voc21": (2.2, 0.7, 0.3, 0.5),
}


@pytest.mark.parametrize("name", ALONE)
def test_the_published_numbers_of_resclip(name):
    model = ALONE[name].get_config("resclip").model
    found = model.mask_temperature, model.mask_share, model.earlier_share, model.first_threshold
    assert found == RESCLIP[name]
    assert model.temperature == 2


@pytest.mark.parametrize("name", [*ALONE, "shapes"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_row_of_every_data_set(name, method):
    config = {**ALONE, "shapes": shapes_alone}[name].get_config(method)
    assert config.is_locked
    options = build.settings_of(config)
    assert options.model == TrainingFreeConfig(**config.model)
    assert options.model.method == method
    given = {field.name for field in dataclasses.fields(TrainingFreeConfig)}
    assert set(config.model) == given


def leaves(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


PACKAGE = Path(build.__file__).parent


def attribute_paths(tree):
    """Every chain of attributes, as in "options.train.steps", and its tails "train.steps", …"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            chain = [node.attr]
            while isinstance(node := node.value, ast.Attribute):
                chain.insert(0, node.attr)
            if isinstance(node, ast.Name):
                chain.insert(0, node.id)
            yield from (".".join(chain[start:]) for start in range(len(chain)))


def read_paths():
    """What the package reads; of `settings`, where reading is checking, its properties alone."""
    trees = {file: ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}
    checks = ast.walk(trees.pop(PACKAGE / "settings.py"))
    used = [
        n
        for n in checks
        if isinstance(n, ast.FunctionDef) and "property" in map(ast.unparse, n.decorator_list)
    ]
    return {path for tree in [*trees.values(), *used] for path in attribute_paths(tree)}


def model_paths():
    """What is read of an `OTSegConfig`: by itself (but for its check), or where it is passed on."""
    tree = ast.parse((PACKAGE / "models" / "otseg.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.body = [x for x in node.body if getattr(x, "name", "") != "__post_init__"]
            if node.name == "OTSegConfig":
                own = set(attribute_paths(node))
    return own | {path for path in attribute_paths(tree) if path.startswith("config.")}


def unread(names, paths):
    """Fields that nothing reads by their full path."""
    for name in names:
        group, _, leaf = name.rpartition(".")
        if group.startswith("clip.random"):
            continue  # the sizes become `VisionConfig` and `TextConfig`, whose fields are required
        if group == "data.images":
            name = "data.images"
        if group == "model":
            if not {f"self.{leaf}", f"config.{leaf}"} & model_paths():
                yield name
            continue
        if "." not in name:
            name = f"settings.{name}" if f"settings.{name}" in paths else f"options.{name}"
        if name not in paths:
            yield name


def test_every_field_is_read_by_its_full_path():
    names, paths = list(leaves(shapes.get_config())), read_paths()
    assert not list(unread(names, paths))
    # the test can fail: a field of a known name in another group is not taken for read
    assert list(unread([*names, "eval.seed", "train.crop", "colour", "model.rank"], paths)) == [
        "eval.seed",
        "train.crop",
        "options.colour",
        "model.rank",
    ]


def uncommented(source):
    """Keys of the dictionaries in a source without a comment on their line or the line above."""
    lines = ["", *source.splitlines()]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if not isinstance(value, ast.Dict) and isinstance(key, ast.Constant):
                    near = lines[key.lineno - 1 : key.lineno + 1]
                    before = near[0].strip()
                    if not ("#" in near[1] or before.startswith("#")):
                        yield key.value


def test_every_field_is_commented():
    assert set(uncommented(Path(alone.__file__).read_text())) <= set(METHODS)
    source = Path(common.__file__).read_text()
    sizes = {"width", "layers", "heads", "mlp_width", "train", "val"}  # told by their group
    assert set(uncommented(source)) <= sizes
    assert list(uncommented('x = {"a": 1,  # why\n"b": 2}')) == ["b"]


def test_the_words_of_the_background_are_those_of_the_package():
    assert "background=" + "|".join(templates.BACKGROUND) == alone.BACKGROUND
