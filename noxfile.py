"""The test suite at the two ends and in the middle of the versions that pyproject.toml admits.

    nox --session oldest newest                    # all that needs no torch, Gradio or browser
    nox --session oldest newest -- tests -m core   # as CI: what follows -- goes to pytest

A session starts with these packages, as a notebook of Colab does, and fails where installing this
project changes one of them.
"""

import nox

# session: Python, what is there first, the extra that holds what the tests need
VERSIONS = {
    # Colab's
    "oldest": ("3.12", ("jax==0.7.2", "flax==0.11.2", "orbax-checkpoint==0.12.4"), "suite"),
    # the last for Python 3.11
    "middle": ("3.11", ("jax==0.10.2", "flax==0.12.8", "orbax-checkpoint==0.12.8"), "test"),
    "newest": ("3.13", ("jax==0.12.0.1", "flax==0.12.12", "orbax-checkpoint==0.12.8"), "suite"),
}
nox.options.sessions = list(VERSIONS)
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # it is told, and the others run

# modules that cannot be imported without torch, Gradio, tensorboardX or wandb
LACKING = (
    "convert/references.py",
    "demo",
    "training/tensorboard_writer.py",
    "training/wandb_writer.py",
)
NEEDING = {
    "suite": tuple(f"--ignore=otseg_jax/{name}" for name in LACKING),
    "test": (),
}

KEPT = (
    "import sys; from importlib.metadata import version; "
    "sys.exit([x for x in sys.argv[1:] if version(x.split('==')[0]) != x.split('==')[1]] or None)"
)


def define(name: str, python: str, pins: tuple[str, ...], extra: str) -> None:
    """The session of a row of the table."""

    @nox.session(name=name, python=python)
    def session(session: nox.Session) -> None:
        if extra == "suite":
            session.env["CI"] = ""  # what lacks torch, Gradio or a browser skips
        session.env["PIP_NO_COMPILE"] = "1"  # saves seconds: most modules are never imported
        session.install(*pins)
        session.install("--editable", ".")
        session.run("python", "-c", KEPT, *pins, silent=True)
        # with the pins, as what the tests compare with asks for newer ones
        session.install("--editable", f".[{extra}]", *pins)
        session.run("pytest", "-rs", *NEEDING[extra], *session.posargs)


for name, row in VERSIONS.items():
    define(name, *row)
