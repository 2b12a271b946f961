"""What a model is, whether its parts fit, and what it can be used for."""

from pathlib import Path

import numpy as np

from otseg_jax import config_file, paths, text
from otseg_jax.checkpoints import restore
from otseg_jax.data import shapes
from otseg_jax.data.lists import some
from otseg_jax.doctor import layout
from otseg_jax.doctor.findings import Finding
from otseg_jax.predict import Segmenter, load
from otseg_jax.predict.__main__ import BETTER
from otseg_jax.predict.loading import SHIPPED, SHIPPED_AT
from otseg_jax.weights import hub

WORDS = ["cat", "grass", "sky"]


def look(source: str) -> list[Finding]:
    """Load a model as `otseg_jax.load` does, and let it segment a small picture."""
    with layout.heard() as said:
        segmenter = load(source)
        found = [Finding("ok", line) for line in _about(source, segmenter)]
        found += [_words(source, segmenter), _tried(segmenter)]
    uses = [Finding("note", f"it serves to {use}", line) for use, line in _uses(source, segmenter)]
    return [*found, *said, *uses]


def _about(source: str, segmenter: Segmenter) -> list[str]:
    spec, clip = segmenter.spec, segmenter.clip
    lines = [f"{source}{_on_disk(source)}: {segmenter!r}"]
    outputs = ", ".join(spec.outputs.mixtures)
    lines.append(
        f"outputs {outputs}; tower of CLIP {clip.size} at {clip.vision_config.image_size} pixels, "
        f"from {spec.clip_source}, fingerprint {spec.clip_fingerprint[:12]}"
    )
    if spec.classes:
        unseen = some([spec.classes[k] for k in spec.unseen]) or "none"
        lines.append(
            f"trained {spec.regime} on {spec.dataset}, {len(spec.classes)} classes: "
            f"{some(spec.classes)}; unseen: {unseen}; {len(spec.templates)} templates"
        )
    scale = " x ".join(f"{side:g}" for side in spec.scale)
    mean, std = (", ".join(f"{value:.5g}" for value in part) for part in (spec.mean, spec.std))
    lines.append(
        f"photos within {scale} pixels, windows of {spec.window} every {spec.stride}; mean {mean}; "
        f"std {std}"
    )
    return lines


def _on_disk(source: str) -> str:
    place = paths.local(source)
    if not place.exists():
        return ""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return f" ({sum(file.stat().st_size for file in files) / 2**20:,.1f} MiB on disk)"


def _words(source: str, segmenter: Segmenter) -> Finding:
    """Whether other words than its own can be asked."""
    spec, clip = segmenter.spec, segmenter.clip
    if clip.text_config is None:
        return Finding("note", "it holds no text tower: only its own classes can be asked for")
    try:
        clip.tokenise(WORDS)
    except (ValueError, OSError) as error:
        rows = clip.text_config.vocab_size
        packaged = text.vocabulary_size(hub.find(hub.BUILT_IN, ()))
        tokenizer = hub.BUILT_IN if rows == packaged else BETTER
        dest = f"{source.rstrip('/').removesuffix('.pt')}_with_tokenizer"
        mend = f"python -m otseg_jax.convert {source} {dest} --tokenizer={tokenizer}"
        return Finding("warning", f"only its own classes can be asked for: {error}", mend)
    if spec.tokenizer_fingerprint not in ("", clip.tokenizer_fingerprint):
        return Finding("error", f"{clip.tokenizer} is not the tokenizer it was trained with")
    return Finding("ok", f"tokenizer fits, fingerprint {clip.tokenizer_fingerprint[:12]}")


def _tried(segmenter: Segmenter) -> Finding:
    side = segmenter.clip.vision_config.patch_size * 4
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    photo = np.kron(colours, np.ones((side // 4, side // 4, 1), np.uint8))
    words = None if segmenter.spec.classes else WORDS
    scores = segmenter.scores(segmenter.prepare(photo), words)
    if not np.isfinite(scores).all():
        share = 1 - np.isfinite(scores).mean()
        what = f"{share:.0%} of the scores of a small picture are not finite"
        return Finding("error", f"{what}: the weights are damaged, fetch or train them again")
    low, high = float(scores.min()), float(scores.max())
    return Finding("ok", f"a small picture was segmented, scores {low:.3g}..{high:.3g}")


def _uses(source: str, segmenter: Segmenter) -> list[tuple[str, str]]:
    """What it can be used for, and the command."""
    spec, main = segmenter.spec, "python -m otseg_jax.main"
    predict = f"python -m otseg_jax.predict PHOTO --model={source}"
    if not spec.classes:
        clip = f"--config.data.root=VOCdevkit --config.clip.source={source}"
        protocol = "--config=configs/training_free/voc21.py:naclip"
        return [
            ("segment photos", f'{predict} --words="cat,sofa|couch,grass"'),
            (
                "be evaluated untrained",
                f"{main} {protocol} {clip} --mode=eval --workdir=runs/voc21",
            ),
            ("train from", f"{main} --config=configs/voc12.py {clip} --workdir=runs/voc12"),
        ]
    place = paths.local(SHIPPED_AT if source == SHIPPED else source)
    config = _config(spec.dataset)
    named = "" if spec.dataset == config else f" --config.data.dataset={spec.dataset}"
    named += "" if spec.dataset in shapes.WORDS else " --config.data.root=DIR"
    what = f"{named}{_clip(place)} --config.init_from={place}"
    evaluated = f"{main} --config=configs/{config}.py:{spec.regime}{what} --mode=eval"
    uses = [("segment photos", predict), ("be evaluated", f"{evaluated} --workdir=runs/evaluated")]
    if spec.regime == "inductive" and spec.unseen:
        further = f"{main} --config=configs/{config}.py:transductive{what}"
        uses.append(("start a transductive run", f"{further} --workdir=runs/transductive"))
    return uses


def _config(dataset: str) -> str:
    """The name of the configuration of a data set."""
    if dataset in shapes.WORDS:
        return "shapes"
    known = config_file.CONFIGS is not None and (config_file.CONFIGS / f"{dataset}.py").is_file()
    return dataset if known else "folder"


def _clip(place: Path) -> str:
    """The flag of the CLIP that a run was trained with; a model directory holds its own."""
    run = restore.find(place).settings
    if run is None:
        return ""
    started = run.init_from if run.init_from and restore.is_model(run.init_from) else ""
    return f" --config.clip.source={started or run.clip.source}"
