"""A grid of runs on the shapes world, kept for good: what `table1.py` and `ablations.py` share.

A cell is one run of `otseg_jax.main`, in a folder whose name holds a digest of all that decides its
result: flags, configuration and the packaged CLIP. A cell whose results are there is not run again,
one that was interrupted goes on from its checkpoint, and the same cell of two scripts is run once.
Each works on one core, so that its figures do not depend on how many work side by side.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate
from tqdm import tqdm

from otseg_jax.evaluation import report
from otseg_jax.settings import Settings
from otseg_jax.weights import hub

ROOT = Path(__file__).parent.parent
CLIP = hub.find(hub.BUILT_IN, ())
MEASURES = ("miou_unseen", "miou_seen", "hiou")
HEADERS = ("mIoU(U)", "mIoU(S)", "hIoU")
RUNS = Path("runs/shapes_cells").absolute()


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        name: of its folder, before the digest.
        regime: inductive, transductive or supervised.
        flags: of `otseg_jax.main`, without --config and --workdir.
        start: the inductive cell whose half a transductive one starts from.
        program: script in place of `otseg_jax.main`, and its own flags.
    """

    name: str
    regime: str = "inductive"
    flags: tuple[str, ...] = ()
    start: "Cell | None" = None
    program: tuple[str, ...] = ("-m", "otseg_jax.main")

    def folder(self, runs: Path) -> Path:
        """Where it is run."""
        weights = hashlib.sha256((CLIP / "model.safetensors").read_bytes()).hexdigest()
        start = self.start.folder(Path()).name if self.start else ""
        configs = [(ROOT / "configs" / f"{name}.py").read_text() for name in ("common", "shapes")]
        decides = repr((self.regime, self.flags, start, self.program, weights, configs))
        return runs / f"{self.name}-{hashlib.sha256(decides.encode()).hexdigest()[:10]}"

    def command(self, runs: Path) -> list[str]:
        """The command that runs it."""
        command = [sys.executable, *self.program, f"--config=configs/shapes.py:{self.regime}"]
        if self.start:
            command.append(f"--config.init_from={self.start.folder(runs)}")
        return [*command, *self.flags, f"--workdir={self.folder(runs)}"]

    def results(self, runs: Path) -> dict[str, dict[str, Any]]:
        """Method → summary, in percent; seconds of the run under "seconds"."""
        return json.loads((self.folder(runs) / "results.json").read_text())


def parse(description: str) -> argparse.Namespace:
    """The flags of both scripts: seeds, jobs, and runs, an absolute path."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a core each")
    parser.add_argument(
        "--runs",
        type=lambda path: Path(path).absolute(),
        default=RUNS,
    )
    return parser.parse_args()


def run(cells: Sequence[Cell], runs: Path, *, jobs: int) -> None:
    """Run all cells that have no results yet, those that others start from first.

    Args:
        cells: in any order; a cell that one of them starts from is run too.
        runs: folder of their folders.
        jobs: that run side by side (any value, same results).

    Raises:
        SystemExit: a run failed; its output is in `log.txt` of its folder.
    """
    first = [cell.start for cell in cells if cell.start]
    missing: list[list[Cell]] = []
    for wave in (first, cells):
        before = {cell for earlier in missing for cell in earlier}
        wave = [c for c in dict.fromkeys(wave) if not (c.folder(runs) / "results.json").is_file()]
        missing.append([cell for cell in wave if cell not in before])
    cores: queue.Queue = queue.Queue()
    pins = shutil.which("taskset") is not None  # Linux; elsewhere runs share all cores
    for job in range(jobs):
        allowed = sorted(os.sched_getaffinity(0)) if pins else [None]
        cores.put(allowed[job % len(allowed)])
    total = sum(map(len, missing))
    with tqdm(total=total, unit="run", disable=not total) as bar:
        for wave in missing:
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                waiting = {pool.submit(_run, cell, runs, cores): cell for cell in wave}
                try:
                    for done in concurrent.futures.as_completed(waiting):
                        done.result()
                        bar.set_postfix_str(waiting[done].name)
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise


def _run(cell: Cell, runs: Path, cores: queue.Queue) -> None:
    core = cores.get()
    folder = cell.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    command = cell.command(runs)
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(runs.absolute() / "compiled")}
    # pinned before Python starts: XLA counts the cores once
    pinned = ["taskset", "-c", str(core), *command] if core is not None else command
    try:
        with (folder / "log.txt").open("ab") as log:
            log.write((" ".join(command) + "\n").encode())
            log.flush()
            code = subprocess.call(
                pinned, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
    finally:
        cores.put(core)
    if code:
        sys.exit(f"{cell.name} ended with status {code}: see {folder / 'log.txt'}")


def evaluate(options: Settings, *, digits: int = 2) -> dict[str, dict[str, float]]:
    """Percent by output and measure, as `otseg_jax.main --mode=eval` finds them."""
    with tempfile.TemporaryDirectory() as folder:
        report.evaluate(options, folder)
        found = json.loads((Path(folder) / report.RESULTS).read_text())
    measures = ("miou", *MEASURES)
    return {name: {m: round(row[m], digits) for m in measures} for name, row in found.items()}


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of percentages, and all of them, to two decimals.

    A measure that has no value, as mIoU(U) where no class is unseen, has no mean, and a single
    value has no deviation.
    """
    known = [value for value in values if value is not None]
    return {
        "mean": round(statistics.fmean(known), 2) if known else None,
        "std": round(statistics.stdev(known), 2) if len(known) > 1 else None,
        "each": [None if value is None else round(value, 2) for value in values],
    }


def gather(cells: Mapping[int, Cell], runs: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Method → measure → mean, standard deviation and the value of each seed."""
    results = [cells[seed].results(runs) for seed in sorted(cells)]
    return {
        method: {m: spread([result[method][m] for result in results]) for m in MEASURES}
        for method in results[0]
    }


def row(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A method's measures to one decimal: mean, and deviation where there is one."""

    def show(mean: float | None, std: float | None) -> str:
        return "–" if mean is None else f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}")

    return [show(figures[m]["mean"], figures[m]["std"]) for m in MEASURES]


def result_of(script: str) -> Path:
    """The JSON beside a script; on an accelerator it bears the device's name."""
    name, device = Path(script).stem, jax.devices()[0]
    if device.platform != "cpu":
        name += "_" + re.sub(r"\W+", "_", device.device_kind.lower())
    return Path(script).with_name(f"{name}.json")


def table(rows: Sequence[Sequence[str]], *headers: str) -> str:
    """A Markdown table."""
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
