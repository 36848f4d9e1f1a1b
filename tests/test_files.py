from __future__ import annotations

import errno
import hashlib
import pickle
from pathlib import Path

import pytest

from cfa_index import errors
from cfa_index.errors import CfaIndexError, OutputError, SpecError
from cfa_index.files import atomic_path, is_sealed, seal, sha256_of_file, write_json, writing


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})

    def fail_halfway() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == '{\n  "x": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_os_error_names_the_target_and_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(
            OutputError, match=r"expected to write .*b, got No space left on device; free some space"
        ),
        writing(tmp_path / "b"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_in_the_way_of_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError):
        write_json(tmp_path / "f" / "x.json", {})


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_sealed_document_notices_any_change() -> None:
    document = seal({"a": 1, "b": ["ü"]})
    assert is_sealed(document)
    assert not is_sealed({**document, "a": 2})
    assert not is_sealed({"a": 1})
    assert not is_sealed([1])


def test_errors_are_one_line_and_also_the_builtin_that_a_caller_would_catch() -> None:
    error = SpecError(expected="a\nb", got="c", remedy="d")
    assert str(error) == "expected a b, got c; d"
    assert isinstance(error, ValueError)
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, CfaIndexError) and kind is not CfaIndexError:
            assert len(kind.__mro__) > 4, f"{name} has no builtin base"


def test_errors_cross_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(OutputError(expected="a", got="b", remedy="c")))
    assert (type(error), error.got) == (OutputError, "b")
