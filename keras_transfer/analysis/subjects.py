"""The trained models an analysis looks at, loaded once for all analyses."""

import dataclasses
import functools
import itertools

import gin
import numpy as np

from keras_transfer.errors import UserError
from keras_transfer.runs import Run

KINDS = ("RI", "P", "RI-T", "P-T")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model at one epoch of its training.

    Attributes:
        kind: "P-T", "RI-T", "P", "RI" or a name of the user's own.
        name: str, unique among the subjects; the run directory's name.
        run: the `runs.Run`.
        epoch: int.
    """

    kind: str
    name: str
    run: Run
    epoch: int


@gin.configurable
class Subjects:
    """Models of one architecture and the dataset they are compared on.

    Args:
        runs: {kind: [run directory, ...]}, for example
            {"P-T": ["runs/pt0", "runs/pt1"], "RI-T": ["runs/rit0"]}.
        epoch: "last", "best" or int: which checkpoint of each run.
        data_from: run directory whose dataset is used; None: the first named.

    Raises:
        UserError: if nothing is named, or a run or checkpoint is missing.
    """

    def __init__(self, runs=gin.REQUIRED, epoch="last", data_from=None):
        if not isinstance(runs, dict) or not any(runs.values()):
            raise UserError(
                "Name the runs to analyze, for example with --gin_bindings="
                """'Subjects.runs = {"P-T": ["runs/pt0", "runs/pt1"]}'. """
                f"Received: {runs!r}"
            )
        self._subjects = []
        names = set()
        for kind, paths in runs.items():
            for path in [paths] if isinstance(paths, str) else paths:
                run = Run(path)
                run.check_exists()
                name = run.path.resolve().name
                if name in names:
                    name = str(run.path)
                names.add(name)
                self._subjects.append(
                    Subject(kind, name, run, run.resolve_epoch(epoch))
                )
        self._data_run = Run(data_from) if data_from else self._subjects[0].run
        self._models = {}

    def __iter__(self):
        return iter(self._subjects)

    def __len__(self):
        return len(self._subjects)

    def of_kind(self, kind):
        """Returns the subjects of one kind, in the order they were named."""
        return [s for s in self._subjects if s.kind == kind]

    def pairs(self):
        """Yields (pair kind, first, second) for every unordered pair.

        The pair kind joins the two kinds in the order they were named, such as
        "P-T/P-T" or "P-T/RI-T".
        """
        for first, second in itertools.combinations(self._subjects, 2):
            yield f"{first.kind}/{second.kind}", first, second

    @functools.cached_property
    def dataset(self):
        """The `data.Dataset` of `data_from`."""
        return self._data_run.load_data()

    @property
    def info(self):
        """The dataset's `data.Info`."""
        return self._data_run.info()

    def model(self, subject, epoch=None):
        """Returns a subject's Keras model, loaded once.

        Args:
            subject: a `Subject`.
            epoch: another epoch of the same run, "last", "best" or int.
        """
        epoch = (
            subject.epoch if epoch is None else subject.run.resolve_epoch(epoch)
        )
        key = (subject.name, epoch)
        if key not in self._models:
            self._models[key] = subject.run.load_model(epoch)
        return self._models[key]

    def weights(self, subject, epoch=None):
        """Returns a subject's weights as `keras.Model.get_weights` lists them.

        Args:
            subject: a `Subject`.
            epoch: another epoch of the same run, "last", "best" or int.

        Returns:
            list of NumPy arrays, trainable and other, in the model's order.
        """
        return [np.asarray(w) for w in self.model(subject, epoch).get_weights()]
