"""Types of the public names, for editors and type checkers.

`tests/test_types.py` compares the signatures with the code's.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy.typing as npt
import pandas
from matplotlib.figure import Figure as _MatplotlibFigure

from keras_transfer import data as data
from keras_transfer import figures as figures
from keras_transfer.errors import UserError as UserError

__version__: str
__all__: list[str]

_Path = str | os.PathLike[str]
_Split = Literal["test", "train"]
_Level = Literal["block", "group"]
_Epoch = int | str
_Values = npt.ArrayLike

class Examples:
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    multi_label: bool
    def __init__(
        self,
        train: Any = None,
        test: Any = None,
        class_names: Iterable[Any] | None = None,
        multi_label: bool | None = None,
    ) -> None: ...
    @property
    def num_classes(self) -> int: ...
    def split(self, name: str) -> Any: ...
    def has(self, name: str) -> bool: ...
    def draw(self, name: str, count: int, seed: int = 0) -> Any: ...

class Trajectory(keras.callbacks.Callback):
    def __init__(
        self, epochs: Sequence[int] | None = None, **about: Any
    ) -> None: ...
    def epochs(self) -> list[int]: ...
    def load_weights(self, epoch: _Epoch = "last") -> dict[str, Any]: ...
    def load_model(self, epoch: _Epoch = "last") -> keras.Model: ...

class Run:
    def __init__(self, path: _Path) -> None: ...
    @property
    def exists(self) -> bool: ...
    def epochs(self) -> list[int]: ...
    def best(self) -> dict[str, Any]: ...
    def progress(self) -> tuple[int, int | None]: ...
    def load_model(self, epoch: _Epoch = "last") -> keras.Model: ...
    def load_weights(
        self, epoch: _Epoch = "last"
    ) -> dict[str, npt.NDArray[Any]]: ...
    def load_data(self, data_dir: str | None = None) -> Any: ...
    def metrics(self) -> pandas.DataFrame: ...
    def binding(self, name: str) -> Any: ...

# A model to look at, wherever it is.
_Model = keras.Model | _Path | Run | Trajectory

class Models:
    def __init__(
        self,
        models: Mapping[str, _Model | Sequence[_Model]] = ...,
        data: Examples | _Path | Any = None,
        epoch: _Epoch = "last",
        batch_norm: Literal["reestimate", "stored"] = "reestimate",
        data_dir: str | None = None,
    ) -> None: ...

# Declaring an analysis.

class Table(pandas.DataFrame):
    further: dict[str, pandas.DataFrame]
    def __init__(self, data: Any, **further: pandas.DataFrame) -> None: ...

class Figure:
    name: str
    draw: Callable[..., _MatplotlibFigure | None]
    title: str
    text: str
    tables: tuple[str, ...]
    def __init__(
        self,
        name: str,
        draw: Callable[..., _MatplotlibFigure | None],
        title: str = "",
        text: str = "",
        tables: tuple[str, ...] = (),
    ) -> None: ...
    def __call__(
        self, *tables: pandas.DataFrame
    ) -> _MatplotlibFigure | None: ...

class Statistic:
    claim: str
    statement: str
    name: str
    direction: str
    threshold: float
    compute: Callable[..., Any]
    tables: tuple[str, ...]
    figure: str
    decides: bool
    calibrate: Callable[..., Any] | None
    unit: str
    def __init__(
        self,
        claim: str,
        statement: str,
        name: str,
        direction: str,
        threshold: float,
        compute: Callable[..., Any],
        tables: tuple[str, ...] = (),
        figure: str = "",
        decides: bool = True,
        calibrate: Callable[..., Any] | None = None,
        unit: str = "",
    ) -> None: ...

def declare_analysis(
    figures: Sequence[Figure] = (),
    statistics: Sequence[Statistic] = (),
    cost: Callable[..., float] = ...,
    by_module: bool = False,
    in_memory: Sequence[str] = (),
) -> Callable[
    [Callable[..., pandas.DataFrame]], Callable[..., pandas.DataFrame]
]: ...

# Analyses.

def averaging(
    models: Models, save_to: os.PathLike[str] | None = None
) -> pandas.DataFrame: ...
def basin(
    models: Models,
    split: _Split = "test",
    tolerance: float = 0.05,
    deltas: tuple[float, ...] = ...,
    num_samples: int = 64,
    seed: int = 0,
    reference: str = "P-T",
    sensitivity: bool = True,
) -> Table: ...
def criticality(
    models: Models,
    positions: tuple[float, ...] = ...,
    sigmas: tuple[float, ...] = ...,
    num_draws: int = 8,
    refinements: int = 1,
    margin: float = 0.01,
    levels: tuple[_Level, ...] = ("block", "group"),
    seed: int = 0,
) -> Table: ...
def distance(models: Models) -> pandas.DataFrame: ...
def feature_reuse(models: Models) -> Table: ...
def interpolation(
    models: Models,
    num_points: int = 50,
    extent: tuple[float, float] = (-0.5, 1.5),
    splits: tuple[_Split, ...] | None = None,
    epochs: tuple[_Epoch, ...] | None = None,
) -> Table: ...
def label_efficiency(models: Models) -> pandas.DataFrame: ...
def mistakes(
    models: Models,
    split: _Split = "test",
    num_bins: int = 15,
    images_shown: int = 24,
    seed: int | None = None,
) -> Table: ...
def plane(
    models: Models,
    split: _Split = "test",
    num_points: int = 21,
    margin: float = 0.5,
) -> pandas.DataFrame: ...
def pretraining(
    models: Models,
    pretrained: _Path | Run | Trajectory | None = None,
    pretrained_data: Examples | Any = None,
    num_points: int = 20,
    tolerance: float = 0.05,
) -> Table: ...
def rewinding(
    models: Models,
    epochs: tuple[int, ...] | None = None,
    splits: tuple[_Split, ...] | None = None,
    levels: tuple[_Level, ...] = ("block", "group"),
) -> pandas.DataFrame: ...
def similarity(
    models: Models,
    split: _Split = "test",
    num_examples: int = 2048,
    seed: int = 0,
    batch_size: int = 32,
    kernel: str = "linear",
    bandwidth: float = 1.0,
    memory_budget: float = 4.0,
) -> pandas.DataFrame: ...
def spectrum(models: Models, num_values: int = 101) -> Table: ...

# Their parts.

def barrier_height(
    alphas: _Values, values: _Values, higher_is_better: bool
) -> float: ...
def linear_cka(x: _Values, y: _Values) -> float: ...
def rbf_cka(x: _Values, y: _Values, bandwidth: float = 1.0) -> float: ...

# Networks and weights.

def initialize_from(
    model: keras.Model,
    source: Any,
    head: str | tuple[str, ...] | None = None,
    weight_names: dict[str, str] | None = None,
    channels: Literal["rgb", "bgr"] = "rgb",
) -> Any: ...
def module_chain(
    model: keras.Model, boundaries: dict[str, str] | None = None
) -> list[Any]: ...
def read_weights(source: Any) -> Any: ...
