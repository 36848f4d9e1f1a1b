"""Generations on disk: written whole, never changed afterwards, and a pointer to the one in use.

<models>/<category>/current                  the generation in use and its manifest's checksum
<models>/<category>/generations/0001/        manifest.json and the files that it names
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cfa_index.bundle.manifest import Manifest, damaged
from cfa_index.errors import BundleError
from cfa_index.files import sha256_of_file, sync_folder, take_lock, write_bytes, write_json, writing

Content = bytes | Path | Mapping[str, Tensor] | NDArray[Any] | Callable[[Path], None]
"""Of a file: bytes, a file to copy, tensors for safetensors, an array for .npy, or what writes it."""


@contextmanager
def category_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of <models>/<category> during the body; readers are not disturbed.

    What a writer that was killed has left half-written is removed.

    Raises:
        BundleError: another process writes this model.
        OutputError: the disk is full or read-only.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / ".lock")
    if lock is None:
        raise BundleError(
            expected=f"to be the only writer of {folder}",
            got="another process that is writing it",
            remedy="wait for it to end, then run the same command again",
        )
    with lock:
        for half_written in (folder / "generations").glob(".*.tmp"):
            shutil.rmtree(half_written, ignore_errors=True)
        yield


def write_generation(
    folder: Path,
    manifest: Manifest,
    contents: Mapping[str, Content],
) -> tuple[Path, Manifest]:
    """Write a generation beside the others and make it the current one; hold `category_lock`.

    Args:
        folder: <models>/<category>.
        manifest: its generation, created, versions and files are filled in here.
        contents: by file name.

    Returns:
        The generation's folder and its completed manifest.

    Raises:
        OutputError: the disk is full or read-only; what was there before stays as it was.
    """
    generations = folder / "generations"
    taken = [int(name) for name in generation_names(folder)]
    name = f"{max(taken, default=0) + 1:04d}"
    temporary = generations / f".{name}.{os.getpid()}.tmp"
    with writing(generations / name):
        try:
            temporary.mkdir(parents=True)
            checksums = {}
            for file, content in contents.items():
                _write_content(temporary / file, content)
                checksums[file] = sha256_of_file(temporary / file)
            complete = replace(manifest, generation=name, files=checksums)
            write_json(temporary / "manifest.json", complete.to_dict())
            temporary.rename(generations / name)
            sync_folder(generations)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    set_current(folder, name)
    return generations / name, complete


def set_current(folder: Path, generation: str) -> None:
    """Point <models>/<category> at one of its generations, atomically."""
    checksum = sha256_of_file(folder / "generations" / generation / "manifest.json")
    write_bytes(folder / "current", f"{generation} {checksum}\n".encode())


def current_generation(folder: Path) -> Path:
    """The folder of the generation in use.

    Raises:
        BundleError: there is no model, or the pointer is damaged.
    """
    pointer = folder / "current"
    if not pointer.exists():
        raise BundleError(
            expected=f"a model at {folder}",
            got="no file named current there",
            remedy="run cfa-index build first, or check --models-dir and --category",
        )
    if not (match := re.fullmatch(rb"([0-9]{1,9}) ([0-9a-f]{64})\n", pointer.read_bytes())):
        raise damaged(pointer, "something else than a generation and its checksum")
    name, checksum = match[1].decode(), match[2].decode()
    manifest = folder / "generations" / name / "manifest.json"
    if not manifest.exists() or sha256_of_file(manifest) != checksum:
        raise damaged(pointer, f"generation {name!r}, whose manifest is missing or was changed")
    return manifest.parent


def check_model(folder: Path) -> None:
    """Refuse to lock, and so to make, a folder that holds no model. Raises BundleError."""
    if not generation_names(folder):
        current_generation(folder)


def generation_folder(folder: Path, generation: str) -> Path:
    """The folder of one generation of <models>/<category>; `2` means `0002`.

    Raises:
        BundleError: there is none of that name.
    """
    found = generation_names(folder)
    name = generation.zfill(4)
    if name not in found:
        raise BundleError(
            expected=f"a generation {generation} of {folder}",
            got=f"{', '.join(found) or 'none'} there",
            remedy="name one of these, or run cfa-index build first",
        )
    return folder / "generations" / name


def generation_names(folder: Path) -> list[str]:
    """Names of the generations of <models>/<category>, first to last; none where there is no model."""
    return sorted(path.name for path in (folder / "generations").glob("[0-9]*") if path.name.isdigit())


def changed_files(folder: Path, files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files of a generation, by name, compared with its checksum: each name, and what is wrong with it, or nothing."""
    for name, checksum in files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            yield name, "is missing"
        else:
            yield name, "" if sha256_of_file(file) == checksum else "differs from its checksum"


def list_models(models_dir: Path) -> list[str]:
    """Names of the categories that have a model, sorted.

    Raises:
        BundleError: there is none.
    """
    found = sorted(path.parent.name for path in models_dir.glob("*/current"))
    if not found:
        raise BundleError(
            expected=f"models in {models_dir}",
            got="none",
            remedy="run cfa-index build first, or check --models-dir",
        )
    return found


def _write_content(path: Path, content: Content) -> None:
    with writing(path):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, Path):
            shutil.copyfile(content, path)
        elif isinstance(content, np.ndarray):
            np.save(path, content, allow_pickle=False)
        elif callable(content):
            content(path)
        else:
            with _safetensors_errors():
                save_file(dict(content), path)
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


@contextmanager
def _safetensors_errors() -> Iterator[None]:
    """safetensors wraps an I/O error in its own type; a full disk must read as one."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(None, str(error)) from error
