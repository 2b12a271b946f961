"""Commands: which there are, how fields are set, and that an installed wheel has all it needs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from otseg_jax import cli, config_file

ROOT = Path(__file__).parent.parent
SMALL = shlex.split("""--config.data.crop=32 --config.data.scale=32,32 --config.data.images.train=4
    --config.data.images.val=1 --config.eval.scale=32,32 --config.eval.stride=32
    --config.model.sinkhorn=unrolled --config.model.iterations=2 --config.model.decoder_layers=1
    --config.text.templates="a {}." --config.text.cache= --config.train.batch_size=1
    --config.train.steps=2 --config.train.warmup=1 --config.clip.source=random
    --config.clip.random.patch_size=8 --config.clip.random.embed_dim=16
    --config.clip.random.vision="{'width':16,'layers':1,'heads':1,'mlp_width':16}"
    --config.clip.random.text="{'width':16,'layers':1,'heads':1,'mlp_width':16}"
""")


def parsed(*arguments):
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "", flag_values=values)
    return cli.parse(["program", "--config=configs/shapes.py", *arguments], values)


def test_every_command_is_listed_and_nothing_else():
    guarded = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for file in (ROOT / "otseg_jax").rglob("*.py")
        if 'if __name__ == "__main__":' in file.read_text()
    }
    assert {name.removesuffix(".__main__") for name in guarded} == set(cli.COMMANDS)


def test_a_flag_given_twice_counts_once():
    twice = ["--config.data.scale=64,64", "--config.data.scale", "(96, 32)", "--config.seed=1"]
    rest, config = parsed(*twice, "--config.seed=2", "--config.text.templates=a {}, b", "place")
    assert (config.data.scale, config.seed, rest) == ((96, 32), 2, ["place"])
    assert config.text.templates == ("a {}, b",)
    # the name alone, which is a dictionary to Python
    assert parsed("--config=configs/shapes.py", "--config.text.templates={}")[1].text.templates == (
        "{}",
    )
    rest, config = parsed("--config=configs/voc12.py:supervised", "--noconfig.data.augmented")
    assert (config.data.dataset, config.regime, config.data.augmented) == (
        "voc12",
        "supervised",
        False,
    )
    assert parsed("--config.eval.seen_offset=None").config.eval.seen_offset is None


def test_the_file_given_counts_before_the_packaged_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parsed().config.data.dataset == "shapes"
    (tmp_path / "configs").mkdir()
    mine = (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'a': 1})"
    )
    (tmp_path / "configs" / "shapes.py").write_text(mine)
    assert parsed().config.to_dict() == {"a": 1}


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with what a built wheel installs."""
    made = tmp_path_factory.mktemp("wheel")
    for name in ("otseg_jax", "configs"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, made / "source" / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, made / "source")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", made / "wheels", made / "source"]
    subprocess.run([*pip, *wheel], check=True)
    (file,) = (made / "wheels").iterdir()
    shutil.unpack_archive(file, made / "site", format="zip")
    return made / "site"


def python(folder, site, *arguments):
    """Run Python in a folder, with an installed package; its status and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    options = {"capture_output": True, "text": True, "env": environment, "check": False}
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, **options)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_wheel_holds_every_file_and_one_name(installed):
    here = {p.relative_to(ROOT) for p in (ROOT / "otseg_jax").rglob("*") if p.is_file()}
    here = {path for path in here if "__pycache__" not in path.parts}
    here |= {Path("otseg_jax") / p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.py")}
    there = {p.relative_to(installed) for p in installed.rglob("*") if p.is_file()}
    assert {path for path in there if ".dist-info" not in path.parts[0]} == here


def test_an_installed_package_trains_in_an_empty_folder(installed, tmp_path):
    place = "from otseg_jax import config_file; print(config_file.CONFIGS)"
    assert python(tmp_path, installed, "-c", place)[1].strip() == f"{installed}/otseg_jax/configs"
    main = ("-m", "otseg_jax.main", "--config=configs/shapes.py:supervised", "--workdir=run")
    status, told = python(tmp_path, installed, *main, *SMALL)
    assert status == 0, told
    assert "PyTorch was not found" not in told
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {2}
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_file_of_ones_own_builds_on_the_packaged_ones(installed, tmp_path):
    mine = "from configs import common\ndef get_config():\n    return common.defaults('x', steps=7)"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(mine)
    mine = f"{tmp_path}/elsewhere/mine.py"
    load = f"from otseg_jax import config_file; print(config_file.load('{mine}').train.steps)"
    assert python(tmp_path, installed, "-c", load) == (0, "7\n")
    # wherever it is started: another project has such a folder too
    (tmp_path / "theirs" / "configs").mkdir(parents=True)
    (tmp_path / "theirs" / "configs" / "common.py").write_text("raise SystemExit('not ours')")
    assert python(tmp_path / "theirs", installed, "-c", load) == (0, "7\n")
    # neighbours in a folder `configs` of one's own come first
    (tmp_path / "elsewhere").rename(tmp_path / "configs")
    own = (ROOT / "configs" / "common.py").read_text().replace('"seed": 0', '"seed": 5')
    (tmp_path / "configs" / "common.py").write_text(own)
    load = load.replace("elsewhere", "configs").replace("train.steps", "seed")
    assert python(tmp_path, installed, "-c", load) == (0, "5\n")


def test_protocols_of_a_clip_alone_are_found_from_any_folder(installed, tmp_path):
    """Those of the package, and one's own that builds on them."""
    name = "configs/training_free/voc21.py"
    load = f"from otseg_jax import config_file; print(config_file.load('{name}:sclip').model.scale)"
    assert python(tmp_path, installed, "-c", load) == (0, "65.0\n")
    mine = "from configs.training_free import common\ndef get_config(method='naclip'):\n"
    mine += "    config = common.defaults(method)\n    config.model.scale = 7.0\n    return config"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(mine)
    assert python(tmp_path, installed, "-c", load) == (0, "7.0\n")


def test_the_file_of_a_command_is_a_command_too(tmp_path):
    status, told = python(tmp_path, ROOT, ROOT / "otseg_jax" / "main.py", "--config=configs/x.py")
    assert (status, "those of otseg_jax are configs/ade20k.py" in told) == (1, True)


def test_a_program_of_another_package_runs(tmp_path):
    """It imports this package while Python looks for its own module."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("import otseg_jax")
    (tmp_path / "app" / "train.py").write_text("print('runs')")
    ran = subprocess.run(
        [sys.executable, "-m", "app.train"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, "runs\n"), ran.stderr


RAISES = {
    "raise ValueError('ours')": True,
    "def make(): raise FileNotFoundError('ours')\njax.jit(make)()": True,
    "jnp.broadcast_to(jnp.ones(2), 3)": False,
    "jax.jit(lambda: jnp.broadcast_to(jnp.ones(2), 3))()": False,
    "np.ones(4).reshape(3)": False,
    "int('x')": False,
    "open('/no/such/file')": False,
}


@pytest.mark.parametrize("code", RAISES)
def test_only_what_this_package_raises_is_one_line(code):
    """JAX takes its frames out of a traceback, and C has none: both end in our own code."""
    program = compile(code, config_file.PACKAGE / "sample.py", "exec")
    names = {"jax": jax, "jnp": jax.numpy, "np": np}
    with pytest.raises(SystemExit if RAISES[code] else (ValueError, OSError)):
        cli.run(lambda: exec(program, names))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_one_line_and_130(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: [os.kill(os.getpid(), number), time.sleep(60)])
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped: the same command begins again\n"
    assert signal.getsignal(number) == before
