r"""How long converting a full-size CLIP takes, and how much memory: benchmark_convert.json.

    python -m experiments.benchmark_convert

Files of ViT-B/16 with random weights are written by torch (an extra, needed here alone); each is
then converted by the command line in a process of its own, whose peak resident memory is what the
kernel counted for it. A copy of 600 MB is timed beside, for the speed of the disk.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

RESULT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parent.parent


def measure(source: Path, dest: Path, *flags: str) -> dict[str, float]:
    """Convert in a process of its own.

    Args:
        source: file or folder.
        dest: removed afterwards.
        flags: of the command.

    Returns:
        {"seconds": wall clock, start of Python included, "peak_gb": resident memory in 1e9 bytes}.
    """
    command = [sys.executable, "-m", "otseg_jax.convert", str(source), str(dest), *flags]
    script = (
        "import json, resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(dest) if dest.is_dir() else dest.unlink()
    return {"seconds": round(seconds, 1), "peak_gb": round(int(done.stdout) * 1024 / 1e9, 2)}


def main() -> None:
    """Write the files, measure, write the result."""
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
        model.save_pretrained(folder / "hf")
        (folder / "bin").mkdir()
        shutil.copy(folder / "hf" / "config.json", folder / "bin")
        torch.save(model.state_dict(), folder / "bin" / "pytorch_model.bin")
        del model
        size = (folder / "hf" / "model.safetensors").stat().st_size
        start = time.perf_counter()
        shutil.copy(folder / "hf" / "model.safetensors", folder / "copy")
        copy = time.perf_counter() - start
        (folder / "copy").unlink()
        for kind in ("hf", "bin"):
            results[f"{kind} → model"] = measure(folder / kind, folder / "out")
        command = [sys.executable, "-m", "otseg_jax.convert", str(folder / "hf")]
        subprocess.run([*command, str(folder / "model")], cwd=ROOT, check=True)
        results["model → hf"] = measure(folder / "model", folder / "out", "--format=hf")
    record = {
        "file_mb": round(size / 1e6),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}",
        "load_average": round(os.getloadavg()[0], 1),
        "copy_seconds": round(copy, 1),
        "results": results,
    }
    RESULT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
