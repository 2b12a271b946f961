"""Captions: true of their pictures by a check of its own, and as varied as they say."""

import numpy as np
import pytest

from experiments.shapes_clip import captions
from otseg_jax.data.classes import VOCABULARIES

VALUE_OF = {
    word: value for axis in captions.WORDS for value, words in axis.items() for word in words
}


@pytest.fixture(scope="module")
def pictures() -> captions.Pictures:
    return captions.draw(60, most=4, image_size=64, seed=5, processes=1)


def read(text: str) -> list[set[str]]:
    """What a sentence says, read off its words: the attributes of each thing."""
    best = max(
        (t.split("{}") for t in captions.TEMPLATES),
        key=lambda t: len("".join(t)) * (text.startswith(t[0]) and text.endswith(t[1])),
    )
    inner = text.removeprefix(best[0]).removesuffix(best[1])
    parts = inner.replace(" and a ", ", a ").split(", a ")
    return [{VALUE_OF[word] for word in part.split() if word in VALUE_OF} for part in parts]


def shown(things: np.ndarray) -> list[set[str]]:
    return [set(captions.name(thing).split()) for thing in things if thing[0] != captions.ABSENT]


def test_the_first_words_are_those_of_the_classes():
    names = {captions.name(thing) for thing in captions.THINGS}
    assert len(names) == len(captions.THINGS) == 100
    assert set(VOCABULARIES["shapes"].names) < names
    every = [word for axis in captions.WORDS for words in axis.values() for word in words]
    assert len(set(every)) == len(every)
    for vocabulary in ("shapes_synonyms", "shapes_colours"):
        used = {word for name in VOCABULARIES[vocabulary].names for word in name.split()}
        assert used <= {*every, *captions.NOUNS}


def test_pictures_depend_on_seed_and_index_alone(pictures):
    again = captions.draw(60, most=4, image_size=64, seed=5, processes=2)
    np.testing.assert_array_equal(again.images, pictures.images)
    np.testing.assert_array_equal(again.things, pictures.things)
    other = captions.draw(60, most=4, image_size=64, seed=6, processes=1)
    assert not {x.tobytes() for x in other.images} & {x.tobytes() for x in pictures.images}
    counts = (pictures.things[..., 0] != captions.ABSENT).sum(1)
    assert set(counts) == {1, 2, 3, 4}


def test_a_caption_is_true_of_its_picture(pictures):
    rng = np.random.default_rng(0)
    for things in pictures.things:
        for _ in range(5):
            caption = captions.describe(rng, things)
            for said in read(caption.text):
                assert any(said <= attributes for attributes in shown(things)), caption.text


def test_truth_is_what_the_words_say(pictures):
    rng = np.random.default_rng(1)
    made = [captions.describe(rng, things) for things in pictures.things]
    found = captions.is_true(pictures.things, np.stack([caption.said for caption in made]))
    expected = np.array(
        [
            [all(any(s <= t for t in shown(things)) for s in read(c.text)) for c in made]
            for things in pictures.things
        ]
    )
    np.testing.assert_array_equal(found, expected)
    assert found.diagonal().all()
    assert 60 < found.sum() < 600


def test_a_plain_statement_names_everything(pictures):
    for things in pictures.things:
        caption = captions.state(things)
        assert caption.text.startswith("a photo of a ")
        assert sorted(map(sorted, read(caption.text))) == sorted(map(sorted, shown(things)))


def test_captions_vary():
    disc = np.full((4, 3), captions.ABSENT, np.int8)
    disc[0] = (1, 0, 0)
    rng = np.random.default_rng(0)
    texts = {captions.describe(rng, disc).text for _ in range(2000)}
    assert len(texts) > 300
    words = {word.strip(".") for text in texts for word in text.split()}
    assert words > {"striped", "stripy", "lined", "red", "scarlet", "disc", "circle", "thing"}
