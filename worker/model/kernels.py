"""The engine's own CPU kernels: compiled once on the machine that runs them, called by address.

A decode step of a small batch spends a quarter of its time in operations that are too small for
torch's dispatcher. `kernels.cpp` holds them as plain loops, `products.cpp` the matrix products,
`layer.cpp` a layer made of all of them, and `sampling.cpp` the choice of tokens. The machine's C++
compiler makes them at the first start, for this processor, and the library is kept in the user's
cache folder. Without a compiler the engine computes the same with torch's operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from worker.model.linear_native import NativeProducts

log = logging.getLogger(__name__)

_FLAGS: Final = ("-std=gnu++17", "-O3", "-fPIC")
_SOURCES: Final = {
    Path(__file__).with_name("kernels.cpp"): (*_FLAGS, "-ffast-math"),
    Path(__file__).with_name("products.cpp"): _FLAGS,
    Path(__file__).with_name("squeeze.cpp"): _FLAGS,
    Path(__file__).with_name("sampling.cpp"): _FLAGS,
    Path(__file__).with_name("layer.cpp"): (*_FLAGS, "-ffast-math"),
}
_HEADER: Final = Path(__file__).with_name("kernels.h")
_NAMES: Final = {torch.float32: "f32", torch.bfloat16: "bf16"}
KERNEL_DTYPES: Final = frozenset(_NAMES)
"""Types of weights that there are kernels for."""
_ARGUMENTS: Final[dict[str, list[Any]]] = {
    "rms_norm": [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_float],
    "rotate": [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64],
    "put_keys": [c_void_p, c_void_p, c_void_p, *[c_int64] * 7],
    "put_values": [c_void_p, c_void_p, c_void_p, *[c_int64] * 7],
    "attend": [c_void_p],
}
_COMPILE_TIMEOUT_S: Final = 120


class AttendCall(ctypes.Structure):
    """The arguments of `attend`, as `struct Attention` of kernels.h has them."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "out", "keys", "values")),
        *((name, c_void_p) for name in ("first", "count", "end", "table")),
        *((name, c_int64) for name in ("num", "heads", "kv_heads", "dim", "value_dim")),
        *((name, c_int64) for name in ("num_blocks", "block_size", "table_width", "window")),
        *((name, c_int64) for name in ("query_row", "query_head", "out_row", "out_head")),
        *((name, c_float) for name in ("scale", "softcap")),
    )


class Kernels:
    """The kernels of one dtype, for tensors on the CPU whose last dimension is dense.

    Attributes:
        library: the compiled library, which has those of other dtypes too.
        products: matrix products, where this processor and dtype have faster ones than oneDNN's.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.library = library
        self.products: NativeProducts | None = None
        if dtype == torch.bfloat16 and library.has_products():
            self.products = NativeProducts(library)
        for name, arguments in _ARGUMENTS.items():
            function = library[f"{name}_{_NAMES[dtype]}"]
            function.argtypes, function.restype = arguments, None
            setattr(self, f"_{name}", function)

    _rms_norm: Callable[..., None]
    _rotate: Callable[..., None]
    _put_keys: Callable[..., None]
    _put_values: Callable[..., None]
    _attend: Callable[..., None]

    def rms_norm(
        self, rows: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        """Normalise the last dimension of `rows` [n, width] or [n, heads, width] into `out`.

        `out` has the strides of `rows`, and may be `rows`.
        """
        heads = rows.shape[1] if rows.dim() == 3 else 1
        self._rms_norm(
            rows.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            rows.shape[0],
            heads,
            rows.shape[-1],
            rows.stride(0),
            eps,
        )
        return out

    def rotate(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotary embedding of rows [n, heads, dim] in place, by tables [n, dim] of both halves."""
        num, heads, dim = rows.shape
        self._rotate(
            rows.data_ptr(), cos.data_ptr(), sin.data_ptr(), num, heads, dim, rows.stride(0)
        )

    def put_keys(self, rows: torch.Tensor, pool: torch.Tensor, slots: torch.Tensor) -> None:
        """Store keys [n, heads, dim] in [heads, blocks, dim, size] at slots [n], int64."""
        num_blocks, block_size = pool.shape[1], pool.shape[3]
        self._put_keys(*_put_arguments(rows, pool, slots, num_blocks, block_size))

    def put_values(self, rows: torch.Tensor, pool: torch.Tensor, slots: torch.Tensor) -> None:
        """Store values [n, heads, dim] in [heads, blocks, size, dim] at slots [n], int64."""
        num_blocks, block_size = pool.shape[1], pool.shape[2]
        self._put_values(*_put_arguments(rows, pool, slots, num_blocks, block_size))

    def attend(self, call: AttendCall) -> None:
        """Attention of rows over their blocks; whoever makes `call` keeps its tensors."""
        self._attend(ctypes.addressof(call))


def _put_arguments(
    rows: torch.Tensor, pool: torch.Tensor, slots: torch.Tensor, num_blocks: int, block_size: int
) -> tuple[int, ...]:
    pointers = rows.data_ptr(), pool.data_ptr(), slots.data_ptr()
    return (*pointers, *rows.shape, num_blocks, block_size, rows.stride(0), rows.stride(1))


KernelSet: TypeAlias = dict[torch.dtype, Kernels]


def load_kernels(report: Callable[[str], None]) -> KernelSet | None:
    """The kernels of each dtype, compiled if they are not yet; None where they cannot be had."""
    if platform.system() != "Linux":
        return None
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        log.info("no C++ compiler: the engine goes without its own CPU kernels and is slower")
        return None
    try:
        library = _loaded(compiler, report)
        return {dtype: Kernels(library, dtype) for dtype in _NAMES}
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        log.warning("the CPU kernels could not be compiled, the engine goes without: %s", error)
        return None


def _loaded(compiler: str, report: Callable[[str], None]) -> ctypes.CDLL:
    """The library; one that was kept and cannot be loaded is compiled again."""
    path = _library(compiler, report)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        log.warning("the kept CPU kernels cannot be loaded, they are compiled again: %s", error)
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_library(compiler, report)))


def _library(compiler: str, report: Callable[[str], None]) -> Path:
    """Path of the compiled library."""
    openmp = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    machine = (native, *(("-fopenmp",) if openmp else ()))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    known = [
        *(source.read_bytes() for source in (*_SOURCES, _HEADER)),
        version,
        repr((list(_SOURCES.values()), machine)).encode(),
        _processor(),
        str(openmp).encode(),
    ]
    name = hashlib.sha256(b"\0".join(known)).hexdigest()[:20]
    folder = _cache_folder()
    library = folder / f"kernels-{name}.so"
    if not library.is_file():
        report("compiling CPU kernels")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            linked = Path(scratch, "kernels.so")
            made = [Path(scratch, f"{source.stem}.o") for source in _SOURCES]
            for (source, flags), to in zip(_SOURCES.items(), made, strict=True):
                _run([compiler, *flags, *machine, "-c", str(source), "-o", str(to)])
            # torch's own OpenMP runtime, so that its threads are used; no -ffast-math in this
            # step, which would change how the whole process rounds
            parts = [*map(str, made), *([str(openmp)] if openmp else []), "-lm"]
            _run([compiler, "-shared", *parts, "-o", str(linked)])
            linked.replace(library)
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split())[:300]}")


def _processor() -> bytes:
    """What tells this processor from others, as the library is made for it alone."""
    info = Path("/proc/cpuinfo")
    lines = info.read_bytes().splitlines() if info.is_file() else []
    return b"\n".join(line for line in lines[:40] if line.startswith((b"model name", b"flags")))


def _cache_folder() -> Path:
    """A folder that nobody else can write to; a temporary one where there is no home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "trireme"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        pass
    return Path(tempfile.mkdtemp(prefix="trireme-"))
