"""A bucket as a place: what is listed, read and written, and what is said when it cannot be."""

from __future__ import annotations

import http.server
import os
import pickle
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from typing import Any

import pytest
from s3_server import BUCKET, SECRET, s3_server

from cfa_index import CfaIndexError, DatasetError, ImageError, ObjectPlace, OutputError, SpecError, open_place
from cfa_index.places import LocalPlace
from cfa_index.workflows.score_target import require_apart

SUFFIXES = frozenset({".png", ".jpg"})


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as process:
        yield process


@pytest.fixture
def place(server: object, request: pytest.FixtureRequest) -> ObjectPlace:
    return ObjectPlace(f"s3://{BUCKET}/{request.node.name}")


@contextmanager
def serving(
    handler: type[http.server.BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A server of one test's own; the environment points at it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def put(place: ObjectPlace, *names: str) -> None:
    for name in names:
        place.write(name, name.encode())


def paths(place: ObjectPlace, after: bytes = b"") -> list[bytes]:
    return [entry.path for entry in place.walk(SUFFIXES, after)]


def test_images_are_listed_in_the_order_of_their_bytes(place: ObjectPlace) -> None:
    names = [
        "a b.png",
        "ä.png",
        "a%20b.png",
        "#x.PNG",
        "sub/1.png",
        "sub.png",
        "sub/a/2.jpg",
        "q?.png",
        "~.jpg",
    ]
    put(place, *names, "notes.txt", ".hidden.png", ".cache/x.png", "sub/.y.png")
    expected = sorted(name.encode() for name in names)
    assert paths(place) == expected
    for number, path in enumerate(expected):
        assert paths(place, after=path) == expected[number + 1 :]
    assert [place.source(path) for path in expected] == expected


def test_an_entry_says_size_and_time(place: ObjectPlace) -> None:
    put(place, "abc.png")
    (entry,) = place.walk(SUFFIXES)
    assert (entry.size, entry.error) == (len("abc.png"), "")
    assert entry.mtime_ns > 1_700_000_000 * 10**9


def test_a_listing_is_read_page_by_page(place: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        """Passes GET on, for pages of five keys, and writes down what was asked."""

        def do_GET(self) -> None:
            asked.append(self.path)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            request = urllib.request.Request(f"{real}{self.path}&max-keys=5", headers=headers)
            with urllib.request.urlopen(request) as answer:
                content = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    names = [f"{number}.png" for number in range(10, 40)]
    put(place, *names)
    real = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setattr("cfa_index.places.objects._PAGE", 5)
    with serving(Proxy, monkeypatch):
        listing = ObjectPlace(place.uri).walk(SUFFIXES)
        assert [entry.path.decode() for entry in islice(listing, 4)] == names[:4]
        before = len(asked)
        assert [entry.path.decode() for entry in listing] == names[4:]
    assert before <= 2  # one page ahead, not all
    assert len(asked) == 6


def test_what_is_written_is_read_named_and_removed(place: ObjectPlace) -> None:
    assert place.read("run.json") is None
    assert place.names("parts") == []
    put(place, "parts/part-2", "parts/part-1", "parts/deep/part-3", "parts/.tmp", "run.json")
    assert place.names("parts") == ["part-1", "part-2"]
    assert place.names("") == ["run.json"]
    assert place.read("run.json") == b"run.json"
    place.write("run.json", b"again")
    assert place.read("run.json") == b"again"
    place.remove("run.json")
    place.remove("run.json")
    assert place.read("run.json") is None


def test_a_file_that_fails_half_way_is_not_there(place: ObjectPlace) -> None:
    with place.create("scores.csv") as file:
        file.write(b"whole")
    assert place.read("scores.csv") == b"whole"
    with suppress(ZeroDivisionError), place.create("scores.csv") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert place.read("scores.csv") == b"whole"


def test_a_place_travels_without_credentials(place: ObjectPlace) -> None:
    put(place, "a.png")
    sent = pickle.dumps(place)
    assert SECRET.encode() not in sent
    assert b"nobody" not in sent
    assert pickle.loads(sent).read("a.png") == b"a.png"


def test_prefixes_end_at_slashes(server: object) -> None:
    put(ObjectPlace(f"s3://{BUCKET}/night-shift"), "a.png")
    put(ObjectPlace(f"s3://{BUCKET}/night"), "b.png")
    assert paths(ObjectPlace(f"s3://{BUCKET}/night/")) == [b"b.png"]


def test_open_place_tells_them_apart(server: object) -> None:
    assert isinstance(open_place("s3://plant/x"), ObjectPlace)
    assert open_place("s3://plant/x/").uri == "s3://plant/x"
    assert isinstance(open_place("plant/x"), LocalPlace)


ASKED: list[tuple[type[CfaIndexError], Callable[[ObjectPlace], object]]] = [
    (DatasetError, lambda place: list(place.walk(SUFFIXES))),
    (DatasetError, lambda place: place.source(b"a.png")),
    (OutputError, lambda place: place.write("a.png", b"")),
    (OutputError, lambda place: place.read("a.png")),
]


@pytest.mark.parametrize(("kind", "ask"), ASKED)
def test_no_bucket(server: object, kind: type[CfaIndexError], ask: Callable[[ObjectPlace], object]) -> None:
    with pytest.raises(
        kind, match=r"^expected .*s3://nowhere/x.*, got NoSuchBucket; check the bucket"
    ) as caught:
        ask(ObjectPlace("s3://nowhere/x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "ask"), ASKED)
def test_a_server_that_has_gone(
    kind: type[CfaIndexError],
    ask: Callable[[ObjectPlace], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cfa_index.places.objects._RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(kind, match="got no answer from the server; check"):
        ask(ObjectPlace("s3://plant/x"))


@pytest.mark.parametrize(("kind", "ask"), ASKED)
def test_refused_credentials_are_not_repeated(
    kind: type[CfaIndexError],
    ask: Callable[[ObjectPlace], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = (
                b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>nobody</AWSAccessKeyId></Error>"
            )
            self.send_response(403)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with serving(Refusing, monkeypatch), pytest.raises(kind, match="got SignatureDoesNotMatch;") as caught:
        ask(ObjectPlace("s3://plant/x"))
    assert "nobody" not in repr(caught.value) + repr(caught.value.__cause__)


def test_one_image_that_is_gone_or_has_no_path_is_its_own_error(place: ObjectPlace) -> None:
    with pytest.raises(ImageError, match=r"an object at s3://.*/gone\.png, got none"):
        place.source(b"gone.png")
    with pytest.raises(ImageError, match=r"got a key that is no path, '\.\./up\.png'"):
        place.source(b"../up.png")
    with pytest.raises(OutputError, match=r"got a key that is no path, '\.\./up\.png'"):
        place.write("../up.png", b"")


def test_a_key_without_a_path_is_named(server: object) -> None:
    """S3 takes a//b.png as a key; obstore does not, and the listing must not end as if all was well."""
    place = ObjectPlace(f"s3://{BUCKET}/odd")
    place.write("c.png", b"")
    request = urllib.request.Request(
        os.environ["AWS_ENDPOINT_URL"] + f"/{BUCKET}/odd/a//b.png", data=b"", method="PUT"
    )
    request.add_header(
        "Authorization", "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request"
    )
    urllib.request.urlopen(request).close()
    with pytest.raises(DatasetError, match=r"got a key that is no path, 'odd/a//b\.png'"):
        paths(place)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///x",
        "s3://a//b",
        "s3://user:hush@plant/x",
        "s3://plant/x?secret=hush",
        "s3://plant/x#hush",
    ],
)
def test_uris_that_are_refused(uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_place(uri)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "target", "inside"),
    [
        ("s3://line-3/night", "s3://line-3/night/out", True),
        ("s3://line-3/night", "s3://line-3/night", True),
        ("s3://line-3", "s3://line-3/out", True),
        ("s3://line-3/night", "s3://line-3/nights", False),
        ("s3://line-3/night", "s3://line-4/night/out", False),
        ("s3://line-3/night", "out", False),
        ("in", "s3://line-3/out", False),
    ],
)
def test_a_target_is_not_inside_the_source(source: str, target: str, inside: bool) -> None:
    with pytest.raises(OutputError, match="outside") if inside else nullcontext():
        require_apart(open_place(source), open_place(target))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SpecError, match=r"pip install 'cfa-index\[s3\]'"):
        open_place("s3://plant/x")
