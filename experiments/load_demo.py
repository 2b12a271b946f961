"""The page under load: load_demo.json.

    python -m experiments.load_demo --people=20 --minutes=5 --hostile=100

People ask again and again about photos and words, and click pixels, while strangers upload bombs
and rubbish. Every answer is compared with what the same model says in this process.
"""

import argparse
import json
import random
import re
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments import demo
from experiments.hostile import hostile, png
from otseg_jax.data.shapes import Shapes
from otseg_jax.demo import answers, pictures
from otseg_jax.demo.answers import EVERY, Answers, Question

RESULT = Path(__file__).with_suffix(".json")
METHOD = "otseg_plus, trained"
SIZES = (96, 200, 384, 700, 1500)  # pixels of photos
QUIET = 30  # seconds after which memory is measured


def at(path: str, **more: Any) -> dict[str, Any]:
    """A file as Gradio's clients name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


class Visitor:
    """A client that speaks the page's protocol by hand, in a session of its own."""

    def __init__(self, address: str) -> None:
        import httpx  # of Gradio's

        self.http = httpx.Client(base_url=f"{address.rstrip('/')}/gradio_api", timeout=300)
        self.session = uuid.uuid4().hex[:12]

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def upload(self, data: bytes, name: str = "a.png") -> Any:
        """Upload a file; the reply lists where it lies."""
        return self.http.post("/upload", files={"files": (name, data)})

    def segment(self, photo: Any, **fields: Any) -> tuple[str, str]:
        """Ask by the named endpoint: "complete" or "error", and the JSON that came with it."""
        values = {"words": "", "mode": EVERY, "others": "", "least": 0.2, "method": METHOD}
        data = [photo, *(values | fields).values(), 0.6]
        joined = self.http.post("/call/segment", json={"data": data})
        if joined.status_code != 200:
            return "error", joined.text
        text = self.http.get(f"/call/segment/{joined.json()['event_id']}").text
        event, said = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        return event, said

    def give(self, data: bytes, name: str = "a.png", **fields: Any) -> tuple[str, str]:
        """Upload a photo and ask about it."""
        reply = self.upload(data, name)
        if reply.status_code != 200:
            return "error", reply.text
        return self.segment(at(reply.json()[0]), **fields)

    def click(self, number: int, data: list[Any], event: Any = None) -> dict[str, Any]:
        """What a browser sends for one of the page's functions: the last message about it."""
        body = {"fn_index": number, "data": data, "event_data": event}
        joined = self.http.post("/queue/join", json=body | {"session_hash": self.session})
        if joined.status_code != 200:
            return {"success": False, "output": joined.text}
        query = {"session_hash": self.session}
        with self.http.stream("GET", "/queue/data", params=query) as lines:
            for line in lines.iter_lines():
                if line.startswith("data: "):
                    message = json.loads(line.removeprefix("data: "))
                    if message["msg"] in ("process_completed", "unexpected_error"):
                        return message
        return {"success": False, "output": "the stream ended"}


def questions(count: int, seed: int = 0) -> list[tuple[bytes, str, str]]:
    """Photos, words, and the legend that the page must show."""
    asked, drawn = Answers("shapes"), random.Random(seed)
    found = []
    for i in range(count):
        world = Shapes("val", size=20, image_size=SIZES[i % len(SIZES)])
        words = ", ".join(drawn.sample(asked.words, drawn.randint(2, 20)))
        photo = png(world[i % 20]["image"])
        answer = asked.ask(Question(photo, words, None, METHOD))
        found.append((photo, words, pictures.legend(answer, hidden=frozenset())))
    return found


def person(address: str, asked: list, until: float, counts: Counter, seconds: list) -> None:
    """Ask, look at the answer, click a pixel, again and again."""
    drawn = random.Random(threading.get_ident())
    with Visitor(address) as visitor:
        known = visitor.http.get(f"{address.rstrip('/')}/config").json()["dependencies"]
        segment = next(i for i, each in enumerate(known) if each["api_name"] == "segment")
        select = next(i for i, each in enumerate(known) if each["targets"][0][1] == "select")
        while time.monotonic() < until:
            photo, words, legend = drawn.choice(asked)
            started = time.monotonic()
            (path,) = visitor.upload(photo).json()
            fields = [at(path), words, EVERY, "", 0.2, METHOD, 0.6]
            message = visitor.click(segment, fields)
            seconds.append(time.monotonic() - started)
            if message.get("success"):
                counts["right" if message["output"]["data"][1] == legend else "wrong"] += 1
                pixel = {"index": [drawn.randrange(90), drawn.randrange(90)], "value": None}
                clicked = visitor.click(select, [None, 0.6], pixel)
                counts[_kind(clicked, "plans")] += 1
            else:
                counts[_kind(message, "")] += 1


def _kind(message: dict[str, Any], right: str) -> str:
    if message.get("success"):
        return right if "Who took its mass" in json.dumps(message) else "wrong"
    output = message.get("output")
    error = output.get("error") if isinstance(output, dict) else output
    # a sentence of ours or of Gradio's queue, rather than nothing or a fault
    return "sentences" if error and "fault of this page" not in str(error) else "faults"


def stranger(address: str, count: int, counts: Counter) -> None:
    """Upload what is no photo, or hardly one."""
    kinds = list(hostile().items())
    with Visitor(address) as visitor:
        for i in range(count):
            name, (data, sentence) = kinds[i % len(kinds)]
            event, said = visitor.give(data, name, words="plain red disc, sky")
            error = "" if event == "complete" else str(json.loads(said))
            fine = sentence in error if sentence else sentence is None or not error
            fine = fine and "fault of this page" not in error
            counts["hostile, as expected" if fine else "hostile, else"] += 1


def memory(pid: int) -> float:
    """Resident memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    """Load the page, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=int, default=20, help="at once")
    parser.add_argument("--minutes", type=float, default=5.0, help="that they ask")
    parser.add_argument("--hostile", type=int, default=100, help="uploads meanwhile")
    options = parser.parse_args()
    asked = questions(2 * answers.KEPT)
    counts: Counter[str] = Counter()
    seconds: list[float] = []
    with demo.served() as (address, process):
        # until every shape is compiled, and as many answers are kept as fit
        with Visitor(address) as visitor:
            for photo, words, _legend in asked:
                visitor.give(photo, words=words)
        stranger(address, len(hostile()), Counter())
        person(address, asked, time.monotonic() + 5, Counter(), [])
        before = memory(process.pid)
        until = time.monotonic() + 60 * options.minutes
        with ThreadPoolExecutor(options.people + 1) as pool:
            people = [
                pool.submit(person, address, asked, until, counts, seconds)
                for _ in range(options.people)
            ]
            people.append(pool.submit(stranger, address, options.hostile, counts))
            peak = before
            while not all(each.done() for each in people):
                peak = max(peak, memory(process.pid))
                time.sleep(0.5)
        for each in people:
            each.result()  # raises what stopped somebody
        time.sleep(QUIET)
        after = memory(process.pid)
        alive = process.poll() is None
    result = {
        "people": options.people,
        "minutes": options.minutes,
        "hostile": options.hostile,
        "counts": dict(sorted(counts.items())),
        "seconds": {p: round(float(np.percentile(seconds, p)), 2) for p in (50, 90, 100)},
        "megabytes": {"before": round(before), "peak": round(peak), "after": round(after)},
        "alive": alive,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    bad = counts["wrong"] + counts["faults"] + counts["hostile, else"]
    if bad or not alive or after > 1.1 * before:
        sys.exit("error: an answer was neither right nor a sentence, or memory stayed")


if __name__ == "__main__":
    main()
