"""A drawn set of 20,000 photos as records: made, killed, resumed and read (benchmark_records.json).

    python -m experiments.benchmark_records --place=/tmp/records    # half an hour, 13 GB of disk

Photos are drawn shapes under noise, JPEGs of 640 x 480 pixels and about 200 kB, with their masks.
`python -m otseg_jax.prepare` runs on all cores, is killed (-9) about half way, and goes on. Then
batches of 16 crops of 512 pixels are read from the files and from the records, in turns, by as many
threads as there are cores, with everything in the cache of the system.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from configs import folder
from experiments.benchmark_input import rates
from experiments.cost import machine
from otseg_jax import build
from otseg_jax.data.shapes import SHAPES, Shapes

RESULT = Path(__file__).with_suffix(".json")
SIZE = (640, 480)  # pixels, width and height


def draw(root: Path, i: int) -> None:
    """Write photo i and its mask."""
    cv2.setNumThreads(0)
    example, rng = Shapes("train", size=20_000)[i], np.random.default_rng(i)
    label = np.where(example["label"] < 0, 255, example["label"]).astype(np.uint8)
    photo = cv2.resize(example["image"], SIZE).astype(np.int16)
    photo = np.clip(photo + rng.integers(-30, 31, photo.shape, np.int16), 0, 255)
    name = f"train/{i:05}"
    cv2.imwrite(str(root / f"images/{name}.jpg"), photo[..., ::-1].astype(np.uint8))
    mask = cv2.resize(label, SIZE, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(root / f"labels/{name}.png"), mask)


def draw_all(root: Path, photos: int) -> None:
    """Write what is missing of a data set of that many photos."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True, exist_ok=True)
    unseen = set(SHAPES.unseen)
    lines = [f"{n},{'unseen' if k in unseen else 'seen'}" for k, n in enumerate(SHAPES.names)]
    (root / "classes.csv").write_text("\n".join(["name,split", *lines]) + "\n")
    missing = [i for i in range(photos) if not (root / f"labels/train/{i:05}.png").exists()]
    with ProcessPoolExecutor() as pool:
        done = pool.map(partial(draw, root), missing, chunksize=50)
        list(tqdm(done, "Drawn", len(missing), unit="photo", leave=False))


def prepare(root: Path, output: Path, *, kill_after: int = 0) -> tuple[float, str]:
    """Run the command, to its end or until there are so many shards; seconds, and its last line."""
    command = [sys.executable, "-m", "otseg_jax.prepare", "folder", f"--root={root}"]
    command += [f"--output={output}", "--splits=train"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while kill_after and len(list(output.glob("folder/1.0.0/folder-*"))) < kill_after:
            time.sleep(0.05)
        if kill_after:
            process.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
    return time.perf_counter() - began, said.strip()


def size(root: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def read(roots: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Images a second in training, in turns; quartiles."""
    runs = {}
    for name, root in roots.items():
        config = folder.get_config()
        config.data.root, config.data.threads = str(root), os.cpu_count() or 1
        options = build.settings_of(config)
        runs[name] = rates(options, build.open_split(options, "train"), rounds)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds), unit="round", leave=False):
        for name, run in runs.items():
            found[name].append(next(run))
    return {
        k: [round(float(q), 1) for q in np.quantile(v, [0.25, 0.5, 0.75])] for k, v in found.items()
    }


def main() -> None:
    """Draw, prepare, read; print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, required=True, help="folder with room for 13 GB")
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5, help="of 20 batches")
    chosen = parser.parse_args()
    root, output = chosen.place / "files", chosen.place / "records"
    draw_all(root, chosen.photos)
    again = chosen.place / "killed"
    for place in (output, again):
        shutil.rmtree(place, ignore_errors=True)
    whole, _ = prepare(root, output)
    shards = len(list(output.glob("folder/1.0.0/folder-*")))
    killed, _ = prepare(root, again, kill_after=shards // 2)
    kept = len(list(again.glob("folder/1.0.0/folder-*")))
    rest, said = prepare(root, again)
    record: dict[str, Any] = {
        "machine": machine(),
        "photos": chosen.photos,
        "bytes": {"files": size(root), "records": size(output)},
        "shards": shards,
        "prepare": {
            "seconds": round(whole, 1),
            "photos_per_second": round(chosen.photos / whole, 1),
        },
        "killed": {
            "seconds": round(killed, 1),
            "shards_kept": kept,
            "seconds_of_the_rest": round(rest, 1),
        },
        "said": said.replace(str(chosen.place), ""),
        "images_per_second": read({"files": root, "records": output}, chosen.rounds),
    }
    print(json.dumps(record, indent=1))
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
