"""The doctor finds what is wrong, and what it says mends it: each command is run, or done on
a list of packages where it would install something."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_data
import pytest
from absl import flags
from own_data import MASK
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from otseg_jax import build, cli
from otseg_jax.checkpoints import pretrained, restore
from otseg_jax.convert import convert
from otseg_jax.convert.hints import Hints
from otseg_jax.data import inspect
from otseg_jax.doctor import dataset, devices, findings, model, photos, versions
from otseg_jax.doctor.devices import Hardware
from otseg_jax.doctor.versions import Package

INSTALLED, _ = versions.installed()


def bad(found):
    """What is worth a warning, or worse."""
    return [finding for finding in found if finding.severity in ("warning", "error")]


def shell(line, folder):
    """Run a command as a person would who has this Python on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---- versions


def other(**changed):
    """What is installed here, in other versions: jaxlib="0.9.0"; None takes a package away."""
    packages = dict(INSTALLED)
    for name, version in changed.items():
        name = name.replace("_", "-")
        if version is None:
            del packages[name]
        else:
            packages[name] = Package(version, packages.get(name, Package("")).requires)
    return packages


def mended(packages, mend):
    """What is installed once pip has done what a mend says."""
    packages = dict(packages)
    for step in mend.split("; "):
        if "uninstall" in step:
            for name in step.split("--yes ")[1].split():
                packages.pop(name, None)
            continue
        needs = [Requirement(text) for text in re.findall(r'"([^"]+)"', step)]
        pins = {need.name: str(need.specifier)[2:] for need in needs if "==" in str(need)}
        for need in needs:
            wanted = [need]
            for line in INSTALLED["jax"].requires if need.extras else ():
                part = Requirement(line)
                if part.marker and any(part.marker.evaluate({"extra": e}) for e in need.extras):
                    wanted.append(part)
            for one in wanted:
                name = str(canonicalize_name(one.name))
                here = INSTALLED.get(name, Package("1"))
                bounds = [bound.version.removesuffix(".*") for bound in one.specifier]
                known = [here, *(Package(bound) for bound in bounds)]
                packages[name] = next(
                    package
                    for package in known
                    if one.specifier.contains(package.version, prereleases=True)
                    and all(
                        line.specifier.contains(pins.get(line.name, ""), prereleases=True)
                        for line in map(Requirement, package.requires)
                        if line.name in pins
                    )
                )
    return packages


@pytest.mark.core
def test_what_is_installed_here_fits():
    (about,) = versions.check(INSTALLED)
    assert about.severity == "ok"
    assert f"jax {INSTALLED['jax'].version}" in about.what


JAX = INSTALLED["jax"].version


@pytest.mark.parametrize(
    ("changed", "what", "mend"),
    [
        ({"jaxlib": "0.4.0"}, "and 0.4.0 is installed", f'pip install "jax=={JAX}" "jaxlib<'),
        ({"jaxlib": "9.0"}, "jax .* takes jaxlib", f'pip install "jax=={JAX}" "jaxlib<'),
        ({"jax_cuda12_plugin": "0.4.0"}, "takes jax-cuda12-plugin", f'"jax[cuda12]=={JAX}"'),
        ({"libtpu": "0.0.1"}, "takes libtpu==", f'"jax[tpu]=={JAX}"'),
        ({"flax": "0.6.0"}, "otseg-jax .* takes flax", f'"flax<0.13,>=0.11.2" "jax=={JAX}"'),
        (
            {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.11.2"},
            "flax 0.11.2 with jax 0.10.2: flax imports",
            'pip install "flax>=0.12.1" "jax==0.10.2"',
        ),
        (
            {"jax": "0.11.1", "jaxlib": "0.11.1", "flax": "0.12.8"},
            "flax .* with jax 0.11.1: .* class",
            "flax>=",
        ),
        ({"jax_metal": "0.1.1"}, "jax-metal 0.1.1 with jax", "pip uninstall --yes jax-metal"),
        ({"optax": None}, "otseg-jax .* takes optax.* and none is installed", 'pip install "optax'),
        ({"ml_dtypes": None}, "takes ml.dtypes.* and none is installed", 'pip install "ml'),
        ({"numpy": "1.26.4"}, "numpy>=2.0, .* more, and 1.26.4 is", 'pip install "numpy'),
    ],
)
def test_versions_that_do_not_fit_are_told_with_what_to_install(changed, what, mend):
    packages = other(**changed)
    about, *told = versions.check(packages)
    assert about.severity == "note"
    (found, *_) = [x for x in told if re.search(what, x.what) and x.severity == "error"]
    assert mend in found.mend
    # as one would: the first command, and again, until nothing is found
    for _ in range(4):
        if told:
            packages = mended(packages, told[0].mend)
            told = versions.check(packages)[1:]
    assert not told


def test_the_jax_of_a_runtime_is_kept():
    """Its plugins fit no other: what was put above it goes back."""
    packages = other(jax="0.7.2", jaxlib="0.7.2", flax="0.12.12", orbax_checkpoint="0.12.4")
    packages["flax"] = Package("0.12.12", ("jax>=0.11.1",))
    found = [x for x in versions.check(packages) if "flax 0.12.12 takes jax>=0.11.1" in x.what]
    assert found[0].mend == 'pip install "flax<0.13,>=0.11.2" "jax==0.7.2"'


def test_the_libraries_of_a_plugin_are_looked_at_where_they_are_installed():
    plugin = Package(JAX, ("nvidia-cudnn-cu12<10.0,>=9.8; extra == 'with-cuda'",))
    assert versions.check({**INSTALLED, "jax-cuda12-plugin": plugin})[1:] == []
    packages = {**INSTALLED, "jax-cuda12-plugin": plugin, "nvidia-cudnn-cu12": Package("9.1.0")}
    (finding,) = versions.check(packages)[1:]
    assert "takes nvidia-cudnn-cu12<10.0,>=9.8, and 9.1.0 is installed" in finding.what
    assert finding.mend == 'pip install "nvidia-cudnn-cu12<10.0,>=9.8"'


def environment(folder, *, files=()):
    """A folder of packages that comes before those of this environment."""
    for name, text in dict(files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"}


def doctor(env, *flags):
    done = subprocess.run(
        [sys.executable, "-m", "otseg_jax.doctor", "--json", *flags],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_it_runs_where_jax_cannot_be_imported(tmp_path, root):
    files = {
        "jax/__init__.py": "raise ImportError('jaxlib is broken')",
        "jaxlib-0.4.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: jaxlib\nVersion: 0.4.0\n",
        "jaxlib-0.5.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: jaxlib\nVersion: 0.5.0\n",
    }
    env = environment(tmp_path / "site", files=files)
    status, told = doctor(env, f"--root={root}", "--dataset=folder")
    assert status == 1
    by_part = {
        part: bad(findings.Finding(**finding) for finding in told[part])
        for part in ("versions", "devices", "dataset")
    }
    texts = " ".join(finding.what for finding in by_part["versions"])
    assert "takes jaxlib" in texts
    assert "holds jaxlib in the versions 0.4.0 and 0.5.0" in texts
    (imported,) = by_part["devices"]
    assert imported.what == "ImportError: jaxlib is broken"
    assert imported.mend == "the commands above, first"
    assert not by_part["dataset"]  # which needs no JAX


def test_what_an_error_was_raised_in_is_to_be_installed_anew():
    with pytest.raises(ValueError, match="at least one") as refused:
        np.concatenate([])
    exact = f'"numpy=={INSTALLED["numpy"].version}"'
    assert versions.reinstall(refused.value) in (
        "",
        f"pip install --force-reinstall --no-deps {exact}",
    )
    for line, name in (
        ("from numpy import nothing_of_this_name", exact),
        ("import nothing_of_this_name", "nothing_of_this_name"),
    ):
        with pytest.raises(ImportError) as refused:
            exec(line)
        assert versions.reinstall(refused.value).endswith(name)


# ---- devices


def test_products_are_right_and_timed():
    about, single, half, *_ = devices.look(Hardware(), seconds=0.02)
    assert about.what.startswith("cpu: ")
    assert single.what.startswith("float32: ")
    assert half.what.startswith("bfloat16: ")
    assert {about.severity, single.severity, half.severity} == {"ok"}


@pytest.mark.parametrize(
    ("name", "value"), [("XLA_FLAGS", "--no_such_flag"), ("JAX_PLATFORMS", "tpu")]
)
def test_it_outlives_what_ends_a_process_that_starts_jax(tmp_path, name, value):
    status, told = doctor({**environment(tmp_path), name: value})
    (finding,) = told["devices"]
    assert (status, told["errors"], finding["severity"]) == (1, 1, "error")
    assert finding["mend"] == f"unset {name}"


def test_an_accelerator_that_jax_overlooks_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "dev").mkdir()
    assert devices.hardware(tmp_path) == Hardware()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "sys/bus/pci/devices/a").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/a/vendor").write_text("0x1ae0\n")
    (tmp_path / "sys/bus/pci/devices/a/device").write_text("0x0063\n")
    there = devices.hardware(tmp_path)
    assert there == Hardware("/dev/nvidia0", "PCI device 0x0063 of Google")
    nvidia, tpu = devices.overlooked(there, {"cpu"}, {})
    assert nvidia.what == "JAX sees only cpu, and this machine has /dev/nvidia0"
    assert nvidia.mend == f'pip install --upgrade "jax[cuda12]=={JAX}"'
    assert tpu.mend == f'pip install --upgrade "jax[tpu]=={JAX}"'
    assert devices.overlooked(there, {"gpu", "tpu"}, {}) == []
    (hidden, _) = devices.overlooked(there, {"cpu"}, {"CUDA_VISIBLE_DEVICES": "-1"})
    assert hidden.mend == "unset CUDA_VISIBLE_DEVICES"
    for finding in devices.overlooked(there, {"cpu"}, {"JAX_PLATFORMS": "cpu"}):
        assert finding.mend == "unset JAX_PLATFORMS"


def test_nvidia_smi_is_asked(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 550.54.15'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.hardware(tmp_path).nvidia == "NVIDIA H100, 550.54.15"


# ---- data sets


@pytest.fixture
def root(tmp_path):
    """A small data set of one's own in order, whose photos all differ."""
    folder = tmp_path / "a data set"
    for split in ("train", "val"):
        own_data.write(folder, split=split)
        for i, path in enumerate(sorted((folder / "images" / split).iterdir())):
            Image.new("RGB", (4, 3), (i, len(split), 9)).save(path)
    return folder


def each(folder, change):
    """Change every mask: an array to an array, or to an image."""
    for path in sorted((folder / "labels").glob("*/*.png")):
        changed = change(np.asarray(Image.open(path)))
        (Image.fromarray(changed) if isinstance(changed, np.ndarray) else changed).save(path)


def classes(folder, *lines, header="name,split"):
    (folder / "classes.csv").write_text("\n".join([header, *lines]) + "\n")


def ids_from_1(folder):
    each(folder, lambda mask: np.where(mask < 255, mask + 1, 0).astype(np.uint8))


def grey_levels(folder):
    each(folder, lambda mask: np.where(mask < 255, mask * 100, mask).astype(np.uint8))


def foreground_of_255(folder):
    classes(folder, "background,seen", "cat,seen")
    each(folder, lambda mask: np.where(mask == 1, 255, 0).astype(np.uint8))


def grey_as_colour(folder):
    each(folder, lambda mask: Image.fromarray(mask).convert("RGB"))


def a_background_that_is_no_class(folder):
    classes(folder, "cat,seen", "dog,seen", "newt,seen", "owl,seen")
    each(folder, lambda _: np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 2, 0, 0]], np.uint8))


def scaled_masks(folder):
    for path in (folder / "images").glob("*/*.png"):
        Image.open(path).resize((8, 6)).save(path)


def turned_photos(folder):
    for path in sorted((folder / "images").glob("*/*.png")):
        photo = Image.open(path).transpose(Image.Transpose.ROTATE_90)
        mask = folder / "labels" / path.relative_to(folder / "images")
        Image.open(mask).transpose(Image.Transpose.ROTATE_90).save(mask)
        exif = Image.Exif()
        exif[photos.ORIENTATION] = 6
        photo.save(path.with_suffix(".jpg"), exif=exif, quality=100)
        path.unlink()


def another_size(folder):
    own_data.write(folder, [MASK] * 2 + [np.repeat(MASK, 3, axis=1)])
    for i, path in enumerate(sorted((folder / "images/train").iterdir())):
        Image.new("RGB", (4, 3), (i, 5, 9)).save(path)


def copies(folder):
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "train/0000.png", folder / kind / "train/0009.png")


def a_val_photo_in_train(folder):
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "val/0000.png", folder / kind / "train/0009.png")


def a_truncated_photo(folder):
    photo = folder / "images/train/0001.png"
    photo.write_bytes(photo.read_bytes()[:40])


def a_damaged_mask(folder):
    own_data.write(folder, [MASK] * 3)
    for i, path in enumerate(sorted((folder / "images/train").iterdir())):
        Image.new("RGB", (4, 3), (i, 5, 9)).save(path)
    (folder / "labels/train/0001.png").write_bytes(b"<html>")


def a_missing_mask(folder):
    own_data.write(folder, [MASK] * 3)
    for i, path in enumerate(sorted((folder / "images/train").iterdir())):
        Image.new("RGB", (4, 3), (i, 5, 9)).save(path)
    (folder / "labels/train/0001.png").unlink()


def copies_in_folders(folder):
    for kind in ("images", "labels"):
        for name in "ab":
            (folder / kind / "train" / name).mkdir()
            shutil.copy(folder / kind / "train/0000.png", folder / kind / "train" / name)


def masks_folder(folder):
    (folder / "labels").rename(folder / "masks")
    (folder / "images/val").rename(folder / "images/validation")


def splits_first(folder):
    for split in ("train", "val"):
        (folder / split).mkdir()
        for kind in ("images", "labels"):
            (folder / kind / split).rename(folder / split / kind)


@pytest.mark.parametrize(
    ("damage", "severity", "what"),
    [
        (ids_from_1, "error", "2 of the 2 masks hold values that no class has, 3"),
        (grey_levels, "error", "grey levels, no ids"),
        (foreground_of_255, "warning", "255 stands for no class: write 1 for it"),
        (grey_as_colour, "error", "its channels are equal"),
        (a_background_that_is_no_class, "warning", "if 0 is the background, 'cat' and all after"),
        (scaled_masks, "error", "2 of 2 masks are the whole photo in another size"),
        (turned_photos, "error", "2 of 2 masks lie as the photo does before its EXIF data"),
        (another_size, "error", "1 of 3 masks have another size and shape"),
        (copies, "warning", "1 photos are copies of others"),
        (copies_in_folders, "warning", "2 photos are copies of others"),
        (a_missing_mask, "error", "1 of 6 photos and masks are missing"),
        (a_val_photo_in_train, "error", "1 photos to train on are in val too, byte for byte"),
        (a_truncated_photo, "error", "0001.png cannot be used"),
        (a_damaged_mask, "error", "0001.png cannot be used"),
        (masks_folder, "error", "labels/train holds no masks"),
        (splits_first, "error", "looked for images/train/ and labels/train/"),
    ],
)
def test_what_is_wrong_is_found_and_its_command_mends_it(root, damage, severity, what):
    assert bad(dataset.look("folder", root, every=True)) == []
    damage(root)
    told = bad(dataset.look("folder", root, every=True))
    assert [f for f in told if what in f.what and f.severity == severity], told
    commands = [f.mend for f in told if f.mend and f.mend != "the command above"]
    for line in commands:
        shell(line, root)
    assert commands
    told = bad(dataset.look("folder", root, every=True))
    # what is of no class now is not of the last one either
    assert [f for f in told if "there is no pixel of" not in f.what] == []


@pytest.mark.parametrize(
    ("every", "severities", "told"),
    [
        (True, ["warning", "note"], "no pixel of dog"),
        (False, ["note", "note"], "in what was read there is no pixel of dog; --all reads all"),
    ],
)
def test_classes_without_a_pixel_are_named(root, monkeypatch, every, severities, told):
    monkeypatch.setattr(inspect, "SAMPLE", 1)
    each(root, lambda mask: np.where(mask == 1, 255, mask).astype(np.uint8))
    found = [f for f in dataset.look("folder", root, every=every) if told in f.what]
    assert [finding.severity for finding in found] == severities
    assert [finding.what.split(":")[0] for finding in found] == ["train", "val"]


# ---- data sets as they are published, real photos


def voc(samples, folder):
    source, home = samples / "voc2012_mini/VOCdevkit/VOC2012", folder / "VOC2012"
    for split, count in (("train", 6), ("aug", 3), ("val", 6)):
        listed = source / f"ImageSets/Segmentation/{split}.txt"
        names = listed.read_text().split()[:count]
        (home / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (home / "ImageSets/Segmentation" / listed.name).write_text("\n".join(names) + "\n")
        for name in names:
            for file in source.glob(f"*/{name}.*"):
                (home / file.parent.name).mkdir(exist_ok=True)
                shutil.copy(file, home / file.parent.name)
    return home


def coco(samples, folder):
    return shutil.copytree(samples / "cocostuff_sample21/MSCOCO", folder / "MSCOCO")


def ade(samples, folder):
    return shutil.copytree(
        samples / "ade_sample3/ADEChallengeData2016", folder / "ADEChallengeData2016"
    )


def cityscapes(_, folder):
    for split in ("train", "val"):
        for kind, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            (folder / kind / split / "ulm").mkdir(parents=True)
            picture = np.full((4, 4) + (3,) * (kind != "gtFine"), len(split), np.uint8)
            Image.fromarray(picture).save(folder / kind / split / f"ulm/a_{end}.png")
    every_mask(folder, "gtFine", lambda _: np.arange(16, dtype=np.uint8).reshape(4, 4) + 7)
    return folder


def every_mask(home, where, change):
    for path in sorted(home.glob(f"{where}*/**/*.png")):
        changed = change(np.asarray(Image.open(path)))
        (Image.fromarray(changed) if isinstance(changed, np.ndarray) else changed).save(path)


def reduced_voc(home):
    every_mask(home, "SegmentationClass", lambda mask: np.where(mask % 255 > 0, mask - 1, 255))


def reduced_ade(home):
    every_mask(home, "annotations", lambda mask: np.where(mask > 0, mask - 1, 255).astype(np.uint8))


def in_colours(home):
    for path in sorted(home.glob("SegmentationClass*/*.png")):
        Image.open(path).convert("RGB").save(path)


def val_in_train(home):
    lists = home / "ImageSets/Segmentation"
    with (lists / "train.txt").open("a") as opened:
        opened.write((lists / "val.txt").read_text())


def no_aug(home):
    (home / "ImageSets/Segmentation/aug.txt").unlink()


def raw_alone(home):
    for path in home.glob("annotations/*/*_labelTrainIds.png"):
        path.unlink()


def raw_as_train_ids(home):
    for path in home.glob("annotations/*/*_labelTrainIds.png"):
        path.with_name(path.name.replace("_labelTrainIds", "")).rename(path)


def one_too_high(home):
    raw = [*home.glob("annotations/*/[0-9]*[0-9].png")]
    for path in raw:
        path.unlink()
    every_mask(home, "annotations", lambda mask: mask + np.uint8(1))


def one_too_high_to_the_last(home):
    one_too_high(home)
    every_mask(home, "annotations", lambda mask: np.vstack([mask[1:], 0 * mask[:1] + 171]))


def train_ids_named_ids(home):
    every_mask(home, "gtFine", lambda mask: np.where(mask < 19, mask, 255).astype(np.uint8))


def test_the_root_that_was_meant_is_named(root):
    for given in (root.parent, root / "images", root / "images/train"):
        told = bad(dataset.look("folder", given, every=True))
        assert told[0].mend == f"--root={root}, and in a training --config.data.root={root}"
        assert {finding.severity for finding in told} == {"error"}


def test_a_contact_sheet_shows_photos_and_masks(root, tmp_path):
    own_data.write(root, [np.repeat(MASK, 2, axis=1)], split="val")
    (root / "images/train/0000.png").write_bytes(b"no picture")
    found = dataset.look("folder", root, every=False, contact_sheet=tmp_path / "sheet.png")
    assert "sheet.png: 3 photos and masks" in found[-1].what
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    half = sheet.shape[1] // 2
    # the newest photo of val is all of its one colour, on the left and nowhere on the right
    (wanted,) = np.unique(
        np.asarray(Image.open(root / "images/val/0000.png")).reshape(-1, 3), axis=0
    )
    assert (sheet[:, :half] == wanted).all(-1).sum() > 1000
    assert not (sheet[:, half:] == wanted).all(-1).any()
    nothing = dataset.look("folder", tmp_path / "no", every=False, contact_sheet=tmp_path / "b.png")
    assert "was not written" in nothing[-1].what
    assert not (tmp_path / "b.png").exists()


# ---- models


def test_the_packaged_model_is_described_tried_and_usable():
    told = model.look("shapes")
    assert bad(told) == []
    text = " ".join(finding.what for finding in told)
    assert "trained inductive on shapes, 20 classes: plain red disc" in text
    assert "tokenizer fits" in text
    assert "a small picture was segmented" in text
    lines = [finding.mend for finding in told if finding.mend]
    predicted, evaluated, transductive = lines
    assert predicted.endswith("-m otseg_jax.predict PHOTO --model=shapes")
    for line in (evaluated, transductive):
        argv = shlex.split(line)[2:]
        _, config = cli.parse(argv, flags_of_main())
        options = build.settings_of(config)
        assert restore.find(options.init_from).spec.dataset == options.data.dataset == "shapes"
        assert build.open_clip(options).clip.fingerprint


def flags_of_main():
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "", flag_values=values)
    for name in ("workdir", "mode"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    return values


def test_a_model_without_its_tokenizer_is_told_and_mended(tmp_path):
    found = pretrained.read(model.SHIPPED_AT)
    pretrained.write(tmp_path / "m", found)
    shutil.rmtree(tmp_path / "m/tokenizer")
    (finding,) = bad(model.look(str(tmp_path / "m")))
    assert finding.what.startswith("only its own classes can be asked for: no tokenizer beside")
    argv = shlex.split(finding.mend)[3:]
    convert(*argv[:2], hints=Hints(tokenizer=argv[2].partition("=")[2]))
    assert bad(model.look(argv[1])) == []


FLAGS = {"--config.data.augmented=False", "--config.data.raw_ids=True"}


@pytest.mark.parametrize(
    ("name", "make", "damage", "severity", "what"),
    [
        ("voc12", voc, reduced_voc, "warning", "'reduce zero' was done to the files"),
        ("voc21", voc, reduced_voc, "warning", "'reduce zero' was done to the files"),
        ("voc12", voc, in_colours, "error", "colour mask"),
        ("voc12", voc, val_in_train, "error", "holds out"),
        ("voc12", voc, no_aug, "warning", "found no "),
        ("ade20k", ade, reduced_ade, "warning", "'reduce zero' was done to the files"),
        ("coco_stuff", coco, raw_alone, "warning", "holds raw ids alone"),
        ("coco_object", coco, raw_as_train_ids, "error", "171..181 are raw ids"),
        ("coco_stuff", coco, one_too_high, "warning", "and every photo of COCO has some of no"),
        ("coco_stuff", coco, one_too_high_to_the_last, "error", "that no class has, 171 ("),
        ("cityscapes", cityscapes, train_ids_named_ids, "warning", "train ids, 0..18 and 255"),
    ],
)
def test_published_data_that_came_out_wrong(tmp_path, photos, name, make, damage, severity, what):
    home = make(photos, tmp_path)

    def told():
        found = bad(dataset.look(name, home, every=True))
        # samples are small, and of ADE20K there is the validation half
        usual = "published split|there is no pixel of|^train: .*images/training"
        return [finding for finding in found if not re.search(usual, finding.what)]

    assert told() == []
    before = {path: np.asarray(Image.open(path)) for path in home.glob("Seg*/*.png")}
    damage(home)
    found = told()
    assert any(what in f.what and f.severity == severity for f in found), found
    lines = {finding.mend for finding in found} - {"the command above"}
    flags = {line for line in lines if line in FLAGS}
    for line in lines - flags:
        shell(line, home)
    # what is read with a flag needs it still; raw ids that are named so need it from now on
    left = {finding.mend for finding in told()} - {"the command above"}
    assert left <= FLAGS
    assert flags <= left
    assert flags or not left or damage is raw_as_train_ids
    if damage is in_colours:
        for path, mask in before.items():
            np.testing.assert_array_equal(np.asarray(Image.open(path)), mask)
