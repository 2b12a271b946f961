"""The picture of the page in the README: demo.png, made in a real browser.

    python -m experiments.demo

It starts `python -m otseg_jax.demo`, opens it in Chromium, clicks a pixel and saves what is seen.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

RESULT = Path(__file__).with_suffix(".png")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
# quiet: a browser of tests looks for nothing elsewhere
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 120  # that anything may take on a busy machine
MOST_BYTES = 300_000


@contextmanager
def served(*flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page, served by its command until the block ends: its address, and the process."""
    command = [sys.executable, "-u", "-m", "otseg_jax.demo", *flags]
    # a file: a pipe that nobody empties would stop the server
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            yield _address(process, log), process
        finally:
            process.terminate()
            process.wait(30)


def _address(process: subprocess.Popen[str], log: IO[str]) -> str:
    end = time.monotonic() + SECONDS
    said = ""
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        said = log.read()
        if found := re.search(r"^(http\S+) shows the page", said, re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    sys.exit(f"error: the page did not start: {said}")


@contextmanager
def opened(*, width: int = 1500, height: int = 1250) -> "Iterator[Page]":
    """An empty tab of Chromium, of this size in pixels."""
    from playwright.sync_api import sync_playwright  # of the tests' extra

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(SECONDS * 1000)
        yield page
        browser.close()


def click_pixel(page: "Page", x: float, y: float) -> None:
    """Click the overlay at fractions of its width and height, and wait for the plan."""
    from playwright.sync_api import TimeoutError as TooLong

    picture = page.locator("#overlay img")
    box: Any = picture.bounding_box()
    for seconds in (10, 10, 10, SECONDS):
        picture.click(position={"x": x * box["width"], "y": y * box["height"]})
        # an answer that is still under way replaces the picture, and the plan of what was clicked
        with suppress(TooLong):
            page.wait_for_selector("#bars .bar", timeout=seconds * 1000)
            # it loads once it is scrolled to
            page.wait_for_selector("#where img", state="attached", timeout=seconds * 1000)
            return
    raise TimeoutError(f"no plan of the pixel at {x}, {y}")


def main() -> None:
    """Save the picture."""
    if not CHROMIUM:
        sys.exit("error: there is no Chromium: apt-get install chromium")
    with served() as (address, _), opened() as page:
        page.goto(address)
        page.wait_for_selector("#legend .entry")
        click_pixel(page, 0.6, 0.68)
        page.wait_for_timeout(1500)  # for pictures to fade in
        seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    # 256 colours, dithered: a third of the file
    seen.quantize(256, kmeans=4).save(RESULT, optimize=True)
    size = RESULT.stat().st_size
    print(f"{RESULT}: {seen.width} × {seen.height} pixels, {size:,} bytes")
    assert size <= MOST_BYTES


if __name__ == "__main__":
    main()
