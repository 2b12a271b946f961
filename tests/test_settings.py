"""Settings: every field is checked in type, length, order and range, all problems at once."""

import copy
import json
import math
from dataclasses import MISSING, asdict, fields, is_dataclass

import pytest
import small

from otseg_jax import cli, settings

GOOD = asdict(small.settings())
LEAVES = settings.leaves(small.settings())


def changed(fields):
    """Plain fields with some set by dotted name."""
    plain = copy.deepcopy(GOOD)
    for name, value in fields.items():
        *groups, leaf = name.split(".")
        node = plain
        for group in groups:
            node = node[group]
        node[leaf] = value
    return plain


def refusal(fields):
    with pytest.raises(ValueError, match=r"^config: ") as error:
        settings.check(changed(fields))
    assert cli.is_ours(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_stored_as_json_comes_back():
    assert settings.check(json.loads(json.dumps(GOOD))) == small.settings()


# as JSON has it: by the regime, none, CLIP's own templates, and the names of classes
MAY_BE = {"eval.seen_offset": None, "eval.threshold": None, "text.templates": [], "text.words": []}


@pytest.mark.parametrize("name", LEAVES)
def test_no_field_takes_another_type(name):
    """A switch for a number, a list for a word, and the like; nor what is not finite."""
    for other in (True, 1.5, "word", [], {}, None, math.nan, -math.inf):
        fits = type(other) is type(LEAVES[name]) and other not in (math.nan, -math.inf)
        if not fits and other != MAY_BE.get(name, ...):
            assert name in refusal({name: other}), other


NUMBERS = [name for name, value in LEAVES.items() if type(value) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_lower_and_an_upper_bound(name):
    kind = type(LEAVES[name])
    assert name in refusal({name: kind(-100)})
    assert name in refusal({name: kind(10**10)})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model.epsilon": 1e-7}, "0.0001"),
        ({"data.scale": (32, 64)}, "(long, short)"),
        ({"data.scale": (64, 32, 32)}, "wanted 2 values with commas between them, got 3"),
        ({"data.ratio": (2.0, 1.0)}, "(low, high)"),
        ({"data.max_class_fraction": 0.0}, "greater than 0"),
        ({"data.mean": (0.48, 0.46, 0.41), "data.std": (0.27, 0.26, 0.28)}, "255 times"),
        ({"data.std": (58.0, 0.0, 57.0)}, "data.std.1"),
        (
            {"data.scale": (512,)},
            "data.scale=(512,): wanted 2 values with commas between them, got 1",
        ),
        ({"data.images": {"train": 3}}, "data.images.val is missing"),
        ({"mesh.data": 0}, "-1"),
        ({"text.templates": ("a {}.",) * 1001}, "at most 1000"),
        ({"text.words": ("sofa",)}, "text.words.0='sofa': wanted CLASS=WORD, or CLASS=WORD|WORD"),
        ({"text.words": ("sofa=couch|",)}, "text.words.0"),
        ({"text.words": ("sofa=couch",)}, "only a CLIP alone is asked by other words"),
        ({"data.crop": 0}, "only a CLIP alone takes whole photos"),
        ({"text.templates": ("a {}.", "{} and {}")}, "templates.1"),
        ({"text.templates": ("a {name} {}",)}, "templates.0"),
        ({"clip.random.text.heads": 3}, "clip.random.text.width=16 is not a multiple"),
        ({"train.focal_weight": 0.0, "train.dice_weight": 0.0}, "nothing would be learned"),
        ({"train.end_learning_rate": 1.0}, "above train.learning_rate"),
        ({"eval.checkpoint": "Best"}, "latest, best, half"),
        ({"log": "tensorbord"}, "log='tensorbord': wanted '', 'tensorboard', 'wandb', 'tensor"),
        ({"train.speed": 1}, "train.speed=1: there is no such field"),
        ({"model.rank": 1}, "model.rank=1: there is no such field"),
    ],
    ids=str,
)
def test_form_order_and_fit(fields, told):
    assert told in refusal(fields)


def test_all_problems_in_one_message():
    told = refusal(
        {"seed": -1, "train.accumulate": 3, "eval.mps_weight": 2.0, "data.root": "ftp://x"}
    )
    for part in ("seed=-1", "not a multiple of train.accumulate=3", "eval.mps_weight", "ftp://"):
        assert part in told


def test_a_warmup_longer_than_the_run_is_told(caplog):
    small.settings(**{"train.warmup": 5})
    assert "train.warmup=5 is longer than train.steps=4" in caplog.text


def test_settings_of_before_a_field_was_there_are_read():
    """What has a default may be missing in a checkpoint."""
    whole = asdict(small.settings())

    def without(group, kind):
        for field in fields(kind):
            if field.default is not MISSING:
                group.pop(field.name)
            elif is_dataclass(field.type):
                without(group[field.name], field.type)

    without(whole, settings.Settings)
    assert "compile_cache" not in whole
    assert "threshold" not in whole["eval"]
    settings.check(whole)
