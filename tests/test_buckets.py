"""Buckets: the real client of S3 against a server on this machine, which fails when told to."""

import own_data
import pytest
import small
from bucket_server import BUCKET

from otseg_jax import buckets, build
from otseg_jax.data import splits
from otseg_jax.prepare import prepare

RECORDS = f"{BUCKET}/records"
PLACE = "folder/1.0.0"


@pytest.fixture
def files(tmp_path, server):
    """Data of one's own, of which there are records in the bucket."""
    for split in ("train", "val"):
        own_data.write(tmp_path / "files", split=split)
    told = prepare("folder", tmp_path / "files", RECORDS)
    assert f"--config.data.root={RECORDS} reads them" in told
    return tmp_path / "files"


def opened(split="train"):
    options = small.settings(**{"data.dataset": "folder", "data.root": RECORDS})
    return build.open_split(options, split)


def same(split, files):
    wanted = splits.open_split("folder", files, split.split)
    for found, example in zip(split, wanted, strict=True):
        assert found["name"] == example["name"]
        assert (found["image"] == example["image"]).all()
        assert (found["label"] == example["label"]).all()


def test_records_are_copied_once(server, files, tmp_path):
    before = len(server.asked)
    same(opened(), files)
    asked = server.asked[before:]
    assert sum("array_record" in line for line in asked) == 1
    assert not any("-val." in line for line in asked)  # nobody wants it yet
    same(opened("val"), files)
    before = len(server.asked)
    same(opened(), files)
    same(opened("val"), files)
    assert not any(PLACE in line for line in server.asked[before:])
    # what was changed here, or is gone, comes again
    place = tmp_path / "cache/s3/bucket/records" / PLACE
    shards = sorted(place.glob("*.array_record-*"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[1].unlink()
    same(opened(), files)
    same(opened("val"), files)
    assert not list(place.glob(".*.part"))


def test_records_that_were_changed_are_copied_again(server, files, tmp_path):
    assert len(opened()) == 2
    bucket = buckets.Copy(RECORDS)
    for name in [*bucket.names(PLACE)]:
        bucket_remove(f"{RECORDS}/{PLACE}/{name}")
    other = own_data.write(tmp_path / "other", (own_data.MASK,) * 3)
    prepare("folder", other, RECORDS, ["train"])
    same(opened(), other)
    with pytest.raises(FileNotFoundError, match=r"holds no split 'val', only train: python -m"):
        opened("val")


def bucket_remove(address):
    splits.paths.resolve(address).unlink()


def test_a_server_that_fails_for_a_while(server, files, caplog):
    left = iter(range(3))
    server.refuse = lambda asked: "array_record" in asked and next(left, None) is not None
    same(opened(), files)
    assert "Service Unavailable; again in 0.01 s" in caplog.text
    assert next(left, None) is None


def test_a_server_that_fails_for_good_and_is_mended(server, files, tmp_path):
    server.refuse = lambda asked: "array_record" in asked
    line = r"records.* cannot be reached \(.*Service Unavailable.*: the same command goes on"
    with pytest.raises(buckets.Unreachable, match=line):
        opened()
    place = tmp_path / "cache/s3/bucket/records" / PLACE
    assert (place / "features.json").is_file()
    assert not list(place.glob("*array_record*"))
    assert not list(place.glob(".*.part"))
    server.refuse = lambda asked: False
    before = len(server.asked)
    same(opened(), files)
    assert sum(PLACE in line for line in server.asked[before:]) == 1  # the rest was there


def test_files_are_not_read_from_a_bucket(server, files):
    bucket = splits.paths.resolve(f"{BUCKET}/voc")
    (bucket / "JPEGImages/1.jpg").write_bytes(b"")
    line = r"s3://bucket/voc holds JPEGImages, and no records of voc12; .*jax\.prepare voc12"
    with pytest.raises(FileNotFoundError, match=line):
        splits.open_split("voc12", f"{BUCKET}/voc", "val")
    with pytest.raises(FileNotFoundError, match="s3://other/voc holds nothing, and no records"):
        splits.open_split("voc12", "s3://other/voc", "val")
