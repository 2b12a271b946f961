"""Charts of a run and of an evaluation: as they were logged, and whole in a page."""

import json

import numpy as np
import pytest

from otseg_jax.data import decode
from otseg_jax.evaluation import charts


def _write_log(path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _run(steps, scale=1.0) -> list[dict]:
    return [
        {"step": t, "loss": scale * 3 / (1 + t), "learning_rate": 1e-4, "otseg+/hiou": scale * t}
        for t in steps
    ]


def test_curves_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path):
    _write_log(tmp_path / "whole.jsonl", _run(range(30)))
    _write_log(tmp_path / "resumed.jsonl", _run(range(15)) + _run(range(15, 22), scale=2.0))
    with (tmp_path / "resumed.jsonl").open("a") as log:
        log.write('{"step": 22, "loss": 1.\n')
        log.writelines(json.dumps(record) + "\n" for record in _run(range(15, 30)))
        log.write('{"step": 30, "lo')
    for name in ("whole", "resumed"):
        charts.curves(tmp_path / f"{name}.png", tmp_path / f"{name}.jsonl")
    np.testing.assert_array_equal(
        decode.photo(tmp_path / "whole.png"), decode.photo(tmp_path / "resumed.png")
    )


def test_curves_draw_one_chart_for_each_kind_of_scalar(tmp_path):
    _write_log(tmp_path / "metrics.jsonl", _run(range(5)))
    charts.curves(tmp_path / "three.png", tmp_path / "metrics.jsonl")
    records = [{"step": t, "miou_seen": 50.0, "miou_unseen": None, "note": "x"} for t in range(5)]
    _write_log(tmp_path / "metrics.jsonl", records)
    charts.curves(tmp_path / "one.png", tmp_path / "metrics.jsonl")
    three, one = decode.photo(tmp_path / "three.png"), decode.photo(tmp_path / "one.png")
    assert three.shape[1] == 3 * one.shape[1]
    line = (0x35, 0x63, 0xB8)
    assert all((chart == line).all(-1).sum() > 300 for chart in (one, *np.split(three, 3, axis=1)))


def test_a_log_that_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl: no such log"):
        charts.curves(tmp_path / "curves.png", tmp_path / "absent.jsonl")
    _write_log(tmp_path / "metrics.jsonl", [{"step": 1, "images_per_second": 9.0}])
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl: nothing in it can be drawn; wanted a name .*hiou"
    ):
        charts.curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")
