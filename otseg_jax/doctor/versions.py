"""Whether the installed packages fit together: by what each says it needs, and by what is known.

Only their metadata is read, so that this works where importing them does not.
"""

import contextlib
import platform
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from otseg_jax.data import lists
from otseg_jax.doctor.findings import Finding

OURS = "otseg-jax"
TOLD = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "numpy",
)
BUILT_ON_JAX = ("flax", "optax", "orbax-checkpoint")
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
"""What lets JAX use an accelerator; jax names the version of each that it takes as an extra."""


class Package(NamedTuple):
    """An installed package, and what it says that it needs."""

    version: str
    requires: tuple[str, ...] = ()


class Pair(NamedTuple):
    """Versions of two packages that do not work together, which neither of them says."""

    package: str
    versions: str
    other: str
    others: str
    why: str
    mend: str  # "{other}" is the version of the other that is installed


_ANY = ">=0"

# Source of the first: jax 0.9 removed `array_ref`, which flax 0.12.0 imports; of the second: flax
# 0.12.9 is the first that asks for such a jax; of jax-metal: issues 27062 and 34109 of jax.
KNOWN_BAD = (
    Pair(
        "flax",
        "<0.12.1",
        "jax",
        ">=0.9,<0.11.1",
        "flax imports what this jax no longer has",
        'pip install "flax>=0.12.1" "jax=={other}"',
    ),
    Pair(
        "flax",
        "<0.12.9",
        "jax",
        ">=0.11.1",
        "flax is built on a class that this jax no longer has",
        'pip install "flax>=0.12.12" "jax=={other}"',
    ),
    Pair(
        "flax",
        "==0.12.11",
        "jax",
        _ANY,
        "this version was withdrawn for a bug in traversing modules",
        'pip install "flax!=0.12.11" "jax=={other}"',
    ),
    Pair(
        "jax-metal",
        _ANY,
        "jax",
        ">=0.5.1",
        "jax-metal was given up, and makes every operation of this jax fail",
        "pip uninstall --yes jax-metal",
    ),
    Pair(
        "jax-cuda12-plugin",
        _ANY,
        "jax-cuda13-plugin",
        _ANY,
        "both register the same devices, and the kernels of one would meet libraries of the other",
        "pip uninstall --yes jax-cuda13-plugin jax-cuda13-pjrt",
    ),
)


def installed() -> tuple[dict[str, Package], list[Finding]]:
    """The packages by their names, and those that one folder holds in two versions."""
    packages: dict[str, Package] = {}
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for found in metadata.distributions():
        # a folder of an installation that broke off may have no name
        if found.metadata is None or "Name" not in found.metadata:
            continue
        name = canonicalize_name(found.metadata["Name"])
        places[name, str(found.locate_file(""))].add(found.version)
        # the first that is found is the one that is imported
        packages.setdefault(name, Package(found.version, tuple(found.requires or ())))
    twice = [
        Finding(
            "error",
            f"{place} holds {name} in the versions {' and '.join(sorted(versions))}: an "
            "installation broke off, and their files are mixed",
            f'pip uninstall --yes {name}; pip uninstall --yes {name}; pip install "{name}'
            f'=={max(versions, key=_order)}"',
        )
        for (name, place), versions in places.items()
        if len(versions) > 1
    ]
    return packages, twice


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def check(packages: Mapping[str, Package]) -> list[Finding]:
    """What does not fit, or one finding that all does.

    Args:
        packages: what is installed, by canonical names; this package must be among them.
    """
    found = [*_unmet(packages), *_unfit_plugins(packages)]
    for row in KNOWN_BAD:
        a, b = packages.get(row.package), packages.get(row.other)
        if a and b and _in(a.version, row.versions) and _in(b.version, row.others):
            what = f"{row.package} {a.version} with {row.other} {b.version}: {row.why}"
            found.append(Finding("error", what, row.mend.replace("{other}", b.version)))
    shown = [f"{n} {packages[n].version}" for n in (OURS, *TOLD, *PLUGINS) if n in packages]
    about = ", ".join([f"Python {platform.python_version()}", *shown])
    return [Finding("note" if found else "ok", about), *dict.fromkeys(found)]


def _in(version: str, wanted: str | SpecifierSet) -> bool:
    return SpecifierSet(str(wanted)).contains(version, prereleases=True)


def _unmet(packages: Mapping[str, Package]) -> Iterator[Finding]:
    """What this package needs, what that needs in turn, and so on; a finding for each package."""
    waiting, seen = [(OURS, frozenset[str]())], set()
    unmet: dict[str, list[tuple[str, Requirement]]] = defaultdict(list)
    while waiting:
        asker = waiting.pop()
        if asker in seen:
            continue
        seen.add(asker)
        for need in _needs(packages, *asker):
            name = str(canonicalize_name(need.name))
            if name not in packages or not _in(packages[name].version, need.specifier):
                unmet[name].append((asker[0], need))
            else:
                waiting.append((name, frozenset(need.extras)))
    for name, asked in unmet.items():
        finding = _unfit(packages, name, asked)
        # else pip may replace JAX, and its plugins would not fit any more
        if name in BUILT_ON_JAX and "jax" in packages and "jax" not in unmet:
            mend = f'{finding.mend} "jax=={packages["jax"].version}"'
            finding = finding._replace(mend=mend)
        elif name == "jax" and name in packages and all(who in BUILT_ON_JAX for who, _ in asked):
            ours = {need.name: need for need in _needs(packages, OURS, ())}
            others = [f'"{who}{ours[who].specifier}"' for who, _ in asked if who in ours]
            mend = f'pip install {" ".join(others)} "jax=={packages["jax"].version}"'
            finding = finding._replace(mend=mend)
        yield finding


def _unfit(
    packages: Mapping[str, Package], name: str, asked: Sequence[tuple[str, Requirement]]
) -> Finding:
    """A package that is missing, or in a version that those who need it do not take."""
    wanted = lists.some(
        [
            f"{asker} {packages[asker].version} takes {need.name}{need.specifier}"
            for asker, need in asked
        ],
        most=2,
    )
    there = packages[name].version if name in packages else "none"
    both = ",".join(sorted({str(part) for _, need in asked for part in need.specifier}))
    extras = ",".join(sorted({extra for _, need in asked for extra in need.extras}))
    mend = f'pip install "{asked[0][1].name}{f"[{extras}]" * bool(extras)}{both}"'
    if name == "jaxlib" and "jax" in packages:
        mend = f'pip install "jax=={packages["jax"].version}" "jaxlib{both}"'
    return Finding("error", f"{wanted}, and {there} is installed", mend)


def _needs(
    packages: Mapping[str, Package], name: str, extras: Collection[str]
) -> Iterator[Requirement]:
    for line in packages[name].requires if name in packages else ():
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras or [""]):
            yield need


def _unfit_plugins(packages: Mapping[str, Package]) -> Iterator[Finding]:
    """Plugins that are not of jax's version, or whose own libraries are not of theirs."""
    for plugin in PLUGINS:
        if plugin not in packages:
            continue
        extra = plugin.removeprefix("jax-").removesuffix("-plugin").removeprefix("lib")
        for need in _needs(packages, "jax", (extra, f"{extra}-local")):
            other = canonicalize_name(need.name)
            if other in packages and not _in(packages[other].version, need.specifier):
                version = packages["jax"].version
                mend = f'pip install --upgrade "jax[{extra}]=={version}"'
                yield _unfit(packages, other, [("jax", need)])._replace(mend=mend)
        # CUDA may lie elsewhere (cuda12-local): what is not installed is not missed
        for need in _needs(packages, plugin, ("", "with-cuda")):
            other = canonicalize_name(need.name)
            if other in packages and not _in(packages[other].version, need.specifier):
                yield _unfit(packages, other, [(plugin, need)])


def reinstall(error: BaseException) -> str:
    """The command that installs anew what an error was raised in; "" if that is no library."""
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = [name for name in frames if not name.startswith("importlib")][-1]
    if isinstance(error, ImportError) and error.name:
        module = error.name
    top = module.partition(".")[0]
    missing = [top] if isinstance(error, ModuleNotFoundError) else []
    names = metadata.packages_distributions().get(top, missing) if top != "otseg_jax" else []
    return " && ".join(f"pip install --force-reinstall --no-deps {_exact(n)}" for n in {*names})


def _exact(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f'"{name}=={metadata.version(name)}"'
    return name
