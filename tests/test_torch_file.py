"""Torch's zip files: what torch writes is read, what is made to harm is refused and never run."""

import argparse
import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import openai_clip
import pytest
from oracles import torch

from otseg_jax.weights import torch_file, torch_write

nn = torch.nn


def saved(path: Path, value, **options) -> Path:
    torch.save(value, path, **options)
    return path


def same(got, want) -> None:
    if isinstance(want, torch.Tensor):
        want = want.detach()
        kept = want.float().numpy() if want.dtype == torch.bfloat16 else want.numpy()
        assert str(got.dtype) == str(want.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(got.astype(kept.dtype), kept)
        assert got.shape == tuple(want.shape)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key, value in want.items():
            same(got[key], value)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            same(a, b)
    else:
        assert got == want
        assert type(got) is type(want)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ],
)
def test_every_dtype(tmp_path, dtype):
    tensor = (torch.arange(24) % 2 == 0 if dtype == torch.bool else torch.arange(24)).to(dtype)
    same(
        torch_file.read(saved(tmp_path / "a.pt", tensor.reshape(2, 3, 4))), tensor.reshape(2, 3, 4)
    )


def test_strides_offsets_and_shared_storages(tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = [
        base,
        base.permute(2, 0, 1),
        base[1:, ::2, 3],
        base[2, 3, 4],
        base[:0],
        torch.zeros(()),
    ]
    same(torch_file.read(saved(tmp_path / "a.pt", views)), views)


def test_containers_numbers_and_strings(tmp_path):
    numbers = [0, 1, -1, 255, 256, -(2**31), 2**40, -(2**70), 1.5, True, False, None]
    value = {
        "meta": {"names": ["é", "", "x" * 300], "tuple": (1, (2,), ()), "numbers": numbers, 7: "k"},
        "state_dict": OrderedDict(a=torch.ones(2), b=OrderedDict(c=torch.zeros(1))),
        "size": torch.Size([2, 3]),
    }
    for protocol in (2, 3, 4):
        path = saved(tmp_path / f"{protocol}.pt", value, pickle_protocol=protocol)
        got = torch_file.read(path)
        same(got, {**value, "size": (2, 3)})


def test_a_training_checkpoint_of_torch(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    state["meta"] = {
        "best": np.float64(0.25),
        "epoch": np.int64(3),
        "p": nn.Parameter(torch.ones(2)),
    }
    got = torch_file.read(saved(tmp_path / "a.pth", state))
    same(got["state_dict"], dict(model.state_dict()))
    same(got["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert got["meta"]["best"] == 0.25
    assert got["meta"]["epoch"] == 3
    same(got["meta"]["p"], torch.ones(2))


def test_a_scripted_module_is_its_attributes(tmp_path):
    model = openai_clip.make()
    path = tmp_path / "model.pt"
    openai_clip.script(model, path)
    got = torch_file.read(path)
    assert got["input_resolution"] == 32
    for name, tensor in model.state_dict().items():
        value = got
        for part in name.split("."):
            value = value[part]
        same(value, tensor)


def test_what_is_written_loads_into_torch_and_back(tmp_path):
    rng = np.random.default_rng(0)
    value = {
        "meta": {"names": ["a", "é"], "n": (1, -5, 2**40), "x": 0.5, "none": None, "yes": True},
        "state_dict": {
            "matrix": rng.normal(size=(3, 4)).astype(np.float32),
            "transposed": rng.normal(size=(3, 4)).astype(np.float32).T,
            "half": rng.normal(size=5).astype(np.float16),
            "brain": rng.normal(size=5).astype(ml_dtypes.bfloat16),
            "scalar": np.array(2.5, np.float64),
            "empty": np.zeros((0, 3), np.int64),
        },
    }
    torch_write.write(tmp_path / "a.pth", value)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["meta"] == value["meta"]
    got = torch_file.read(tmp_path / "a.pth")
    assert got["meta"] == value["meta"]
    assert list(loaded["state_dict"]) == list(got["state_dict"]) == list(value["state_dict"])
    for name, array in value["state_dict"].items():
        np.testing.assert_array_equal(got["state_dict"][name], array)
        same(got["state_dict"][name], loaded["state_dict"][name])
        assert loaded["state_dict"][name].is_contiguous()
    torch_write.write(tmp_path / "b.pth", value)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize("value", [{1, 2}, np.zeros(2, np.complex64), {"a": object()}])
def test_what_torch_cannot_hold_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="torch"):
        torch_write.write(tmp_path / "a.pth", value)


def archive(path: Path, code: bytes, entries=(), *, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", code)
        for name, data in entries:
            file.writestr(name, data)
    return path


class Command:
    """What an attacker pickles: it would make a file when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (eval, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_is_named_and_not_run(tmp_path, protocol):
    trace = tmp_path / "executed"
    code = pickle.dumps({"state_dict": [1, {"x": Command(trace)}]}, protocol)
    path = archive(tmp_path / "evil.pth", code)
    with pytest.raises(ValueError, match=r"evil\.pth") as error:
        torch_file.read(path)
    assert not trace.exists()
    if protocol >= 1:  # protocol 0 is text, which torch never writes: its opcodes are refused
        assert "nothing of it was executed: it asks for " in str(error.value)
        assert "builtins.eval" in str(error.value) or "__builtin__.eval" in str(error.value)


def test_everything_refused_is_told_at_once(tmp_path):
    code = b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00true\x85Rcsubprocess\nPopen\n)Rcnumpy\nload\nt."
    with pytest.raises(ValueError, match="is refused") as error:
        torch_file.read(archive(tmp_path / "evil.pth", code))
    for name in ("os.system (byte 3)", "subprocess.Popen", "numpy.load"):
        assert name in str(error.value)


class Beside:
    """An object that a training program saves beside the weights; it counts what is run of it."""

    ran: list = []  # noqa: RUF012

    def __init__(self):
        self.history = np.arange(3.0)

    def __setstate__(self, state):
        Beside.ran.append(state)

    def __new__(cls, *_):
        Beside.ran.append(cls)
        return super().__new__(cls)


def test_objects_beside_the_weights_are_skipped_and_never_made(tmp_path, caplog):
    caplog.set_level("INFO")
    weights = OrderedDict(a=torch.ones(2), b=torch.arange(3))
    beside = {"log": Beside(), "args": argparse.Namespace(x=1), "at": Path("x"), "n": np.ones(3)}
    for protocol in (2, 3, 4):
        path = tmp_path / f"{protocol}.pth"
        saved(path, {"state_dict": weights, **beside, "kind": Beside}, pickle_protocol=protocol)
        Beside.ran.clear()
        caplog.clear()
        same(torch_file.read(path)["state_dict"], weights)
        assert not Beside.ran, "an object of the file was made"
        (line,) = caplog.messages
        for name in ("Beside", "argparse.Namespace", "Path", "numpy"):
            assert name in line


def test_a_call_is_refused_where_an_object_would_be_skipped(tmp_path):
    trace = tmp_path / "executed"
    path = saved(tmp_path / "a.pth", {"state_dict": {"a": torch.ones(1)}, "log": Command(trace)})
    with pytest.raises(ValueError, match=r"it asks for (builtins|__builtin__)\.eval"):
        torch_file.read(path)
    # the same function as the class of an object: Python's own unpickler would not call it either
    code = b"\x80\x02}X\x01\0\0\0acos\nsystem\nX\x04\0\0\0true\x85\x81s."
    torch_file.read(archive(tmp_path / "b.pth", code))
    assert not trace.exists()


def test_objects_of_other_classes_are_refused(tmp_path):
    path = saved(tmp_path / "model.pth", {"model": nn.Linear(2, 2), "x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        torch_file.read(path)
    sparse = saved(tmp_path / "sparse.pth", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="_rebuild_sparse_tensor"):
        torch_file.read(sparse)


def tensor_code(*, count=4, offset=0, shape=(2, 2), strides=(2, 1), kind="FloatStorage") -> bytes:
    """A pickle of one tensor, with whatever sizes it claims."""

    def number(n):
        data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def row(numbers):
        return b"(" + b"".join(map(number, numbers)) + b"t"

    text = [b"X" + struct.pack("<I", len(s)) + s for s in (b"storage", b"0", b"cpu")]
    storage = b"(" + text[0] + b"ctorch\n" + kind.encode() + b"\n" + text[1] + text[2]
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(count) + b"tQ"
    return b"\x80\x02" + call + number(offset) + row(shape) + row(strides) + b"\x89)tR."


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"count": 2**40}, "a/data/0 is 16 bytes, its tensors want 4398046511104"),
        ({"count": 5}, "is 16 bytes, its tensors want 20"),
        ({"shape": (2**40, 2)}, "does not lie in its storage of 4 numbers"),
        ({"shape": (2**30, 2**30), "strides": (0, 0)}, "does not lie in its storage"),
        ({"offset": 1}, "does not lie in its storage"),
        ({"offset": -1}, "does not lie in its storage"),
        ({"strides": (-2, 1)}, "does not lie in its storage"),
        ({"strides": (2, 2)}, "does not lie in its storage"),
        ({"shape": (-2, 2)}, "does not lie in its storage"),
        ({"strides": (2,)}, "damaged or of another kind"),
        ({"kind": "QInt8Storage"}, "it asks for torch.QInt8Storage"),
    ],
)
def test_sizes_that_lie(tmp_path, sizes, message):
    path = archive(tmp_path / "a.pth", tensor_code(**sizes), [("a/data/0", bytes(16))])
    with pytest.raises(ValueError, match=re.escape(message)):
        torch_file.read(path)
    honest = archive(tmp_path / "b.pth", tensor_code(), [("a/data/0", bytes(16))])
    np.testing.assert_array_equal(torch_file.read(honest), np.zeros((2, 2), np.float32))


def test_zip_bombs(tmp_path):
    million = bytes(1 << 20)
    entries = [("a/data/0", million)]
    path = archive(
        tmp_path / "a.pth", tensor_code(count=1 << 18), entries, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 3000
    with pytest.raises(ValueError, match=r"data\.pkl is compressed, as torch never writes it"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", tensor_code(count=1 << 18))
        file.writestr("a/data/0", million, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="data/0 is compressed"):
        torch_file.read(path)


def test_overlapping_entries_larger_than_the_file(tmp_path):
    whole = archive(tmp_path / "a.pth", tensor_code(), [("a/data/0", bytes(16))]).read_bytes()
    broken = bytearray(whole)
    position = broken.rindex(b"PK\x01\x02")
    struct.pack_into("<II", broken, position + 20, 1 << 30, 1 << 30)
    (tmp_path / "b.pth").write_bytes(broken)
    with pytest.raises(ValueError, match="its entries overlap"):
        torch_file.read(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # a memo at index 2³¹ costs a table of 16 GB in C
        (b"\x80\x02]r\xff\xff\xff\x7f.", r"opcode LONG_BINPUT \(byte 3\)"),
        (b"\x80\x02h\x07.", "damaged or of another kind"),
        (b"\x80\x02e.", "damaged or of another kind"),
        (b"\x80\x02}K\x01s.", "damaged or of another kind"),
        (b"\x80\x02K\x01)R.", "'int' object is not callable"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
        (  # a state for one of our own functions, which could change its defaults
            b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}X\x0c\0\0\0__defaults__K\x01\x85s\x86b.",
            "a state or a reference of a kind",
        ),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02K\x01", "damaged or of another kind"),
        (b"", "damaged or of another kind"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged or of another kind"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "damaged or of another kind"),
    ],
)
def test_pickles_made_to_harm(tmp_path, code, message):
    path = archive(tmp_path / "a.pth", code)
    with pytest.raises(ValueError, match=rf"a\.pth.*{message}"):
        torch_file.read(path)


def test_random_pickles_end_in_one_clear_error(tmp_path):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(3), "b": torch.zeros(2, 2)}}, buffer)
    with zipfile.ZipFile(buffer) as file:
        name = next(n for n in file.namelist() if n.endswith("data.pkl"))
        code = file.read(name)
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(400):
        broken = bytearray(code)
        for position in rng.integers(len(code), size=rng.integers(1, 4)):
            broken[position] = rng.integers(256)
        path = archive(tmp_path / "a.pth", bytes(broken), [("a/data/0", bytes(12))])
        try:
            torch_file.read(path)
        except ValueError as error:  # anything else fails the test
            refusals.append(str(error))
    assert len(refusals) > 200
    assert all(str(path) in message for message in refusals)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_files_cut_short(tmp_path, share):
    whole = saved(tmp_path / "a.pth", {"a": torch.ones(1000)}).read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"a\.pth is (damaged or cut short|not a file of torch)"):
        torch_file.read(tmp_path / "a.pth")


def test_a_flipped_bit_is_found(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": torch.ones(1000)})
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.ones(10, np.float32).tobytes()) + 7] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"a\.pth is damaged.*CRC"):
        torch_file.read(path)


def test_legacy_files_are_told_apart(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before version 1\.6, which is not read.*torch\.save"):
        torch_file.read(path)


def test_other_zips_and_missing_parts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("photo.jpg", b"x")
    with pytest.raises(ValueError, match=r"without torch's data\.pkl; it holds photo\.jpg"):
        torch_file.read(tmp_path / "a.zip")
    path = archive(tmp_path / "a.pth", tensor_code())
    with pytest.raises(ValueError, match="a/data/0 is not in the archive"):
        torch_file.read(path)
    path = archive(tmp_path / "b.pth", tensor_code(), [("a/byteorder", b"big")])
    with pytest.raises(ValueError, match="big-endian"):
        torch_file.read(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth is not there"):
        torch_file.read(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth is not a file of torch\.save"):
        torch_file.read(tmp_path / "text.pth")
