"""Fitted boosted trees that score, through LightGBM's C API (https://lightgbm.readthedocs.io/en/stable/C-API.html).

LightGBM's Python package imports scikit-learn for wrappers that are not used here, which takes half a second of each
process that scores; only training needs it.

Legend: N rows, C columns.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from dkt_ray.errors import ConfigError

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32 | np.float64]
Said = Literal["probability", "log-odds", "contributions"]
Kind = Literal["split", "gain"]

# Numbers that stand for them in LightGBM's c_api.h.
_SAID: Final[dict[Said, int]] = {"probability": 0, "log-odds": 1, "contributions": 3}
_KIND: Final[dict[Kind, int]] = {"split": 0, "gain": 1}
_TYPE: Final = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}
_ROW_MAJOR: Final = c_int(1)
_FIRST, _ALL = c_int(0), c_int(-1)  # of the rounds


class Trees:
    """Boosted trees for a yes-or-no target, read from LightGBM's text.

    Raises:
        ConfigError: the text is not LightGBM's.
    """

    def __init__(self, text: str) -> None:
        rounds, handle, columns = c_int(), c_void_p(), c_int()
        _call("LGBM_BoosterLoadModelFromString", c_char_p(text.encode()), byref(rounds), byref(handle))
        weakref.finalize(self, _call, "LGBM_BoosterFree", handle).atexit = False  # a thread may still be scoring then
        _call("LGBM_BoosterGetNumFeature", handle, byref(columns))
        self.text: Final = text
        self.rounds: Final = rounds.value
        self.columns: Final = columns.value
        """C."""
        self._handle = handle

    def __reduce__(self) -> tuple[type[Trees], tuple[str]]:
        return type(self), (self.text,)

    def predict(self, matrix: Matrix, threads: int, say: Said = "probability") -> Floats:
        """What the trees say of each row of the matrix [N, C].

        Args:
            threads: 0: as many as there are cores.
            say: contributions are SHAP values of the log-odds, and the average row's behind them.

        Returns:
            [N], contributions [N, C + 1].

        Raises:
            ConfigError: the trees read another number of columns, or tell more than two classes apart.
        """
        matrix = np.ascontiguousarray(matrix, None if matrix.dtype in _TYPE else np.float64)
        rows, columns = matrix.shape
        shape = (rows, self.columns + 1) if say == "contributions" else (rows,)
        which, found = c_int(_SAID[say]), c_int64()
        _call("LGBM_BoosterCalcNumPredict", self._handle, c_int(rows), which, _FIRST, _ALL, byref(found))
        out = np.empty(shape, np.float64)
        if found.value != out.size:
            raise ConfigError(f"the trees say {found.value} numbers of {rows} rows, expected {out.size}; fit others")
        _call(
            "LGBM_BoosterPredictForMat",
            self._handle,
            matrix.ctypes.data_as(c_void_p),
            c_int(_TYPE[matrix.dtype]),
            c_int32(rows),
            c_int32(columns),
            _ROW_MAJOR,
            which,
            _FIRST,
            _ALL,
            c_char_p(f"num_threads={threads}".encode()),
            byref(found),
            out.ctypes.data_as(ctypes.POINTER(c_double)),
        )
        return out

    def importance(self, kind: Kind) -> Floats:
        """[C] in how many splits each column is read, or what these splits took from the loss."""
        out = np.zeros(self.columns, np.float64)
        where = out.ctypes.data_as(ctypes.POINTER(c_double))
        _call("LGBM_BoosterFeatureImportance", self._handle, _ALL, c_int(_KIND[kind]), where)
        return out


def _call(name: str, *arguments: Any) -> None:
    if getattr(_LIBRARY, name)(*arguments):
        raise ConfigError(f"LightGBM: {_LIBRARY.LGBM_GetLastError().decode()}")


def _library() -> ctypes.CDLL:
    package = find_spec("lightgbm")  # looked for, not imported
    assert package is not None
    assert package.origin is not None
    path = next(Path(package.origin).parent.rglob("lib_lightgbm.*"))
    library = ctypes.CDLL(str(path))
    library.LGBM_GetLastError.restype = c_char_p
    return library


_LIBRARY: Final = _library()
