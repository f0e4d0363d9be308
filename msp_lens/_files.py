"""Files: written atomically by one process at a time, and read with a check for damage.

JSON is checked against a schema. Tensors carry a checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from msp_lens._annotations import converted

CHECKSUM = "checksum"
LOCK_FILE = ".lock"
TEMPORARY = ".partial"
# As safetensors calls them.
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_REMEDY = "It is damaged or was edited: copy or create it again."


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write to a temporary file in the same folder, then rename: a reader sees the old file or the complete new one."""
    with written_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder, which takes the file's place at the end of the block, if nothing failed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; a result is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; a NaN or infinity is an error, not invalid JSON."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path, schema: Any = Any) -> Any:
    """The JSON value in a file, checked against a schema: a `TypedDict` or any other annotation.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or was edited: it names the file, the field and the remedy.
    """
    return parsed_json(_bytes_of(path), schema, path)


def read_lines(path: str | Path, schema: Any = Any) -> list[Any]:
    """The JSON values in a file that holds one a line, each checked against the schema; errors as for `read_json`.

    The last line is left out if it has no end: its writer was killed.
    """
    lines = _bytes_of(path).split(b"\n")[:-1]
    return [parsed_json(line, schema, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def read_entry(header: Mapping[str, str], key: str, schema: Any, path: str | Path) -> Any:
    """A JSON value in the header of a safetensors file, checked against the schema; errors as for `read_json`."""
    if key not in header:
        raise ValueError(f"{path} has no {key!r} in its header: it holds something else. Check the path.")
    return parsed_json(header[key].encode("utf-8", "surrogatepass"), schema, path)


def parsed_json(text: bytes, schema: Any, where: str | Path) -> Any:
    """The JSON value, checked against the schema; `ValueError` names the place, the field and the remedy."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}). {_REMEDY}") from None
    return as_saved(value, schema, f"{where}: $")


def as_saved(value: Any, schema: Any, where: str) -> Any:
    """A value from a file, checked against an annotation; `ValueError` names the place and the remedy."""
    try:
        return converted(value, schema, where)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{error} {_REMEDY}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _bytes_of(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: check the path.")
    return Path(path).read_bytes()


def without_nan(value: Any) -> Any:
    """The value with `None` for NaN and infinity, which JSON lacks, and plain numbers in place of numpy's."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write named tensors and a header to a safetensors file, atomically, with a checksum of both."""
    checksum = {CHECKSUM: tensors_checksum(tensors, header)}
    write_atomically(path, save(dict(tensors), metadata={**header, **checksum}))


@contextmanager
def tensors_written(
    path: str | Path, like: Mapping[str, Tensor], n_rows: int, header: Mapping[str, str]
) -> Iterator[Callable[[str, int, Tensor], None]]:
    """Write tensors to a safetensors file some rows at a time, atomically; without a checksum, as none is ever held.

    Args:
        path: The file.
        like: A few rows of each tensor, which show its dtype and width.
        n_rows: How many rows each will have.
        header: What the file says of itself.

    Yields:
        A function of a tensor's name, the number of its first row to write, and the rows.

    Raises:
        ValueError: if the disk has not enough space, before anything is written.
    """
    described: dict[str, Any] = {"__metadata__": dict(header)}
    end = 0
    for name, rows in like.items():
        begin, end = end, end + n_rows * rows[0].nbytes
        kind, shape = _DTYPES[rows.dtype], [n_rows, *rows.shape[1:]]
        described[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    folder = next(each for each in Path(path).resolve().parents if each.is_dir())
    if (free := shutil.disk_usage(folder).free) < end:
        raise ValueError(
            f"{path} would take {end / 1e9:,.1f} GB; {folder} has {free / 1e9:,.1f} GB left. Write fewer tensors, or "
            "choose another folder."
        )
    with written_atomically(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)

        def write(name: str, first_row: int, rows: Tensor) -> None:
            held = rows.detach().cpu().contiguous()
            file.seek(8 + len(text) + described[name]["data_offsets"][0] + first_row * held[0].nbytes)
            file.write(held.flatten().view(torch.uint8).numpy().data)

        yield write


def tensors_checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Thirty-two hexadecimal digits that change with any bit of the tensors, their names or the header."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(sorted(header.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors; errors as for `read_tensors`."""
    with _opened(path) as file:
        header = file.metadata() or {}
    header.pop(CHECKSUM, None)
    return header


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; the checksum, if there is one, is checked and left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header = file.metadata() or {}
    checksum = header.pop(CHECKSUM, None)
    if checksum is not None and checksum != tensors_checksum(tensors, header):
        raise ValueError(f"{path} is damaged: it does not match its checksum. Copy or create it again.")
    return tensors, header


def check_tensors(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int | None]],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise `ValueError` unless these tensors are there, finite, and of these shapes (`None`: any length) and dtype."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{path}: the tensor {name!r} is missing. {_REMEDY}")
        found = tuple(tensors[name].shape)
        fits = all(wanted in (None, length) for wanted, length in zip(shape, found, strict=False))
        if len(found) != len(shape) or not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise ValueError(f"{path}: {name!r} has shape {found}, not ({wanted}). {_REMEDY}")
        if dtype not in (None, tensors[name].dtype):
            raise ValueError(f"{path}: {name!r} is {tensors[name].dtype}, not {dtype}. {_REMEDY}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{path}: {name!r} holds NaN or infinity. {_REMEDY}")


def safe_name(name: str) -> str:
    """A process's name, or any other text, as the name of one file or folder.

    Example:
        >>> safe_name("../../mess3 (x=0.05)")
        'mess3_x_0.05'
    """
    words = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFKC", name)).strip("._-")
    short = words.encode()[:100].decode(errors="ignore").strip("._-")
    # Windows keeps these names for devices.
    is_device = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", short.lower())
    return f"_{short}" if is_device else short or "unnamed"


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the folder's lock: no other process, and no other thread, writes a run there at the same time.

    The folder is created if need be. The operating system releases the lock of a process that dies. A thread may lock
    a folder again that it has locked. Of several distributed processes, let the main one lock.

    Raises:
        ValueError: if somebody else holds the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / LOCK_FILE, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another process is writing to {folder}: wait for it to end, or give another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: str | Path) -> bool:
    """Whether somebody else holds the folder's lock, or it cannot be had."""
    try:
        with locked(folder):
            return False
    except (ValueError, OSError):
        return True


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of killed writers from a folder that this process has locked."""
    for path in Path(folder).glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}), possibly truncated: copy or create it again.") from error
