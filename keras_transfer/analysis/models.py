"""The trained models an analysis looks at, loaded once for all analyses."""

import collections
import dataclasses
import functools
import itertools
import os

import gin
import numpy as np
from tqdm import tqdm

from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.landscape.loss_surface import dataset_surface
from keras_transfer.landscape.replicas import on_replicas
from keras_transfer.runs import Run

# What a model was before it was trained on the target (paper section 2).
_STARTS = {"RI-T": "RI", "P-T": "P"}
# Examples at a time, in a pass that computes logits only.
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model at one epoch of its training.

    Attributes:
        kind: "P-T", "RI-T", "P", "RI" or a name of the user's own.
        name: str, unique among the subjects: the run directory's name, with
            the names of directories above it if need be.
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
        UserError: if nothing is named, or something twice, or a run or
            checkpoint is missing.
    """

    def __init__(
        self,
        runs: dict = gin.REQUIRED,
        epoch: str | int = "last",
        data_from: str | None = None,
    ):
        if not _are_runs(runs):
            raise UserError(
                "Name the runs to analyze, for example with --gin_bindings="
                """'Subjects.runs = {"P-T": ["runs/pt0", "runs/pt1"]}'. """
                f"Received: {runs!r}"
            )
        named = [
            (kind, Run(path))
            for kind, paths in runs.items()
            for path in (paths if isinstance(paths, (list, tuple)) else [paths])
        ]
        for _, run in named:
            run.check_exists()
        _check_distinct([run for _, run in named])
        names = _names([run.path for _, run in named])
        self._subjects = [
            Subject(kind, name, run, run.resolve_epoch(epoch))
            for (kind, run), name in zip(named, names, strict=True)
        ]
        self._data_run = Run(data_from) if data_from else self._subjects[0].run
        self._models = {}
        self._logits = {}
        self._surfaces = {}

    def reuse(self, other):
        """Takes over what another `Subjects` has loaded, if it is of the same.

        Args:
            other: `Subjects`; the runs must not have been trained on since.
        """
        if self._identity() == other._identity():
            self.__dict__ |= other.__dict__

    def __iter__(self):
        return iter(self._subjects)

    def __len__(self):
        return len(self._subjects)

    def of_kind(self, kind):
        """Returns the subjects of one kind, in the order they were named."""
        return [s for s in self._subjects if s.kind == kind]

    def trained(self):
        """Returns the subjects trained on the target: all but RI and P."""
        return [s for s in self if s.kind not in _STARTS.values()]

    def start(self, subject):
        """Returns the subject that `subject` was trained from.

        It is epoch 0 of the same run; its kind is "RI" for an RI-T, "P" for a
        P-T (whose new head makes it differ from P there) and
        "<kind> start" for others.
        """
        return dataclasses.replace(
            subject,
            kind=_STARTS.get(subject.kind, f"{subject.kind} start"),
            name=f"{subject.name}@0",
            epoch=subject.run.resolve_epoch(0),
        )

    def pairs(self):
        """Yields (pair kind, first, second) for every unordered pair.

        The pair kind joins the two kinds in the order they were named, such as
        "P-T/P-T" or "P-T/RI-T".
        """
        for first, second in itertools.combinations(self._subjects, 2):
            yield f"{first.kind}/{second.kind}", first, second

    @functools.cached_property
    def strategy(self):
        """The `tf.distribute.Strategy` that the models are loaded under."""
        return default_strategy()

    @functools.cached_property
    def dataset(self):
        """The `data.Dataset` of `data_from`."""
        return self._data_run.load_data()

    @property
    def info(self):
        """The dataset's `data.Info`."""
        return self._data_run.info()

    def split(self, name):
        """Returns the dataset's `data.Split` called "test" or "train"."""
        if name not in ("test", "train"):
            raise UserError(f'A split is "test" or "train". Received: {name!r}')
        return getattr(self.dataset, name)

    def model(self, subject, epoch=None):
        """Returns a subject's Keras model, loaded once.

        Args:
            subject: a `Subject`.
            epoch: another epoch of the same run, "last", "best" or int.
        """
        epoch = (
            subject.epoch if epoch is None else subject.run.resolve_epoch(epoch)
        )
        key = (subject.run.path, epoch)
        if key not in self._models:
            with self.strategy.scope():
                self._models[key] = subject.run.load_model(epoch)
        return self._models[key]

    def logits(self, subject, split="test"):
        """Returns a subject's logits on a split, computed once.

        The first call makes one pass over the images, which are preprocessed
        once, and through every subject trained on the target.

        Args:
            subject: a `Subject`.
            split: "test" or "train".

        Returns:
            float32 array [n, K], in the split's order.

        Raises:
            UserError: if a model does not fit the dataset.
        """
        if (subject, split) not in self._logits:
            wanted = [
                s
                for s in dict.fromkeys([*self.trained(), subject])
                if (s, split) not in self._logits
            ]
            found = self._predict(wanted, split)
            self._logits |= {
                (s, split): f for s, f in zip(wanted, found, strict=True)
            }
        return self._logits[subject, split]

    def check_images(self, subject):
        """Raises a `UserError` if a model cannot take the dataset's images."""
        shape = self.model(subject).input_shape[1:]
        if shape != self.info.image_shape:
            raise UserError(
                f"{subject.name} takes images of shape {shape}. Received: a "
                f"dataset of {self.info.image_shape}; compare models on images "
                "of one shape, or bind Subjects.data_from to a run whose "
                "dataset fits."
            )

    def surface(self, split="test"):
        """Returns the loss surface over the trained subjects, made once.

        Args:
            split: "test" or "train".

        Returns:
            `LossSurface`; its vectors are the weights of `trained()`, in order.

        Raises:
            UserError: if there is none, or they do not fit.
        """
        models = self.trained()
        if not models:
            raise UserError(
                "There is no model trained on the target among the subjects; "
                "name some in Subjects.runs."
            )
        if split not in self._surfaces:
            self._surfaces[split] = dataset_surface(
                self.model(models[0]),
                [self.weights(subject) for subject in models],
                self.dataset,
                split,
                strategy=self.strategy,
            )
        return self._surfaces[split]

    def _identity(self):
        return [
            self._data_run.path,
            *((s.kind, s.run.path, s.epoch) for s in self),
        ]

    def _predict(self, subjects, split):
        for subject in subjects:
            self.check_images(subject)
            width = self.model(subject).output_shape[-1]
            if width != len(self.info.class_names):
                raise UserError(
                    f"{subject.name} gives {width} logits. Received: a dataset "
                    f"of {len(self.info.class_names)} classes; leave it out, "
                    "or bind Subjects.data_from to a run on its dataset."
                )
        number = len(self.split(split))
        replicas = self.strategy.num_replicas_in_sync
        steps = -(-number // (_BATCH_SIZE * replicas)) * replicas
        # Equal batches, so that next to nothing is padded and no replica idle.
        batches = tqdm(
            self.dataset.eval_batches(split, batch_size=-(-number // steps)),
            f"logits of {split}",
            unit="batch",
            leave=None,
        )
        predict = [
            functools.partial(self.model(s), training=False) for s in subjects
        ]
        found = [
            [np.asarray(logits, np.float32) for logits in row]
            for row in on_replicas(
                self.strategy, predict, (images for images, _, _ in batches)
            )
        ]
        return [
            np.concatenate(parts)[:number] for parts in zip(*found, strict=True)
        ]

    def weights(self, subject, epoch=None):
        """Returns a subject's weights as `keras.Model.get_weights` lists them.

        Args:
            subject: a `Subject`.
            epoch: another epoch of the same run, "last", "best" or int.

        Returns:
            list of NumPy arrays, trainable and other, in the model's order.
        """
        return [np.asarray(w) for w in self.model(subject, epoch).get_weights()]


def _are_runs(runs):
    """Returns whether it is {str: path or list of paths}, one at least."""
    if not isinstance(runs, dict) or not any(runs.values()):
        return False
    paths = [
        path
        for named in runs.values()
        for path in (named if isinstance(named, (list, tuple)) else [named])
    ]
    return all(isinstance(kind, str) for kind in runs) and all(
        isinstance(path, (str, os.PathLike)) for path in paths
    )


def _check_distinct(runs):
    """Raises a `UserError` if a run is named twice: no table could tell."""
    counts = collections.Counter(run.path.resolve() for run in runs)
    twice = [str(path) for path, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            "Each run in Subjects.runs is named once. Received more than once: "
            f"{', '.join(twice)}."
        )


def _names(paths):
    """Returns the last parts of paths, as many as tell them from each other."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def excess_of_pretrained_pairs(kinds, values):
    """Compares pairs of P-Ts with the other pairs, as claims C3 and C4 do.

    Args:
        kinds: `pandas.Series` of pair kinds, as `Subjects.pairs` names them.
        values: `pandas.Series` [n], a similarity of each pair.

    Returns:
        float, the mean over P-T/P-T minus the larger of the means over
        P-T/RI-T (in either order) and RI-T/RI-T.

    Raises:
        UserError: if a kind of pair is missing.
    """
    means = values.groupby(kinds.replace("RI-T/P-T", "P-T/RI-T")).mean()
    needed = ["P-T/P-T", "P-T/RI-T", "RI-T/RI-T"]
    if missing := [kind for kind in needed if kind not in means]:
        raise UserError(
            "This statistic compares pairs of P-Ts with pairs of RI-Ts, so two "
            f"runs of each must be named. Received: no {', '.join(missing)}."
        )
    return float(means[needed[0]] - means[needed[1:]].max())
