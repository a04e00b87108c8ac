"""Files by path and by URL: fsspec's memory file system, also one that fails now and then."""

import io

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nextflow_jax.data.corpus.raw import RefusedDocument
from nextflow_jax.data.ingest import remote
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.lines import line_units, read_lines
from nextflow_jax.errors import UserError


class Flaky(MemoryFileSystem):
    """A memory file system whose opening and reading fail as often as `failures` says, each time at another place."""

    protocol = "flaky"
    store = {}
    failures = []

    def _open(self, path, mode="rb", **options):
        if mode == "rb" and "open" in self.failures:
            self.failures.remove("open")
            raise OSError("connection refused")
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        failures = self.failures

        class File(io.BytesIO):
            def read(self, size=-1):
                if "read" in failures:
                    failures.remove("read")
                    raise ConnectionResetError("connection reset by peer")
                if self.tell() > 100_000 and "late" in failures:
                    failures.remove("late")
                    raise RuntimeError("a client's own error")
                return super().read(size)

        return File(file.getvalue())


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that are made, of no length."""
    made = []
    monkeypatch.setattr(remote.time, "sleep", made.append)
    return made


@pytest.fixture
def flaky(pauses):
    """Writes a file to the flaky file system; returns its URL. The failures are to be set after that."""

    def write(name, data, failures=()):
        Flaky.failures.clear()
        with fsspec.open(f"flaky://{name}", "wb") as file:
            file.write(data)
        Flaky.failures.extend(failures)
        return f"flaky://{name}"

    yield write
    Flaky.failures.clear()
    Flaky.store.clear()


@pytest.fixture
def memory():
    """fsspec's memory file system with four files."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()  # other tests' files
    names = ("/bucket/b.tar", "/bucket/a.tar", "/bucket/deep/c.tar", "/bucket/d.txt")
    for name in names:
        filesystem.pipe(name, name.encode())
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


DATA = np.random.default_rng(0).bytes(300_000)


@pytest.mark.parametrize(
    "failures, pauses_made",
    [
        ((), []),
        (["open"], [0.5]),
        (["open"] * 3, [0.5, 1, 2]),
        (["read", "read"], [0.5, 1]),
        (["late", "read"], [0.5, 0.5]),
    ],
)
def test_reads_go_on_where_they_failed(flaky, pauses, failures, pauses_made):
    path = flaky("bucket/file", DATA, failures)
    with remote.open_file(path) as file:
        pieces = iter(lambda: file.read(70_001), b"")
        assert b"".join(pieces) == DATA
    assert pauses == pauses_made
    assert not Flaky.failures


def test_places_are_found_again(flaky):
    path = flaky("bucket/file", DATA)
    with remote.open_file(path) as file:
        assert file.seek(-10, io.SEEK_END) == len(DATA) - 10
        Flaky.failures.extend(["read", "open"])
        assert file.read() == DATA[-10:]
        file.seek(200_000)
        Flaky.failures.append("late")
        assert file.read(5) == DATA[200_000:200_005]
        assert file.tell() == 200_005


@pytest.mark.parametrize("failure", ["open", "read"])
def test_attempts_are_bounded_and_the_error_names_the_url(flaky, pauses, failure):
    path = flaky("bucket/file", DATA, [failure] * 10)
    refused = pytest.raises(UserError, match=r"^flaky://bucket/file: could not be read in 4 attempts \(connection")
    with refused as error, remote.open_file(path) as file:
        file.read(1)
    assert pauses == [0.5, 1, 2]
    assert "\n" not in str(error.value)
    with pytest.raises(RefusedDocument) as refused:
        Flaky.failures.extend([failure] * 10)
        remote.read_picture(path, 1000)
    assert refused.value.reason == "unreadable source"


def test_what_is_not_there_is_not_tried_again(flaky, pauses):
    with pytest.raises(FileNotFoundError):
        remote.open_file("flaky://bucket/none")
    with pytest.raises(RefusedDocument) as refused:
        remote.read_picture("flaky://bucket/none", 10)
    assert refused.value.reason == "missing file"
    assert not pauses


def test_lines_of_a_flaky_url_are_read_once(flaky):
    lines = [b"%d" % i * 50 for i in range(200)]
    path = flaky("bucket/file", b"\n".join(lines))
    config = SourceConfig(paths=(path,), unit_bytes=3000)
    found = []
    for unit in line_units(config):
        Flaky.failures.extend(["open", "read"])
        found += [line for _, line in read_lines(unit, 10_000)]
    assert found == lines


def test_urls_and_their_globs_are_listed_in_order_with_sizes(memory):
    pair = [("memory://bucket/a.tar", 13), ("memory://bucket/b.tar", 13)]
    assert remote.list_files(("memory://bucket/*.tar",)) == pair
    assert remote.list_files(("memory://bucket/b.tar", "memory://bucket/a.tar", "memory://bucket/*.tar")) == pair
    everything = [path for path, _ in remote.list_files(("memory://bucket/**",))]
    assert everything == [f"memory://bucket/{name}" for name in ("a.tar", "b.tar", "d.txt", "deep/c.tar")]
    with remote.open_file("memory://bucket/deep/c.tar") as file:
        assert file.read() == b"/bucket/deep/c.tar"


@pytest.mark.parametrize(
    "pattern", ["memory://bucket/none", "memory://bucket/*.zip", "memory://bucket/deep", "x/*.tar"]
)
def test_a_pattern_without_files_is_an_error(memory, pattern):
    with pytest.raises(UserError, match="names no file"):
        remote.list_files((pattern,))


def test_an_unknown_scheme_is_an_error():
    with pytest.raises(UserError, match="fsspec cannot open this URL"):
        remote.list_files(("gopher9://bucket/a",))


def test_without_fsspec_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(remote.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'nextflow_jax\[remote\]'"):
        remote.open_file("memory://bucket/a")


def test_local_files(tmp_path):
    for name in ("b", "a", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder").mkdir()
    files = remote.list_files((f"{tmp_path}/*", f"{tmp_path}/a"))
    assert files == [(f"{tmp_path}/a", 1), (f"{tmp_path}/b", 1), (f"{tmp_path}/c.txt", 5)]
    (tmp_path / "[x].txt").write_bytes(b"brackets")
    assert remote.list_files((f"{tmp_path}/[x].txt",)) == [(f"{tmp_path}/[x].txt", 8)]


def test_pictures_are_read_up_to_their_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert remote.read_picture(f"{tmp_path}/a", 5) == b"12345"
    for path, most, reason in (
        (f"{tmp_path}/a", 4, "too many bytes"),
        (f"{tmp_path}", 4, "missing file"),
        (f"{tmp_path}/a/b", 4, "missing file"),
    ):
        with pytest.raises(RefusedDocument) as refused:
            remote.read_picture(path, most)
        assert refused.value.reason == reason


SCHEMES = ("gs", "https")


def test_names_stay_below_their_root(tmp_path):
    def resolve(name):
        return remote.resolve_below(str(tmp_path), name, SCHEMES)

    assert resolve("a/./b.png") == f"{tmp_path}/a/b.png"
    assert resolve("a\\b.png") == f"{tmp_path}/a/b.png"
    assert resolve("gs://other/b.png") == "gs://other/b.png"
    assert remote.resolve_below("gs://bucket/x/", "a/b.png", SCHEMES) == "gs://bucket/x/a/b.png"


@pytest.mark.parametrize("root", ["memory://bucket/x", None])
@pytest.mark.parametrize(
    "name",
    ["", ".", "/etc/passwd", "../a", "a/../../b", "a\\..\\..\\b", "C:\\a", "file:///etc/passwd", "a\0b", "\\\\host\\a"],
)
def test_names_that_leave_their_root_are_refused(tmp_path, root, name):
    with pytest.raises(RefusedDocument) as refused:
        remote.resolve_below(root or str(tmp_path), name, SCHEMES)
    assert refused.value.reason == "unsafe path"


def test_links_are_followed_only_inside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "in").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    (tmp_path / "root" / "ring").symlink_to(tmp_path / "root" / "ring")
    root = str(tmp_path / "root")
    assert remote.resolve_below(root, "in/a", SCHEMES) == f"{root}/in/a"
    for name in ("out/a", "ring/a", "x" * 5000, "\ud800.png"):
        with pytest.raises(RefusedDocument) as refused:
            remote.read_picture(remote.resolve_below(root, name, SCHEMES), 10)
        assert (refused.value.reason == "unsafe path") == (name == "out/a")


def test_names_in_keys_do_not_depend_on_the_folder():
    for folder in ("", "data/", "/mnt/data/", "gs://bucket/", "gs://bucket/deep/"):
        assert remote.name_below(f"{folder}a/7.tar", (f"{folder}*/*.tar",)) == "a/7.tar"
        assert remote.name_below(f"{folder}7.tar", (f"{folder}7.tar",)) == "7.tar"
