"""A prefix of an S3-compatible bucket, where images lie and results go.

Credentials, region and endpoint come from the usual variables of the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...) or from the machine's role. They are in no message, no
file, and not in what is sent to another process, which has an environment of its own.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cached_property
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from cfa_index.errors import DatasetError, ImageError, OutputError, SpecError
from cfa_index.places.place import Entry, has_suffix

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Store

SCHEME = "s3://"
_PAGE = 1000
"""Keys that are held while a bucket is listed; S3 answers with as many at most."""
_RETRIES, _RETRY_S = 5, 30
"""A server that has gone is given up after so many tries or seconds."""
_IN_MEMORY = 1 << 24
_NO_BUCKET = "NoSuchBucket"


class ObjectPlace:
    """A prefix of a bucket. See `Place` for what it can do.

    Keys are taken as they are, but for those that have no name in a path: an empty part, as in `a//b.png`, a part
    `.` or `..`, or a control character. Such a key ends a listing with an error that names it.

    Args:
        uri: s3://BUCKET or s3://BUCKET/PREFIX.

    Raises:
        SpecError: the URI has no bucket, or holds a user, a password, a query or a fragment; or the extra `s3` is
            not installed.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.hostname or parts.path.count("//"):
            raise SpecError(
                expected="s3://BUCKET/PREFIX",
                got="another URI" if "@" in uri else repr(uri),
                remedy="give the name of a bucket and a prefix with single slashes",
            )
        if parts.netloc != parts.hostname or parts.query or parts.fragment:
            raise SpecError(
                expected=f"s3://{parts.hostname}{parts.path} alone",
                got="a URI with something before or behind it",
                remedy="give credentials and options as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on",
            )
        self.uri = f"{SCHEME}{parts.hostname}{parts.path}".rstrip("/")
        try:
            import obstore  # noqa: F401 - here, not at the first image
        except ImportError as error:
            raise SpecError(
                expected=f"obstore, to use {self.uri}",
                got="no such library",
                remedy="install it: pip install 'cfa-index[s3]'",
            ) from error

    def __reduce__(self) -> tuple[type[ObjectPlace], tuple[str]]:
        return ObjectPlace, (self.uri,)

    @cached_property
    def _store(self) -> S3Store:
        from obstore.store import S3Store

        # An endpoint of plain HTTP is the wish of whoever set it; obstore wants it said twice.
        plain = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")).startswith(
            "http:"
        )
        return S3Store.from_url(
            self.uri,
            client_options={"allow_http": plain},
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )

    def require(self) -> None:
        """See `Place.require`."""
        next(self._listed(""), None)

    def walk(self, suffixes: frozenset[str], after: bytes = b"") -> Iterator[Entry]:
        """See `Place.walk`. S3 lists in the order of the keys' bytes, page by page.

        Raises:
            DatasetError: the bucket is missing, may not be listed, lists in another order, or holds a key that
                has no name in a path; or the server does not answer.
        """
        last = after
        for found in self._listed(os.fsdecode(after)):
            path, changed = found["path"].encode(), found["last_modified"]
            if path <= last:
                raise DatasetError(
                    expected=f"{self.uri} to list its keys in order",
                    got="one that does not, such as a directory bucket",
                    remedy="copy the images into a bucket of general purpose",
                )
            last = path
            if has_suffix(path, suffixes) and not _is_hidden(path):
                mtime_ns = int(changed.timestamp()) * 10**9 + changed.microsecond * 1000
                yield Entry(path=path, size=found["size"], mtime_ns=mtime_ns)

    def source(self, path: bytes) -> bytes:
        """An object's content.

        Raises:
            ImageError: it is gone, may not be read, or its key is no path.
            DatasetError: the server does not answer, or refuses everything.
        """
        name = path.decode("utf-8", "backslashreplace")
        try:
            content = self._get(name)
        except Exception as error:
            if _is_about_one_object(error):
                raise ImageError(
                    expected=f"to read {self.uri}/{name}",
                    got=_said(error),
                    remedy="check the key and its permissions",
                ) from None
            raise self._unreachable(error) from None
        if content is None:
            raise ImageError(expected=f"an object at {self.uri}/{name}", got="none", remedy="check the key")
        return content

    def write(self, name: str, content: bytes) -> None:
        """See `Place.write`: an object is there when all of it is."""
        with self._writing(name):
            self._store.put(name, content)

    @contextmanager
    def create(self, name: str) -> Generator[IO[bytes], None, None]:
        """A file to write to; it is sent when the body ends, and not if the body raises. Raises OutputError."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            yield file
            file.seek(0)
            with self._writing(name):
                self._store.put(name, file)

    def read(self, name: str) -> bytes | None:
        """See `Place.read`."""
        with self._writing(name, "read"):
            return self._get(name)

    def names(self, folder: str) -> list[str]:
        """See `Place.names`."""
        prefix = folder.strip("/")
        try:
            found = self._store.list_with_delimiter(prefix or None)["objects"]
        except Exception as error:
            raise self._unreachable(error) from None
        names = (one["path"].rpartition("/")[2] for one in found)
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        with self._writing(name, "delete"):
            self._store.delete(name)  # of one that is not there S3 makes nothing

    def sweep(self) -> None:
        """See `Place.sweep`: nothing is ever half-written here."""

    def held(self, name: str) -> nullcontext[None]:
        """Nothing is locked: an object store cannot notice that a process has died.

        Two runs on one target do the same work twice: names and contents of what they write are the same.
        """
        del name
        return nullcontext()

    def _get(self, name: str) -> bytes | None:
        try:
            return bytes(self._store.get(name).bytes())
        except FileNotFoundError as error:
            if _code(error) == _NO_BUCKET:
                raise
            return None

    def _listed(self, after: str) -> Iterator[ObjectMeta]:
        try:
            for page in self._store.list(offset=after or None, chunk_size=_PAGE):
                yield from page
        except Exception as error:
            raise self._unreachable(error) from None

    @contextmanager
    def _writing(self, name: str, verb: str = "write") -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OutputError(
                expected=f"to {verb} {self.uri}/{name}",
                got=_said(error),
                remedy="check the bucket, the credentials and AWS_ENDPOINT_URL, then run the same command again",
            ) from None

    def _unreachable(self, error: Exception) -> DatasetError:
        return DatasetError(
            expected=f"to list and read {self.uri}",
            got=_said(error),
            remedy="check the bucket, the credentials and AWS_ENDPOINT_URL",
        )


def _is_hidden(path: bytes) -> bool:
    return path.startswith(b".") or b"/." in path


def _is_about_one_object(error: Exception) -> bool:
    """Whether other objects may well be read: this one is forbidden, or its key is no path."""
    return isinstance(error, ValueError) or _code(error) == "AccessDenied"


def _code(error: Exception) -> str | None:
    """S3's own word for what went wrong, such as NoSuchBucket, if it said one."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else None


def _said(error: Exception) -> str:
    """What went wrong, in a few words.

    Never the text of the error itself: what S3 says of a refused signature repeats the access key.
    """
    text = str(error)
    if bad := re.search(r'Path "(.*?)"(?: contained|:)', text, re.DOTALL):
        return f"a key that is no path, {bad[1]!r}"
    if code := _code(error):
        return code
    if status := re.search(r"status code: (\d{3} [\w ]+)", text):
        return status[1]
    return "no answer from the server" if "HTTP error" in text else f"a failure ({type(error).__name__})"
