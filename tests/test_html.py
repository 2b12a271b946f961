"""The report: what it says is what was counted, whoever named the photos, and which it shows."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from otseg_jax.data.classes import IGNORE, Vocabulary
from otseg_jax.evaluation import html, metrics, offsets
from otseg_jax.evaluation.about import About
from otseg_jax.evaluation.gallery import EACH, Gallery
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Best
from otseg_jax.models.otseg import OTSegConfig

HOSTILE = "<script>alert(1)</script>"
VOCABULARY = Vocabulary(("cat", HOSTILE, "sky & sea", "tree"), unseen=(1,))
ABOUT = About({"Command": "python -m x --y=z", "Data": "pets", "Date": "today"}, {"seed": 0})


def example(number, *, right, side=40):
    """A photo, its label, and a prediction of which so much is right."""
    rng = np.random.default_rng(number)
    label = rng.integers(0, 4, (side, side)).astype(np.int16)
    wrong = rng.permutation(side * side).reshape(side, side) >= right * side * side
    prediction = np.where(wrong, (label + 1) % 4, label).astype(np.int32)
    label[0] = IGNORE
    image = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    return {"name": f"photo {number}", "image": image, "label": label}, prediction


def written(path, *, unswept="for a reason", vocabulary=VOCABULARY):
    """A report of three photos without a curve, and what was counted."""
    tally, gallery = Tally(vocabulary, ["one", "two"]), Gallery(3)
    for number, right in enumerate((0.9, 0.2, 0.5)):
        photo, prediction = example(number, right=right)
        photo["name"] = HOSTILE + "\udce9.png"  # a file name that is no text
        tally.name(photo["name"])
        maps = {"one": prediction, "two": prediction * 0}
        best = {method: Best(None, labels, None, None) for method, labels in maps.items()}
        tally.add(number, photo["label"], tally.count(photo["label"], best))
        gallery.see(number, photo, prediction)
    found = tally.finished(dataset="pets", main="one", unswept=unswept)
    html.write(path, found, gallery.chosen(), vocabulary, ABOUT)
    return found, path.read_text()


def test_the_page_says_what_was_counted(tmp_path):
    found, page = written(tmp_path / "report.html")
    assert "script>" not in page.replace("&lt;script&gt;", "").replace("&lt;/script&gt;", "")
    plain = re.sub(r"<[^>]+>", " ", page)
    for key, label in metrics.ROWS.items():
        values = [rf"{found.results[m][key]:.1f}" for m in ("one", "two")]
        assert re.search(rf"{re.escape(label)}\s+{values[0]}\s+{values[1]}\s", plain), key
    assert "No curve. for a reason" in plain
    assert "sky &amp; sea" in plain
    counts = found.confusions.total("one")
    np.fill_diagonal(counts, 0)
    assert f"{counts.max():,}" in plain


def test_pictures_are_whole_and_small(tmp_path):
    _, page = written(tmp_path / "report.html")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 3 * 4
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
            assert opened.size == (240, 240)  # 40 pixels, enlarged
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_without_unseen_classes_there_are_no_halves(tmp_path):
    _, page = written(tmp_path / "report.html", vocabulary=Vocabulary(VOCABULARY.names))
    assert "mIoU(S)" not in page
    assert "unseen classes" not in page
    assert "pAcc" in page


def test_the_gallery_shows_the_best_the_middle_and_the_worst():
    rng = np.random.default_rng(0)
    shares = rng.permutation(np.linspace(0.0, 1.0, 100))
    gallery = Gallery(100)
    for number, right in enumerate(shares):
        gallery.see(number, *example(number, right=right, side=20))
    chosen = gallery.chosen()
    assert list(chosen) == ["best", "median", "worst"]
    order = [f"photo {number}" for number in np.argsort(shares)]
    assert {shot.name for shot in chosen["best"]} == set(order[-EACH:])
    assert {shot.name for shot in chosen["worst"]} == set(order[:EACH])
    assert all(abs(shot.right - 0.5) < 0.15 for shot in chosen["median"])
    for kind, sign in (("best", -1), ("worst", 1)):
        found = [sign * shot.right for shot in chosen[kind]]
        assert found == sorted(found)
    names = [shot.name for shots in chosen.values() for shot in shots]
    assert len(set(names)) == len(names) == 3 * EACH


def test_large_photos_are_kept_small_and_few_are_shown_once():
    gallery = Gallery(2)
    for number in range(2):
        gallery.see(number, *example(number, right=0.5, side=1000))
    nothing = {"name": "nothing", "label": np.full((4, 4), IGNORE), "image": None}
    gallery.see(2, nothing, np.zeros((4, 4), np.int32))
    assert {kind: len(shots) for kind, shots in gallery.chosen().items()} == {"best": 2}
    assert gallery.chosen()["best"][0].photo.shape == (480, 480, 3)
    assert gallery.chosen()["best"][0].truth.shape == (480, 480)
    assert Gallery(3).chosen() == {}


@pytest.mark.parametrize(
    ("labelled", "fields", "reason"),
    [
        ([True, True], {}, "Every class was trained with labels"),
        ([False, False], {}, "None of these classes was trained with labels"),
        ([True, False], {"threshold": 0.3}, "With eval.threshold"),
        ([True, False], {}, "^$"),
    ],
)
def test_why_there_is_no_curve(labelled, fields, reason):
    how = Inference(
        method=OTSegConfig(),
        patch=8,
        window=32,
        stride=24,
        batch_size=4,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        **fields,
    )
    assert re.match(reason, offsets.reason_against(how, np.array(labelled)))
