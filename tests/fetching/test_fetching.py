"""Fetching from a server that breaks off, redirects, lies and sends hostile archives."""

import gzip
import hashlib
import io
import shlex
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from diffuserec.data import prepare_log
from diffuserec.errors import ConfigError, DataError
from diffuserec.fetching import DataSet, data_set, data_sets, fetch, write_shop

LOG = b"user,item,time\n" + b"".join(b"u%d,i%d,%d\n" % (n % 7, n % 5, n) for n in range(40_000))
REGULAR, SYMLINK = 0o100644 << 16, 0o120777 << 16


@dataclass
class Site:
    """What the server has, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.asked.append((request.path, asked))
        if request.path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[request.path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if request.path not in self.files:
            request.send_error(404)
            return
        body = self.files[request.path]
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        goes_on = asked and self.ranges and request.headers["If-Range"] == tag
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if goes_on and asked else 0
        request.send_response(206 if goes_on else 200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(len(body) - start))
        if goes_on:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.end_headers()
        n = self.cuts.pop(0) if self.cuts else len(body)
        request.wfile.write(body[start : start + n])
        request.close_connection = True


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME", "DATAREC_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def entry(site: Site, body: bytes = LOG, file: str = "log.csv", **changed: Any) -> DataSet:
    """A data set whose file is at ``/a`` of the site."""
    fields = {
        "name": "made",
        "title": "Made up",
        "page": "https://example.org/",
        "terms": "none",
        "file": file,
        "urls": (f"{site.url}/a",),
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "log": "log.csv",
    }
    return DataSet(**{**fields, **changed})


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    """A zip file of names, contents and attributes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content, attributes in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = attributes, zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return out.getvalue()


def tarred(*members: tuple[str, bytes | str]) -> bytes:
    """A tar.gz file; a member whose content is a string is a link to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_a_cut_transfer_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.files["/a"], site.cuts = LOG, [1000, 5000]
    found = fetch(entry(site), tmp_path / "out")
    assert found.log.read_bytes() == LOG
    assert [asked for _, asked in site.asked] == [None, "bytes=1000-", "bytes=6000-"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log.csv"]


def test_what_came_is_kept_for_the_next_time(site: Site, tmp_path: Path) -> None:
    site.files["/a"], site.cuts = LOG, [100, 100, 100]
    with pytest.raises(DataError, match=r"broke off after 300 of .* is kept, and the same command"):
        fetch(entry(site), tmp_path)
    assert fetch(entry(site), tmp_path).log.read_bytes() == LOG
    assert site.asked[-1] == ("/a", "bytes=300-")


def test_an_interruption_keeps_the_part(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = LOG

    def interrupt(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(entry(site), tmp_path, progress=interrupt)
    there = (tmp_path / "log.csv.part").stat().st_size
    assert fetch(entry(site), tmp_path).log.read_bytes() == LOG
    assert there
    assert site.asked[-1] == ("/a", f"bytes={there}-")


@pytest.mark.parametrize("ranges", [True, False])
def test_parts_of_two_versions_are_not_put_together(
    site: Site, tmp_path: Path, ranges: bool
) -> None:
    site.files["/a"], site.cuts, site.ranges = LOG.lower()[::-1], [100, 100, 100], ranges
    open_entry = entry(site, size=None, sha256=None)
    with pytest.raises(DataError):
        fetch(open_entry, tmp_path)
    site.files["/a"] = LOG
    assert fetch(open_entry, tmp_path).log.read_bytes() == LOG


def test_the_next_address_is_asked_where_one_fails(site: Site, tmp_path: Path) -> None:
    site.files |= {"/wrong": LOG[:-1] + b"9", "/a": LOG}
    urls = [f"{site.url}/{name}" for name in ("gone", "wrong", "a")]
    said: list[str] = []
    found = fetch(entry(site, urls=urls), tmp_path, said.append)
    assert (found.source, found.log.read_bytes()) == (urls[2], LOG)
    assert "Not Found (HTTP 404); trying the next address" in said[0]
    assert (tmp_path / "log.csv.wrong").read_bytes() == site.files["/wrong"]


def test_another_file_is_put_aside_in_one_line(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = LOG[::-1]
    with pytest.raises(DataError, match=r"sha256 \w{64}, expected \w{64}\): put aside as") as error:
        fetch(entry(site), tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.glob("log*")] == ["log.csv.wrong"]
    site.files["/a"] = LOG + b"more"
    with pytest.raises(DataError, match=r"has [\d,]+ bytes, expected"):
        fetch(entry(site), tmp_path)


def test_a_first_fetch_without_known_checksum_is_what_later_ones_compare(
    site: Site, tmp_path: Path
) -> None:
    site.files["/a"] = LOG
    unknown, said = entry(site, size=None, sha256=None), []
    fetch(unknown, tmp_path, said.append)
    digest = hashlib.sha256(LOG).hexdigest()
    assert (tmp_path / "log.csv.sha256").read_text(encoding="utf-8") == f"{digest}  log.csv\n"
    assert "no checksum of log.csv was published" in said[-1]
    (tmp_path / "log.csv").unlink()
    site.files["/a"] = LOG[:-5]
    with pytest.raises(DataError, match=f"expected {digest}"):
        fetch(unknown, tmp_path)


def test_a_file_that_is_here_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = LOG
    (tmp_path / "log.csv").write_bytes(b"damaged")
    fetch(entry(site), tmp_path)
    fetch(entry(site), tmp_path)
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://example.org/a", "//example.org/a"]
)
def test_other_schemes_are_refused(site: Site, tmp_path: Path, place: str) -> None:
    site.redirects["/a"] = place
    with pytest.raises(DataError, match=r"refused|not allowed"):
        fetch(entry(site), tmp_path)
    assert len(site.asked) == 1
    if not place.startswith("//"):
        with pytest.raises(DataError, match="only https"):
            fetch(entry(site, urls=(place,)), tmp_path)


def test_a_redirection_is_followed(site: Site, tmp_path: Path) -> None:
    site.redirects["/a"], site.files["/b"] = "/b", LOG
    assert fetch(entry(site), tmp_path).log.read_bytes() == LOG


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (lambda: zipped(("d/log.csv", LOG, REGULAR), ("d/items.csv", b"item\n", 0)), "a.zip"),
        (lambda: tarred(("d/log.csv", LOG), ("d/items.csv", b"item\n")), "a.tar.gz"),
    ],
)
def test_archives_are_unpacked(
    site: Site, tmp_path: Path, make: Callable[[], bytes], file: str
) -> None:
    body = site.files["/a"] = make()
    made = entry(site, body, file, log="d/log.csv", items="d/items.csv", prepare="--min-user 2")
    found = fetch(made, tmp_path)
    assert found.log.read_bytes() == LOG
    assert (tmp_path / "d" / "items.csv").read_bytes() == b"item\n"
    words = shlex.split(found.command)
    assert words[:5] == ["diffuserec", "prepare", str(found.log), "--items", str(found.items)]
    assert words[5:7] == ["--min-user", "2"]


def claiming(size: int) -> bytes:
    """A zip file whose member of 70,000 bytes says that it has another size."""
    body = zipped(("log.csv", b"0" * 70_000, REGULAR))
    return body.replace((70_000).to_bytes(4, "little"), size.to_bytes(4, "little"))


HOSTILE: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "zip link": (lambda: zipped(("log.csv", b"/etc", SYMLINK)), "a.zip", "link"),
    "zip up": (lambda: zipped(("log.csv", LOG, 0), ("../x", b"", 0)), "a.zip", "out of its"),
    "zip absolute": (lambda: zipped(("/x", b"", 0)), "a.zip", "out of its"),
    "zip drive": (lambda: zipped(("C:/x", b"", 0)), "a.zip", "out of its"),
    "zip bomb": (lambda: claiming(2**31), "a.zip", "unpacks to more"),
    "zip liar": (lambda: claiming(700), "a.zip", "damaged"),
    "zip many": (lambda: zipped(*((f"{n}", b"", 0) for n in range(1_001))), "a.zip", "members"),
    "no zip": (lambda: LOG, "a.zip", "damaged"),
    "lacking": (lambda: zipped(("x", b"", 0)), "a.zip", "holds no"),
    "tar link": (lambda: tarred(("log.csv", "/etc/passwd")), "a.tar.gz", "link"),
    "tar up": (lambda: tarred(("log.csv", LOG), ("a/../../x", b"")), "a.tar.gz", "out of its"),
    "tar absolute": (lambda: tarred(("/x", b"")), "a.tar.gz", "out of its"),
    "tar twice": (lambda: tarred(("log.csv", LOG), ("log.csv", b"")), "a.tar.gz", "twice"),
    "tar bomb": (lambda: tarred(("x", bytes(2**26)), ("log.csv", LOG)), "a.tar.gz", "to more"),
    "tar cut": (lambda: tarred(("log.csv", LOG))[:-3000], "a.tar.gz", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(site: Site, tmp_path: Path, name: str) -> None:
    make, file, why = HOSTILE[name]
    body = site.files["/a"] = make()
    out = tmp_path / "in" / "out"
    with pytest.raises(DataError, match=why):
        fetch(entry(site, body, file), out)
    assert {path.name for path in tmp_path.rglob("*")} <= {"home", "in", "out", file, "log.csv"}


@pytest.mark.parametrize("folder", ["home/.cornac/ml", "home/movielens/raw", "data"])
def test_what_others_have_fetched_is_taken(site: Site, tmp_path: Path, folder: str) -> None:
    there = tmp_path / folder / "log.csv"
    there.parent.mkdir(parents=True)
    there.write_bytes(LOG)
    assert fetch(entry(site), tmp_path / "out").source.endswith("log.csv")
    there.write_bytes(LOG[:-1] + b"x")
    site.files["/a"] = LOG
    assert fetch(entry(site), tmp_path / "other").log.read_bytes() == LOG
    assert len(site.asked) == 1


def test_what_cornac_has_unpacked_is_taken(site: Site, tmp_path: Path) -> None:
    there = tmp_path / "home" / ".cornac" / "d" / "log.csv"
    there.parent.mkdir(parents=True)
    there.write_bytes(LOG)
    made = entry(site, b"", "a.zip", log="d/log.csv", unpacked_md5=hashlib.md5(LOG).hexdigest())
    found = fetch(made, tmp_path / "out")
    assert (found.log, found.log.read_bytes()) == (tmp_path / "out" / "d" / "log.csv", LOG)
    assert not site.asked


def test_a_file_to_be_fetched_by_hand(site: Site, tmp_path: Path) -> None:
    made = entry(site, urls=(), by_hand="log.csv")
    with pytest.raises(DataError, match=r"on https://example.org/: fetch there log.csv, put it at"):
        fetch(made, tmp_path)
    (tmp_path / "log.csv").write_bytes(LOG)
    assert fetch(made, tmp_path).log.exists()
    (tmp_path / "log.csv").write_bytes(b"x")
    with pytest.raises(DataError, match="not the file that was published"):
        fetch(made, tmp_path)


def test_lines_of_python_literals_become_a_csv(site: Site, tmp_path: Path) -> None:
    lines = "{u'name': u'Zo\\xeb, \"Z\"', 'id': '7'}\n{u'name': 'x'}\n{'name': 'b', 'id': '8'}\n"
    body = site.files["/a"] = gzip.compress(lines.encode())
    columns = {"user": "name", "item": "id"}
    found = fetch(entry(site, body, "log.json.gz", literals=columns), tmp_path)
    assert found.log.read_text(encoding="utf-8") == 'user,item\n"Zoë, ""Z""",7\nb,8\n'
    body = site.files["/a"] = gzip.compress(b"{'name': open('x')}\n")
    with pytest.raises(DataError, match="line 1: no dictionary"):
        fetch(entry(site, body, "log.json.gz", literals=columns), tmp_path / "other")


def test_the_command_keeps_its_quotes(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = LOG
    made = entry(site, prepare="--where \"user = 'u1'\"")
    command = fetch(made, tmp_path / "two words").command
    words = shlex.split(command)
    assert words[2:5] == [f"{tmp_path.as_posix()}/two words/log.csv", "--where", "user = 'u1'"]
    assert made.prepare in command


def test_every_entry_is_whole() -> None:
    known = data_sets()
    for each in known.values():
        assert each.terms
        assert each.page.startswith("https://")
        assert all(url.startswith("https://") for url in each.urls)
        assert bool(each.urls) != bool(each.by_hand)
        assert not (each.unpacked_sums and each.items), "the items would not be found"
        assert bool(each.sums) == bool(each.checksum_from), each.name
        lengths = {"sha256": 64, "md5": 32}
        for algorithm, digest in (*each.sums.items(), *each.unpacked_sums.items()):
            assert len(bytes.fromhex(digest)) * 2 == lengths[algorithm]
        assert "{" not in str(each.model_dump(exclude={"literals", "unpacked_sums"}).values())[13:]
    with pytest.raises(ConfigError, match="did you mean 'movielens-1m'"):
        data_set("movielens1m")


def test_the_shop_has_a_name_for_every_item(tmp_path: Path) -> None:
    clicks, items = write_shop(tmp_path / "shop")
    summary = str(prepare_log([clicks], tmp_path / "data", items=items))
    assert "name, category of 300 of 300 items" in summary
    again, _ = write_shop(tmp_path / "again")
    assert again.read_bytes() == clicks.read_bytes()
