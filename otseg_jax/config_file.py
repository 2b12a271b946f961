"""The files that configurations come from.

A configuration is `configs/NAME.py` or `configs/training_free/NAME.py`, with a regime or a method
after a colon, or a file of one's own like it. Those of the repository come with an installed
package, as `otseg_jax/configs`, so that their names work in any folder.
"""

import importlib.util
import os
import sys
import traceback
import types
from pathlib import Path

from ml_collections import ConfigDict

PACKAGE = Path(__file__).parent
# an installed package has them inside, the repository beside the package
CONFIGS = next((p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if p.is_dir()), None)


def load(name: str) -> ConfigDict:
    """The configuration of FILE.py or FILE.py:ARGUMENT; SystemExit with one line if there is none.

    The argument is a regime, or the method of a CLIP alone.
    """
    file, _, argument = name.partition(":")
    path = _locate(file)
    if path is None:
        files = sorted(CONFIGS.rglob("*.py"), key=lambda p: (p.parent, p)) if CONFIGS else []
        known = ", ".join(
            "/".join(p.parts[p.parts.index("configs", -3) :]) for p in files if p.stem != "common"
        )
        sys.exit(f"error: --config={name}: no such file here; those of otseg_jax are {known}")
    _offer_configs(path)
    spec = importlib.util.spec_from_file_location("otseg_jax_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*[argument] if argument else [])
    except Exception as error:  # any type: the file is the user's own program
        at = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {one_line(error)} ({Path(at.filename).name}:{at.lineno})"
        sys.exit(f"error: --config={name} cannot be used: {reason}")
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        sys.exit(
            f"error: --config={name}: its get_config returns {kind}, wanted the ConfigDict of "
            "`common.defaults` with changes, as in configs/voc12.py"
        )
    return config.lock()


def _locate(file: str) -> Path | None:
    """The file of that name, else the packaged configuration of the name."""
    path = Path(os.path.expanduser(file))  # noqa: PTH111 (pathlib raises where there is no user)
    ours = path.parts[:1] == ("configs",)
    packaged = [CONFIGS.joinpath(*path.parts[1:])] if CONFIGS and ours else []
    return next(
        (p.absolute() for p in (path, *packaged) if p.is_file() and p.suffix == ".py"), None
    )


def _offer_configs(path: Path) -> None:
    """Let a configuration file import `configs`: its own neighbours, ours, then those from here."""
    near = [parent for parent in path.parents[:2] if parent.name == "configs"]
    # another project that it is started in may have a `configs/common.py` too
    places = [*near, *([CONFIGS] if CONFIGS else []), Path("configs").absolute()]
    package = types.ModuleType("configs")
    package.__path__ = [str(place) for place in places]
    # no folder on `sys.path`: what else lies in it would become importable too
    sys.modules.setdefault("configs", package)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())
