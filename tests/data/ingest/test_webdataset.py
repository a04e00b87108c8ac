"""Tar archives of samples, whole and broken in every way."""

import bz2
import gzip
import io
import json
import re
import tarfile
import tracemalloc

import fsspec
import numpy as np
import pytest

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage
from nextflow_jax.data.ingest import webdataset
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.errors import UserError
from tests.data.ingest.conftest import encode_picture, picture_bomb

PICTURES = [encode_picture(seed, (20, 24 + seed)) for seed in range(12)]


def tar_of(members, **options):
    """A tar of (name or TarInfo, bytes) members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def pair(name, seed=0, text=b"words"):
    return [(f"{name}.png", PICTURES[seed]), (f"{name}.txt", text)]


def pairs(count, first=0):
    return [member for number in range(first, first + count) for member in pair(f"{number:03}", number % 12)]


def read(folder, data, name="a.tar", **settings):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    config = SourceConfig(name="web", format="webdataset", paths=(f"{folder}/*",), **settings)
    (unit,) = webdataset.units(config)
    return list(webdataset.read(unit, config))


def shape(document):
    names = {data: number for number, data in enumerate(PICTURES)}
    return [names[one.data] if isinstance(one, RawImage) else one.text for one in document.segments]


def outcomes(found):
    return [one.reason if isinstance(one, Drop) else one.key.removeprefix("web/a.tar/") for one in found]


@pytest.mark.parametrize("name, pack", [("a.tar", bytes), ("a.tar.gz", gzip.compress), ("a.tgz", gzip.compress)])
def test_pairs(tmp_path, name, pack):
    members = [
        *pair("b/1", 1, b"\xef\xbb\xbfa cat\n"),
        ("./b/0.JPEG", encode_picture(3, format="JPEG")),
        ("b/0.caption", b"x"),
    ]
    found = read(tmp_path, pack(tar_of(members)), name)
    assert [one.key for one in found] == [f"web/{name}/b/1", f"web/{name}/b/0"]
    assert isinstance(found[0], RawDocument)
    assert shape(found[0]) == ["a cat", 1]
    assert found[1].segments[1].size == (24, 32)


def test_gzip_of_several_streams_is_read_to_its_end(tmp_path):
    data = tar_of(pairs(6))
    half = len(data) // 2
    found = read(tmp_path, gzip.compress(data[:half]) + gzip.compress(data[half:]), "a.tar.gz")
    assert len(found) == 6


def test_pictures_are_in_the_order_of_their_numbers(tmp_path):
    members = [(f"s.{number}.png", PICTURES[number]) for number in (10, 2, 0, 11)]
    members.append(("s.txt", b"words"))
    (found,) = read(tmp_path, tar_of(members), task="frames")
    assert shape(found) == ["words", 0, 2, 10, 11]
    (found,) = read(tmp_path, tar_of(members), task="edit")
    assert shape(found) == [0, 2, 10, "words", 11]


def test_fields_of_json(tmp_path):
    fields = {"text": "better words", "label": 3, "licence": "MIT", "source": "shop", "image": "elsewhere.png"}
    members = [
        *pair("s", 1),
        ("s.json", json.dumps(fields).encode()),
        ("s.cls", b"7"),
        ("s.npy", b"x"),
        (".hidden.png", b""),
    ]
    (found,) = read(tmp_path, tar_of(members))
    assert (shape(found), found.label, found.licence, found.source) == (["better words", 1], "3", "MIT", "shop")
    (found,) = read(tmp_path, tar_of([*pair("s", 1), ("s.cls", b"7\n"), ("s.json", b'{"caption": "c"}')]))
    assert (shape(found), found.label) == (["words", 1], "7")
    columns = (("text", "caption"),)
    (found,) = read(tmp_path, tar_of([*pair("s", 1), ("s.json", b'{"caption": "c"}')]), columns=columns)
    assert shape(found) == ["c", 1]


def test_other_forms_of_json(tmp_path):
    pictures = [("d/s.1.png", PICTURES[1]), ("d/s.2.png", PICTURES[2])]

    def one(**fields):
        return read(tmp_path, tar_of([*pictures, ("d/s.json", json.dumps(fields).encode())]))[0]

    assert shape(one(texts=["a", None, "b", None])) == ["a", 1, "b", 2]
    assert shape(one(texts=["a", None, None], images=[None, "s.2.png", "1.png"])) == ["a", 2, 1]
    segments = [{"text": "a", "role": "prompt", "loss": False}, {"image": "2.png", "role": "response"}]
    assert shape(one(task="text_to_image", segments=segments)) == ["a", 2]
    turns = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "a"}]
    assert shape(one(conversations=turns)) == [1, "or", 2, "?", "a"]
    assert one(texts=["a", None], images=[None, "3.png"]) == Drop("web/a.tar/d/s", "missing file")
    assert one(texts=["a", None], images=[None, 3]) == Drop("web/a.tar/d/s", "bad record")


def test_text_alone(tmp_path):
    data = tar_of([("a.txt", b"words"), *pair("b")])
    assert outcomes(read(tmp_path, data)) == ["missing file", "b"]
    (first, second) = read(tmp_path, data, task="text")
    assert (first.task, shape(first), shape(second)) == ("text", ["words"], ["words"])


REFUSED = {
    "empty": [("x.png", b""), ("x.txt", b"words")],
    "not an image": [("x.png", b"words"), ("x.txt", b"words")],
    "too large": [("x.png", picture_bomb()), ("x.txt", b"words")],
    "damaged": [("x.png", PICTURES[0][:20] + b"\0" * 30), ("x.txt", b"words")],
    "not utf-8": pair("x", 0, "gr\u00fcn".encode("latin-1")),
    "control characters": pair("x", 0, b"a\0b"),
    "too many bytes": pair("x", 0, b"x" * 60_000),
    "nested archive": [("x.tar", tar_of(pairs(2)))],
    "bad record": [("x.png", PICTURES[0]), ("x.json", b"[]")],
}
MORE = [
    ("bad record", [("x.png", PICTURES[0])]),
    ("bad record", [*pair("x"), *pair("x")]),
    ("bad record", pair("x", 0, b"")),
    ("not utf-8", [("x.png", PICTURES[0]), ("x.json", b'{"text": "\xff"}')]),
    ("nested archive", [("folder/x.TGZ", b"")]),
    ("nested archive", [("x.zip", b"PK")]),
    ("too many bytes", [(f"x.{number}.png", b"x" * 20_000) for number in range(3)]),
]


@pytest.mark.parametrize("reason, members", [*REFUSED.items(), *MORE])
def test_broken_samples_cost_only_themselves(tmp_path, reason, members):
    found = read(tmp_path, tar_of([*pair("before"), *members, *pair("z")]), max_bytes=50_000)
    assert len(found) == 3
    (dropped,) = [one for one in found if isinstance(one, Drop)]
    assert dropped.reason in (("damaged", "not an image") if reason == "damaged" else (reason,))
    assert re.match(r"web/a\.tar/(folder/)?x", dropped.key)


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        "/etc/x.png",
        "../x.png",
        "a/../../x.png",
        "..\\x.png",
        "\\\\host\\x.png",
        link("x.png", "/etc/passwd"),
        link("x.png", "before.png", tarfile.LNKTYPE),
        link("x.png", "", tarfile.FIFOTYPE),
        link("x.png", "", tarfile.CHRTYPE),
    ],
    ids=["absolute", "parent", "parent inside", "backslashes", "unc", "symlink", "hard link", "fifo", "device"],
)
def test_unsafe_members_are_refused(tmp_path, member):
    found = read(tmp_path, tar_of([*pair("before"), (member, b""), *pair("z")]))
    assert sorted(outcomes(found)) == ["before", "unsafe path", "z"]


def test_names_that_are_no_utf8_are_dropped_with_a_printable_key(tmp_path):
    data = tar_of(
        [*pair("before"), *pair("x\udcff"), ("y\udcff.zip", b"")], errors="surrogateescape", format=tarfile.GNU_FORMAT
    )
    found = read(tmp_path, data)
    assert sorted(outcomes(found)) == ["before", "nested archive", "not utf-8"]
    assert all(one.key.encode() for one in found)


def test_directories_and_long_names(tmp_path):
    folder = tarfile.TarInfo("d" * 90)
    folder.type = tarfile.DIRTYPE
    name = f"{'d' * 90}/{'n' * 90}"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = read(tmp_path, tar_of([(folder, b""), *pair(name)], format=form))
        assert [one.key for one in found] == [f"web/a.tar/{name}"]


@pytest.mark.parametrize("pack, name", [(bytes, "a.tar"), (gzip.compress, "a.tar.gz")])
def test_a_truncated_tar_gives_what_was_complete(tmp_path, pack, name):
    noise = np.random.default_rng(0).bytes(40_000)
    members = [member for number in range(20) for member in [*pair(f"{number:03}"), (f"{number:03}.bin", noise)]]
    data = pack(tar_of(members))
    whole = read(tmp_path, data, name)
    for share in (0.2, 0.5, 0.9):
        found = read(tmp_path, data[: int(len(data) * share)], name)
        assert found[-1] == Drop(f"web/{name}", "truncated")
        assert found[:-1] == whole[: len(found) - 1]
        assert abs(len(found) / 20 - share) < 0.2


def test_every_cut_is_noticed(tmp_path):
    """Also between two members and in a header, where tarfile itself would see an end."""
    data = tar_of(pairs(3))
    end = data.rindex(b"words") + 512
    for cut in range(512 + 256, end, 256):
        found = read(tmp_path, data[:cut])
        assert outcomes(found)[-1] == "truncated", cut
        assert outcomes(found)[:-1] == ["000", "001", "002"][: len(found) - 1]


def test_damage_in_the_middle_is_noticed(tmp_path):
    data = bytearray(tar_of(pairs(6)))
    at = data.index(b"003.png")
    data[at : at + 100] = b"\xaa" * 100
    assert outcomes(read(tmp_path, bytes(data))) == ["000", "001", "truncated"]
    packed = bytearray(gzip.compress(tar_of(pairs(60))))
    packed[len(packed) // 2 : len(packed) // 2 + 50] = bytes(50)
    assert outcomes(read(tmp_path, bytes(packed)))[-1] == "truncated"


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path):
    bomb = tarfile.TarInfo("././@LongLink")
    bomb.type, bomb.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    data = tar_of(pairs(3))
    end = data.rindex(b"words") + 512 - (data.rindex(b"words") % 512)
    assert outcomes(read(tmp_path, data[:end] + bomb.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)))[-1] == "truncated"


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar at all " * 100, gzip.compress(b"x" * 5000), bz2.compress(tar_of(pairs(2)))],
    ids=["nothing", "words", "gzip of no tar", "bzip2"],  # gzip's bytes have the time in them
)
def test_what_is_no_tar_is_an_error_that_names_the_file(tmp_path, data):
    with pytest.raises(UserError, match=r"a\.tar is no \.tar, \.tar\.gz or \.tgz, or is damaged") as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value)


def test_an_empty_tar_has_no_documents(tmp_path):
    assert read(tmp_path, tar_of([])) == []


def test_two_reads_are_equal_and_archives_are_units_in_order(tmp_path):
    filesystem = fsspec.filesystem("memory")
    for name in ("b", "a"):
        data = tar_of([*pairs(5), ("x.zip", b"")])
        (tmp_path / f"{name}.tar").write_bytes(data)
        filesystem.pipe(f"/tars/{name}.tar", data)
    everything = []
    for pattern in (f"{tmp_path}/*.tar", f"{tmp_path}/*.tar", "memory://tars/*.tar"):
        config = SourceConfig(name="web", format="webdataset", paths=(pattern,))
        units = webdataset.units(config)
        assert [unit.path.rpartition("/")[2] for unit in units] == ["a.tar", "b.tar"]
        everything.append([one for unit in units for one in webdataset.read(unit, config)])
    filesystem.rm("/tars", recursive=True)
    assert everything[0] == everything[1] == everything[2]
    assert len({one.key for one in everything[0]}) == 12


def test_memory_does_not_grow_with_the_archive(tmp_path):
    noise = np.random.default_rng(0).bytes(200_000)
    members = [("z.npy", noise * 5), *(m for n in range(100) for m in [*pair(f"{n}", 0), (f"{n}.bin", noise)])]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    del members
    config = SourceConfig(name="web", paths=(f"{tmp_path}/a.tar",))
    (unit,) = webdataset.units(config)
    tracemalloc.start()
    assert sum(isinstance(one, RawDocument) for one in webdataset.read(unit, config)) == 100
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2_000_000
