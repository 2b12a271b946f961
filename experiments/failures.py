"""Runs of several processes that are killed and preempted at random moments: failures.json.

    python -m experiments.failures --kills=20 --stops=20

One process of the run gets SIGKILL, or one or all get SIGTERM; then the same command is given
again. Nothing may be lost beyond the last planned save, after SIGTERM nothing at all; nobody may
hang; and the run must end bit for bit as one that nothing happened to.
"""

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from otseg_jax.checkpoints import lock
from otseg_jax.training import watch

RESULT = Path(__file__).with_suffix(".json")
EVERY = 10  # steps between planned saves
# small, so that most of a run is steps and saves and not the start
FIELDS = {
    "data.crop": 32,
    "data.scale": "32,32",
    "data.images.train": 200,
    "data.images.val": 12,
    "eval.scale": "32,32",
    "eval.stride": 24,
    "model.sinkhorn": "unrolled",
    "model.iterations": 20,
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.eval_every": 50,
    "train.checkpoint_every": EVERY,
}


def start(workdir: Path, processes: int, steps: int) -> list["subprocess.Popen[str]"]:
    """The processes of a run, each with what it says in `<workdir>.<index>.txt`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "-m", "otseg_jax.main", "--config=configs/shapes.py", *fields]
    command += [f"--config.train.steps={steps}", f"--workdir={workdir}"]
    command += [f"--coordinator=localhost:{port}", f"--processes={processes}"]
    started = []
    for index in range(processes):
        with Path(f"{workdir}.{index}.txt").open("w") as said:
            started.append(
                subprocess.Popen(
                    [*command, f"--process={index}"], stdout=said, stderr=said, text=True
                )
            )
    return started


def logged(workdir: Path) -> dict[int, dict[str, Any]]:
    """Of each step that was done what its last line holds, times aside."""
    found = {}
    for numbers in map(json.loads, lines(workdir)):
        if "loss" in numbers:
            found[numbers["step"]] = {n: x for n, x in numbers.items() if n not in watch.FIGURES}
    return found


def kept(workdir: Path) -> int:
    """The step that a run would go on from: folders get their number when they are complete."""
    folders = (workdir / "checkpoints").glob("*")
    return max((int(folder.name) for folder in folders if folder.name.isdecimal()), default=0)


def lines(workdir: Path) -> list[str]:
    """Those of the log that are complete."""
    log = workdir / "metrics.jsonl"
    found = log.read_text().splitlines() if log.exists() else []
    return [line for line in found if line.endswith("}")]


def seconds_to_end(started: Sequence["subprocess.Popen[str]"], limit: float) -> float:
    """Until all have ended; those that have not by then are killed."""
    began = time.monotonic()
    for process in started:
        try:
            process.wait(max(0.0, began + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    return time.monotonic() - began


def fault(
    workdir: Path, number: int, kind: str, moment: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Start the run or let it go on, end one process after so many seconds, and look."""
    before, log = kept(workdir), len(lines(workdir))
    started = start(workdir, args.processes, args.steps)
    owner = workdir / lock.OWNER
    # before they have met they wait for one another for minutes
    wait(lambda: owner.exists() and f"{started[0].pid}\n" in owner.read_text(), started)
    until = time.monotonic() + moment
    wait(lambda: time.monotonic() > until, started)
    over, complete = any(process.poll() is not None for process in started), kept(workdir)
    reached = max([before, *(json.loads(line)["step"] for line in lines(workdir)[log:])])
    # a machine that is preempted may hold all of them
    victims = [number % args.processes] if kind != "stop all" else range(args.processes)
    for victim in victims:
        started[victim].send_signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
    seconds = seconds_to_end(started, args.limit)
    after = kept(workdir)
    said = [Path(f"{workdir}.{index}.txt").read_text() for index in range(args.processes)]
    told = [(text.strip().splitlines() or [""])[-1] for text in said]
    due = complete if kind == "kill" else reached
    return {
        "kind": kind,
        "moment": round(moment, 1),
        "over": over,
        "from": before,
        "reached": reached,
        "kept": after,
        "lost": max(0, reached - after),
        "beyond": max(0, due - after),
        "seconds": round(seconds, 1),
        "codes": [process.returncode for process in started],
        "told": sum("the same command" in line for line in told),
    }


def wait(condition: Callable[[], bool], started: Sequence["subprocess.Popen[str]"]) -> None:
    """Until it holds, or a process has ended."""
    while not condition() and all(process.poll() is None for process in started):
        time.sleep(0.02)


def write(args: argparse.Namespace, faults: list[dict[str, Any]], same: list[bool]) -> None:
    """What was seen so far; `same`: of each run that was let go on to its end, whether it is."""
    found: dict[str, Any] = {
        "processes": args.processes,
        "steps": args.steps,
        "checkpoint_every": EVERY,
        "runs_to_the_end": len(same),
        "runs_that_end_otherwise": same.count(False),
    }
    for kind in ("kill", "stop one", "stop all"):
        some = [x for x in faults if x["kind"] == kind]
        found[kind] = {
            "times": len(some),
            "before_a_first_step": sum(x["reached"] <= x["from"] for x in some),
            "after_the_end": sum(x["over"] for x in some),
            "lines_that_tell_what_to_do": sum(x["told"] for x in some),
            "most_steps_lost": max((x["lost"] for x in some), default=0),
            "steps_lost_beyond_the_last_planned_save": sum(x["beyond"] for x in some),
            "longest_until_all_ended_seconds": max((x["seconds"] for x in some), default=0),
        }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    """Interrupt runs, and write what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--limit", type=float, default=300, help="seconds that count as a hang")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    half = args.stops // 2
    kinds = ["kill"] * args.kills + ["stop one"] * (args.stops - half) + ["stop all"] * half
    draw.shuffle(kinds)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        began = time.monotonic()
        uninterrupted = start(whole, args.processes, args.steps)
        wait(lambda: bool(logged(whole)), uninterrupted)
        first, faults, same = time.monotonic() - began, list[dict[str, Any]](), list[bool]()
        seconds_to_end(uninterrupted, 3600)
        table, told = (whole / "results.json").read_text(), logged(whole)
        duration = time.monotonic() - began
        print(f"uninterrupted: {duration:.0f} s, of them {first:.0f} before the first step")
        while len(faults) < len(kinds):
            workdir = Path(folder, str(len(same)))
            while len(faults) < len(kinds) and not (workdir / "results.json").exists():
                # some while it compiles, most in the steps: it goes on a little before each
                moment = draw.uniform(0, first + (duration - first) / 3)
                faults.append(fault(workdir, len(faults), kinds[len(faults)], moment, args))
                print(json.dumps(faults[-1]), flush=True)
                write(args, faults, same)
            seconds_to_end(start(workdir, args.processes, args.steps), 3600)
            results = (workdir / "results.json").read_text()
            again = logged(workdir)
            other = [step for step in told if again.get(step) != told[step]]
            same.append(results == table and not other)
            print(f"to the end: results equal: {results == table}, steps that differ: {other}")
            write(args, faults, same)
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
