"""Words as people give them, and what a background adds."""

import numpy as np

from otseg_jax.data import templates
from otseg_jax.predict import asked
from otseg_jax.predict.kept import Kept


def test_words_of_one_class_share_its_number():
    classes = asked.check_words(np.array(["sofa|couch", " cat ", "grass"]))
    assert classes == (("sofa", "couch"), ("cat",), ("grass",))
    question = asked.with_background(classes, None, threshold=0.1)
    assert question.words == ("sofa", "couch", "cat", "grass")
    assert question.class_of.tolist() == [0, 0, 1, 2]
    assert question.names == ("sofa", "cat", "grass")


def test_backgrounds():
    classes = (("Sky", "heaven"), ("cat",))
    usual = asked.with_background(classes, "words", threshold=0.1)
    assert usual.names == ("background", "Sky", "cat")
    assert "sky" not in usual.classes[0], "it is asked for"
    assert len(usual.classes[0]) == len(templates.BACKGROUND) - 1 == 25
    assert usual.threshold is None
    own = asked.with_background(classes, iter(["table", "plate|dish"]), threshold=0.1)
    assert own.classes[0] == ("table", "plate", "dish")
    assert own.class_of.tolist() == [0, 0, 0, 1, 1, 2]
    for given, least in (("threshold", 0.1), (0.7, 0.7), (np.float64(0.5), 0.5), (1.0, 1.0)):
        unsure = asked.with_background(classes, given, threshold=0.1)
        assert unsure.classes[0] == ()
        assert unsure.threshold == least
        assert unsure.class_of.tolist() == [1, 1, 2]


def test_the_latest_are_kept():
    kept: Kept[int, int] = Kept(3)
    made = []

    def squares(keys):
        made.append(keys)
        return [key * key for key in keys]

    assert kept.get([1, 2, 1], squares) == [1, 4, 1]
    assert kept.get([2, 3], squares) == [4, 9]
    assert kept.get([4, 1], squares) == [16, 1]
    assert kept.get([5, 6, 7, 8], squares) == [25, 36, 49, 64], "more than are kept"
    assert kept.get([8, 5], squares) == [64, 25]
    assert made == [[1, 2], [3], [4], [5, 6, 7, 8], [5]]
