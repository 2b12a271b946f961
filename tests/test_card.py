"""The card of a published model: figures of the run, a command that gives them again, a picture."""

import json
import shutil

import hub_server
import pytest
import small
from huggingface_hub import ModelCard
from messages import typed

import otseg_jax
from otseg_jax.convert import convert
from otseg_jax.evaluation import report
from otseg_jax.training import loop

FIELDS = {"train.steps": 2, "train.eval_every": 1, "train.eval_images": 3, "data.images.val": 5}
NAMES = {
    "miou_seen": "mIoU(S)",
    "miou_unseen": "mIoU(U)",
    "hiou": "hIoU",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, both evaluated, the first one on fewer photos."""
    workdir = tmp_path_factory.mktemp("run")
    loop.train(small.settings(**FIELDS), workdir)
    return workdir


def stated(card):
    return {result.metric_name: result.metric_value for result in card.data.eval_results}


def figures(results):
    return {
        f"{NAMES[measure]} of {output}, %": value
        for output, summary in results.items()
        for measure, value in summary.items()
        if measure in NAMES and value is not None
    }


def test_a_run_is_published_with_its_figures_and_their_command(run, tmp_path, monkeypatch):
    results = json.loads((run / report.RESULTS).read_text())
    with hub_server.at_hand(tmp_path) as server:
        told = convert(str(run), tmp_path / "shapes", upload="someone/shapes", license="apache-2.0")
        address = f"{server.address}/someone/shapes/commit/{hub_server.SHA}"
        assert told.endswith(f"published: {address}")
        files = server.repositories["someone/shapes"]
    assert files["predictions.png"] == (run / "predictions.png").read_bytes()
    assert files["README.md"] == (tmp_path / "shapes" / "README.md").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert stated(card) == pytest.approx(figures(results))
    assert {r.dataset_type for r in card.data.eval_results} == {"shapes"}
    assert {r.task_type for r in card.data.eval_results} == {"image-segmentation"}
    assert "![Photo, truth and prediction](predictions.png)" in card.text
    for summary in results.values():
        assert f"{summary['miou']:.2f}" in card.text

    # the command, typed where `hf download` has put the files
    (told,) = {r.dataset_args["command"] for r in card.data.eval_results}
    assert told in card.text
    monkeypatch.chdir(tmp_path)
    # compiled programs stay where the session keeps them
    typed(told.removeprefix("python -m ") + " --config.compile_cache=", "").act(tmp_path)
    again = json.loads((tmp_path / "shapes_eval" / report.RESULTS).read_text())
    assert again == results


def test_a_segmenter_of_a_run_or_of_what_it_became_has_them_too(run, tmp_path):
    convert(str(run), tmp_path / "model")
    want = figures(json.loads((run / report.RESULTS).read_text()))
    with hub_server.at_hand(tmp_path) as server:
        for number, place in enumerate((run, tmp_path / "model")):
            otseg_jax.load(place).push_to_hub(f"lab/{number}")
            card = ModelCard(server.repositories[f"lab/{number}"]["README.md"].decode())
            assert stated(card) == pytest.approx(want)


def test_figures_are_those_of_the_step(run, tmp_path, caplog):
    """Not of the last evaluation in the workdir, which may be of others and other settings."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["step"] == 1 and "otseg/hiou" in line)
    with hub_server.at_hand(tmp_path) as server:
        otseg_jax.load(run, checkpoint="1").push_to_hub("lab/first")
        files = server.repositories["lab/first"]
        card = ModelCard(files["README.md"].decode())
        assert stated(card)["hIoU of otseg, %"] == first["otseg/hiou"]
        assert {r.dataset_args["images"] for r in card.data.eval_results} == {3}
        assert "predictions.png" not in files

        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        report.evaluate(small.settings(**FIELDS, **{"eval.flip": True}), copy)
        flipped = json.loads((copy / report.RESULTS).read_text())
        assert flipped != json.loads((run / report.RESULTS).read_text())
        with caplog.at_level("INFO", logger="otseg_jax"):
            otseg_jax.load(copy).push_to_hub("lab/last")
        card = ModelCard(server.repositories["lab/last"]["README.md"].decode())
    assert stated(card) == pytest.approx(figures(json.loads((run / report.RESULTS).read_text())))
    assert "results.json is not of step 2: figures are those of metrics.jsonl" in caplog.text


def test_a_step_that_was_not_evaluated_states_no_figures(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    log = copy / "metrics.jsonl"
    lines = [line for line in log.read_text().splitlines() if "otseg/hiou" not in line]
    log.write_text("\n".join(lines) + "\n")
    with hub_server.at_hand(tmp_path) as server:
        otseg_jax.load(copy).push_to_hub("lab/model")
        files = server.repositories["lab/model"]
    assert ModelCard(files["README.md"].decode()).data.eval_results is None
    # nor does any file tell where the run lay
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]


def test_without_its_run_a_model_states_no_figures(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    convert(str(copy), tmp_path / "model")
    shutil.rmtree(copy)
    with hub_server.at_hand(tmp_path) as server:
        otseg_jax.load(tmp_path / "model").push_to_hub("lab/model")
        card = ModelCard(server.repositories["lab/model"]["README.md"].decode())
    assert card.data.eval_results is None
    assert "None are stated" in card.text
