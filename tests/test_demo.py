"""The page: what it computes, in a real browser, and what strangers may send to it."""

import html
import json
import re
import threading
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import missing

from experiments import demo as browser
from experiments.hostile import hostile, picture, png
from experiments.load_demo import METHOD, Visitor, at
from otseg_jax.data.shapes import Shapes
from otseg_jax.demo import answers, pictures
from otseg_jax.demo.answers import EVERY, LEAST, Answers, Question
from otseg_jax.predict import Segmentation
from otseg_jax.predict.loading import SHIPPED_AT
from otseg_jax.predict.transport import Plan

PHOTO = Shapes("val", size=20)[1]["image"]
WORDS = "plain purple cross, plain yellow square, striped red square, checked blue square"


def found(names=("background", "cat", "sky"), background=True) -> Segmentation:
    """An answer made by hand: a fifth is background, the rest is cat."""
    labels = np.ones((10, 10), np.int32)
    labels[:2] = 0
    return Segmentation(
        photo=np.full((10, 10, 3), 100, np.uint8),
        labels=labels,
        names=names,
        palette=((0, 0, 0), (200, 0, 100), (0, 0, 255)),
        words=((), ("cat",), ("sky",)),
        background=background,
        seconds=0.1,
        made_by="hand",
        source="",
        make_scores=lambda size, classes: np.zeros(0),
    )


def test_photos_become_small_whatever_their_shape():
    for size, want in {
        (30_000, 30): (1, 1024),
        (30, 30_000): (1024, 1),
        (4000, 3000): (768, 1024),
        (1, 1): (1, 1),
        (1024, 5): (5, 1024),
    }.items():
        assert answers.decode_photo(picture("RGB", size, "PNG")).shape == (*want, 3)
    assert answers.decode_photo(picture("CMYK", (40, 30), "JPEG")).shape == (30, 40, 3)
    np.testing.assert_array_equal(answers.decode_photo(png(PHOTO)), PHOTO)


def test_the_overlay_leaves_out_what_is_switched_off():
    answer = found()
    factor = pictures.enlargement(answer)
    assert factor == 77
    for hidden, want in ((frozenset(), (150, 50, 100)), (frozenset({1}), (100, 100, 100))):
        shown = np.array(pictures.overlay(answer, hidden=hidden, opacity=0.5, at=None))
        assert shown.shape == (770, 770, 3)
        assert (shown[: 2 * factor] == 100).all()  # a background keeps the photo
        assert (shown[2 * factor :] == want).all()
    ringed = np.array(pictures.overlay(answer, hidden=frozenset(), opacity=0.0, at=(5, 5)))
    rows, columns = np.nonzero((ringed != 100).any(-1))
    middle = 5.5 * factor
    assert abs(rows.mean() - middle) < 1
    assert abs(columns.mean() - middle) < 1


def test_the_legend_has_a_switch_for_each_class_that_is_there():
    legend = pictures.legend(found(), hidden=frozenset({1}))
    assert re.findall(r'data-pick="(\d+)" aria-pressed="(\w+)"', legend) == [("1", "false")]
    assert re.findall(r"<span>(.*?)</span><b>(.*?)</b>", legend) == [
        ("cat", "80.0 %"),
        ("background", "20.0 %"),
    ]


@pytest.mark.parametrize("word", ["<img src=x onerror=alert(1)>", "${1+1}", "{{value}}", "\"'`\\"])
def test_words_are_text_in_the_legend(word):
    legend = pictures.legend(found(("a", word, "b"), background=False), hidden=frozenset())
    said = re.search(r'data-pick="1".*?<span>(.*?)</span>', legend)[1]
    assert not set(said) & set("<>{}$`\"'\\")
    assert html.unescape(said) == word


@cache
def shipped() -> Answers:
    return Answers("shapes")


def ask(photo=None, words=WORDS, background=None, method=METHOD) -> Question:
    return Question(photo or png(PHOTO), words, background, method)


def test_an_answer_is_that_of_the_model_and_is_kept():
    asked = shipped()
    got = asked.ask(ask())
    want = asked.first(PHOTO, answers.read_words(WORDS))
    np.testing.assert_array_equal(got.labels, want.labels)
    assert asked.ask(ask()) is got
    assert asked.find(ask().key) is got
    assert asked.ask(ask(method="otseg, trained")).made_by.startswith("otseg,")
    assert asked.first.method == "otseg_plus"
    plan = asked.plan(ask().key, METHOD, (70, 40))
    assert asked.plan(ask().key, METHOD, (70, 40)) is plan
    listed = pictures.listed(got, plan, (70, 40))
    assert plan.words[listed[0]] == got.names[got.labels[70, 40]] == "checked blue square"
    assert len(listed) == 4
    bars = pictures.bars(got, plan, listed, (listed[0], 0))
    shares = [float(b) / 100 for b in re.findall(r"<b>([\d.]+) %</b>", bars)]
    np.testing.assert_allclose(shares, -np.sort(-plan.shares[listed], axis=1).ravel(), atol=1e-4)
    assert bars.count('aria-pressed="true"') == 1
    shown, points = pictures.prompt_map(got, plan, listed[0], 0, (70, 40))
    assert shown.size == (768, 768)
    assert [bars.count(kind) for kind in ("<details open>", "<details >", "</details>")] == [
        2,
        3,
        5,
    ]
    assert points == pytest.approx(abs(plan.map(listed[0], 0) - 1 / 6).max())


def test_no_more_answers_are_kept_than_fit():
    asked = shipped()
    keys = [ask(background=0.4 + i / 100) for i in range(answers.KEPT + 1)]
    asked.ask(keys[0])
    for question in keys[1:]:
        asked.ask(question)
    with pytest.raises(ValueError, match="no longer kept: press Segment again"):
        asked.find(keys[0].key)
    assert asked.find(keys[1].key).names[:2] == ("background", "plain purple cross")
    with pytest.raises(ValueError, match="method 'x': choose one of otseg_plus, trained"):
        asked.ask(ask(method="x"))


def test_a_question_that_takes_too_long_gets_a_sentence_and_its_answer_later(monkeypatch):
    asked, gate = shipped(), threading.Event()
    slow, begun = asked.methods["otseg, trained"], []

    def method():
        begun.append(gate.wait(30))
        return slow()

    monkeypatch.setitem(asked.methods, "otseg, trained", method)
    monkeypatch.setattr(answers, "MOST_SECONDS", 0.2)
    question = ask(words="plain red disc, sky", method="otseg, trained")
    with pytest.raises(ValueError, match="takes longer than 0 s and goes on"):
        asked.ask(question)
    # what waits behind it is given up, so that nothing piles up
    for words in ("sky", "grass"):
        with pytest.raises(ValueError, match="others came first, and 0 s were not enough"):
            asked.ask(ask(words=words, method="otseg, trained"))
    gate.set()
    monkeypatch.setattr(answers, "MOST_SECONDS", 60)
    assert asked.ask(question).names == ("plain red disc", "sky")
    assert len(begun) == 1
    assert asked.ask(ask(words="sky", method="otseg, trained")).names == ("sky",)


def test_models_that_are_given_by_a_path_or_are_a_clip_alone():
    trained = Answers(str(SHIPPED_AT))
    assert list(trained.methods) == ["otseg_plus, trained", "otseg, trained"]
    got = trained.ask(ask(words=""))
    np.testing.assert_array_equal(got.labels, trained.first(PHOTO).labels)
    assert got.names == trained.words
    assert trained.plan(ask(words="").key, "otseg, trained", (70, 40)).weight == 0
    assert trained.plan(ask(words="").key, METHOD, (70, 40)).weight == 0.5
    clip = Answers("shapes-clip")
    assert not clip.words
    naclip = "naclip, nothing trained"
    assert next(iter(clip.methods)) == naclip
    assert clip.ask(ask(method=naclip)).made_by.startswith("naclip")
    with pytest.raises(ValueError, match="no transport plan: it compares pixels with the mean"):
        clip.plan(ask(method=naclip).key, naclip, (0, 0))
    with pytest.raises(ValueError, match="give some words, for example: cat"):
        clip.ask(ask(words=" , ", method=naclip))


def test_words_of_a_pixels_class_come_first_whichever_is_named():
    score = np.array([0.9, 0.1, 0.5, 0.3])[:, None, None]
    plan = Plan(
        words=("cat", "couch", "sofa", "sky"),
        templates=("a {}.",),
        plan=np.ones((4, 1, 1, 1)),
        alignment=score,
        weight=0.5,
        at=(0, 0),
        box=(0.0, 0.0, 10.0, 10.0),
    )
    names = {"names": ("cat", "couch", "sky"), "words": (("cat",), ("couch", "sofa"), ("sky",))}
    answer = replace(found(background=False), **names)
    assert pictures.listed(answer, plan, (5, 5)) == [2, 1, 0, 3]  # couch|sofa
    assert pictures.listed(answer, plan, (0, 0)) == [0, 2, 3, 1]  # cat


@pytest.fixture(scope="module")
def server():
    """The command, serving: the page's address, and its process."""
    if find_spec("gradio") is None:
        missing("Gradio (pip install 'otseg_jax[demo]')")
    with browser.served() as (address, process):
        yield address.rstrip("/"), process


@pytest.fixture
def visitor(server):
    """Somebody with a program of their own."""
    with Visitor(server[0]) as visitor:
        yield visitor


def test_every_hostile_upload_gets_an_answer_or_a_sentence(server, visitor):
    for name, (data, sentence) in hostile().items():
        event, said = visitor.give(data, name, words=WORDS)
        if sentence is None:
            assert event == "complete" or "photo" in said, name
        elif sentence:
            assert (event, sentence in json.loads(said)["error"]) == ("error", True), (name, said)
        else:
            assert event == "complete", (name, said)
            assert re.search(f"<span>({WORDS.replace(', ', '|')})</span>", json.loads(said)[1]), (
                name
            )
    too_long = visitor.upload(b"\0" * 20_500_000)
    assert too_long.status_code == 413
    assert server[1].poll() is None
    event, said = visitor.give(png(PHOTO), words=WORDS)
    assert event == "complete", said


def test_what_cannot_be_asked_gets_a_sentence(visitor):
    (path,) = visitor.upload(png(PHOTO)).json()
    for fields, sentence in (
        ({"words": "a," * 101}, "101 words"),
        ({"words": "x" * 70}, "has 70 letters"),
        ({"words": "cat, cat"}, "repeats"),
        ({"words": "<b>cat</b>, cat"}, ""),
        ({"mode": LEAST, "least": 7}, ""),
        ({"method": "rm -rf"}, ""),
        ({"mode": "none"}, ""),
    ):
        event, said = visitor.segment(at(path), **fields)
        if sentence:
            assert sentence in json.loads(said)["error"], fields
        assert "Traceback" not in said
        if fields.keys() & {"mode", "method"}:
            assert event == "error", fields
    body = visitor.http.post("/call/segment", content=b"[" * 1_000_001)
    assert body.status_code == 413


def test_clicks_that_no_browser_makes(server, visitor):
    known = visitor.http.get(f"{server[0]}/config").json()["dependencies"]
    assert len(known) > 10
    (path,) = visitor.upload(png(PHOTO)).json()
    number = {each["api_name"]: i for i, each in enumerate(known)}
    everything = [at(path), WORDS, EVERY, "", 0.2, METHOD, 0.6]
    given = {"switch": [None, 0.6], "click": [None, 0.6], "prompt": [None], "segment": everything}
    assert visitor.click(number["segment"], everything)["success"]
    events = {"pick": "7,x"}, {"pick": "-1"}, {"index": [9e9, -3], "value": None}, {}, None
    refused = 0
    for name, data in given.items():
        for event in events:
            done = json.dumps(visitor.click(number[name], data, event))
            assert "Traceback" not in done
            assert "fault of this page" not in done
            refused += "did not understand that click" in done
    assert refused >= 5
    assert visitor.click(number["click"], [None, 0.6], {"index": [5, 5], "value": 0})["success"]
    assert "did not understand" in str(visitor.click(number["prompt"], [None], {"pick": "7"}))
    assert visitor.click(number["switch"], [None, 0.6], {"pick": "2"})["success"]
    assert server[1].poll() is None


def test_no_file_of_the_server_is_readable(server, visitor, tmp_path):
    address, _ = server
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(PHOTO))
    here = Path("pyproject.toml").resolve()
    for path in ("/etc/passwd", str(here), "pyproject.toml", str(secret), "/proc/self/environ"):
        for url in (f"/file={path}", f"/file/{path}", f"/stream/{path}", f"/proxy=file://{path}"):
            reply = visitor.http.get(url)
            assert reply.status_code >= 400, url
            assert "root:" not in reply.text
        event, said = visitor.segment(at(path))
        assert event == "error", path
        assert "root:" not in said
        event, said = visitor.segment(at(path, url=f"{address}/gradio_api/file={path}"))
        assert event == "error", path
        event, said = visitor.segment(at("x", url=path))
        assert event == "error", path
        event, said = visitor.segment(at("", url=f"file://{path}"))
        assert event == "error", path
    # what is fetched for somebody else, or never uploaded
    for given in (f"{address}/robots.txt", "http://127.0.0.1:1/a.png", "data:image/png;base64,AA"):
        assert visitor.segment(at(given))[0] == "error", given
    assert visitor.segment(at("", url=f"data:image/png;base64,{'A' * 100}"))[0] == "error"
    (uploaded,) = visitor.upload(png(PHOTO), name="../../../../tmp/x.png").json()
    folder = Path(uploaded).parent.parent
    assert folder.name.startswith("otseg_jax_demo_")
    assert visitor.segment(at(f"{folder}/../{secret.name}"))[0] == "error"
    # words and rivals are text, whatever they look like
    event, said = visitor.segment(at(uploaded), words="/etc/passwd, file:///etc/passwd")
    assert event == "complete"
    assert "root:" not in said


def test_in_a_browser(server, visitor, tab, tmp_path):
    (address, _), page = server, tab
    (tmp_path / "mine.png").write_bytes(png(Shapes("val", size=20)[5]["image"]))
    wrong = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: elsewhere.append(r.url) if not local(r.url) else None)
    elsewhere = []

    def local(url):
        return url.startswith((address, "data:", "blob:"))

    page.goto(address)
    page.wait_for_selector("#legend .entry")  # the first sample, without a click
    first = page.evaluate(LEGEND)
    page.locator("#samples button").nth(1).click()
    page.wait_for_function(f"old => {LEGEND} != old", arg=first)
    page.locator("#photo button[aria-label='Remove Image']").click()
    page.get_by_text("Give a photo").wait_for()
    page.locator("#words textarea").fill("striped red square, plain green triangle, <b>x</b>")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "mine.png")
    entries = page.locator("#legend button.entry")
    page.wait_for_function(
        "[...document.querySelectorAll('#legend .entry span')]"
        ".some(e => e.textContent == 'plain green triangle')"
    )
    page.wait_for_function("document.querySelectorAll('#legend .entry').length <= 4")
    before = picture_of(page)
    browser.click_pixel(page, 0.2, 0.4)
    note = page.locator("#bars .note").first
    assert "is striped red square" in note.inner_text()
    assert page.locator("#bars .bar").count() == 18
    assert page.locator("#bars .bar:visible").count() == 12
    shares = [float(t.split()[0]) for t in page.locator("#bars .bar b").all_text_contents()]
    assert sum(shares[:6]) == pytest.approx(100, abs=0.1)
    first = page.evaluate("document.querySelector('#where img').src")  # before the click
    page.locator("#bars .bar").nth(5).click()
    page.wait_for_function("old => document.querySelector('#where img').src != old", arg=first)
    entries.filter(has_text="striped red square").click()
    page.wait_for_selector("#legend [aria-pressed=false]")
    page.wait_for_function("old => document.querySelector('#overlay img').src != old", arg=before)
    page.locator("#save").click()
    page.wait_for_selector("#files a[download]")
    names = page.locator("#files a[download]").evaluate_all("all => all.map(a => a.href)")
    assert {Path(name).suffix for name in names} == {".png", ".jpg", ".json"}
    saved = visitor.http.get(next(name for name in names if name.endswith(".json"))).json()
    assert "plain green triangle" in saved["names"]
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    assert not wrong
    assert not elsewhere


LEGEND = "document.querySelector('#legend').innerText"


def picture_of(page) -> str:
    return page.evaluate("document.querySelector('#overlay img').src")
