"""The models that an analysis compares, and the data it compares them on."""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib

import gin
import keras
import numpy as np
from tqdm import tqdm

from keras_transfer import data as data_package
from keras_transfer.analysis.trajectory import SingleModel, Trajectory, copy_of
from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.landscape.batch_norm import (
    StatisticsEstimator,
    batch_norms,
)
from keras_transfer.landscape.evaluations import Evaluations
from keras_transfer.landscape.loss_surface import (
    BatchNorm,
    check_fit,
    check_inputs,
    examples_surface,
    statistics_batches,
)
from keras_transfer.landscape.module_loss import examples_modules
from keras_transfer.landscape.replicas import on_replicas
from keras_transfer.models import assign_weights, logits_model
from keras_transfer.runs import Run

# What a model was before it was trained on the target (paper section 2).
_STARTS = {"RI-T": "RI", "P-T": "P"}
# Examples at a time, in a pass that computes logits only.
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One model of a comparison, at one epoch of its training.

    Attributes:
        kind: "P-T", "RI-T", "P", "RI" or a name of the user's own.
        name: str, unique among the members.
        source: where its weights come from: a `Run`, a `Trajectory`, or a
            `SingleModel`.
        epoch: int; None of a single model.
    """

    kind: str
    name: str
    source: object
    epoch: int | None


@gin.configurable
class Models:
    """Models and the data they are compared on: what every analysis takes.

    Example:
        models = Models({"P-T": [m1, m2], "RI-T": ["runs/rit0", "rit1.keras"]},
                        data=Examples(train=train, test=(x, y)))
        table = interpolation(models)

    Models are loaded once, and what several analyses need is computed once.

    Args:
        models: {kind: a model or a list of them}. A model is a `keras.Model`,
            the path of a .keras file, a run directory or its `Run`, or a
            `Trajectory`. "P-T", "RI-T", "P" and "RI" are the paper's kinds.
        data: `Examples`, what `data.load` returns, or a run directory whose
            data are used; None: those of the first run named, if there is one.
            Analyses of weights alone need none.
        data_dir: where the data of that run are now, if they have moved; None:
            load.data_dir, if that is bound, else where they were.
        epoch: "last", "best" or int: which of a run's or trajectory's epochs.
        batch_norm: whose statistics models with batch normalization have, in
            all analyses: "reestimate", each point of parameter space its own,
            estimated anew from training images; or "stored", those of
            training, combined like weights between models.

    Raises:
        UserError: if nothing is named, or something twice, or a run or
            checkpoint is missing.
    """

    def __init__(
        self,
        models: dict = gin.REQUIRED,
        data=None,
        epoch: str | int = "last",
        batch_norm: BatchNorm = "reestimate",
        data_dir: str | None = None,
    ):
        named = _named(models)
        sources = [_source(model) for _, model in named]
        _check_distinct([model for _, model in named])
        names = _names(named, sources)
        self._members = [
            Member(kind, name, source, source.resolve_epoch(epoch))
            for (kind, _), name, source in zip(
                named, names, sources, strict=True
            )
        ]
        self._data = _data_source(data, sources)
        self._data_dir = data_dir
        self.batch_norm = batch_norm
        self.evaluations = Evaluations()
        self._models, self._logits, self._surfaces = {}, {}, {}
        self._with_statistics = set()
        self._module_losses, self._estimators = {}, {}

    def take_over(self, other):
        """Takes what another `Models` has loaded, if it is of the same.

        Args:
            other: `Models`; its runs must not have been trained on since.
        """
        if self._identity() == other._identity():
            kept = self.evaluations
            self.__dict__ |= other.__dict__
            self.evaluations = kept

    def __iter__(self):
        return iter(self._members)

    def __len__(self):
        return len(self._members)

    def of_kind(self, kind):
        """Returns the members of one kind, in the order they were named."""
        return [member for member in self if member.kind == kind]

    def trained(self, least=0, purpose="This analysis"):
        """Returns the members trained on the target: all but RI and P.

        Args:
            least: int, how many are needed.
            purpose: str, what needs them: the start of a sentence.

        Raises:
            UserError: if there are fewer.
        """
        found = [m for m in self if m.kind not in _STARTS.values()]
        if len(found) < least:
            raise UserError(
                f"{purpose} needs {least} or more models trained on the "
                f"target. Received: {len(found)}; name more in Models.models."
            )
        return found

    def check_trainable(self, purpose):
        """Raises a `UserError` if all that the models have is frozen.

        Args:
            purpose: str, what then makes no sense: the start of a sentence.
        """
        # They are of one architecture, and the first one's flags count.
        for member in self.trained()[:1]:
            if not self.model(member).trainable_weights:
                raise UserError(
                    f"{purpose} adds noise to trainable weights, not to frozen "
                    f"ones. Received: {member.name}, all frozen; set "
                    "model.trainable = True."
                )

    def has_start(self, member):
        """Returns whether it is known what a member was trained from."""
        return 0 in member.source.epochs()

    def start(self, member):
        """Returns the member that another was trained from.

        It is epoch 0 of the same run; its kind is "RI" for an RI-T, "P" for a
        P-T (whose new head makes it differ from P there) and "<kind> start" for
        others.

        Raises:
            UserError: if epoch 0 is not known.
        """
        return dataclasses.replace(
            member,
            kind=_STARTS.get(member.kind, f"{member.kind} start"),
            name=f"{member.name}@0",
            epoch=member.source.resolve_epoch(0),
        )

    def pairs(self, members=None):
        """Yields (kind of pair, first, second) for every unordered pair.

        The kind of a pair joins the two kinds in the order they were named,
        such as "P-T/P-T" or "P-T/RI-T".

        Args:
            members: list of `Member`; None for all.
        """
        members = self._members if members is None else members
        for first, second in itertools.combinations(members, 2):
            yield f"{first.kind}/{second.kind}", first, second

    @functools.cached_property
    def strategy(self):
        """The `tf.distribute.Strategy` that the models are loaded under."""
        return default_strategy()

    @functools.cached_property
    def examples(self):
        """The `Examples` that the models are compared on.

        Raises:
            UserError: if none were given, and no run that knows its own.
        """
        if self._data is None:
            raise UserError(
                "Models are compared on data, and none of these is a run that "
                "knows its own. Give Models(..., data=Examples(train=..., "
                "test=...)). Received: data=None"
            )
        if isinstance(self._data, Run):
            data_dir = self._data_dir or _bound("load.data_dir")
            return self._data.load_data(data_dir).examples
        return self._data

    @functools.cached_property
    def info(self):
        """The `data.Info` of the run whose data are used; None of others."""
        return self._data.info() if isinstance(self._data, Run) else None

    def model(self, member, epoch=None, statistics=True):
        """Returns a member's Keras model, giving logits; loaded once.

        Args:
            member: a `Member`.
            epoch: another epoch of the same run, "last", "best" or int.
            statistics: bool, whether batch normalization has to have its
                statistics by the policy, for which there must be images; it
                need not where only parameters are looked at.
        """
        epoch = (
            member.epoch
            if epoch is None
            else member.source.resolve_epoch(epoch)
        )
        key = (id(member.source), epoch)
        if key not in self._models:
            with self.strategy.scope():
                self._models[key] = logits_model(
                    member.source.load_model(epoch)
                )
        if statistics and key not in self._with_statistics:
            self._models[key] = self._estimated(
                self._models[key], member.source
            )
            self._with_statistics.add(key)
        return self._models[key]

    def _estimated(self, model, source):
        """Returns a source's model, with statistics by the policy."""
        if self.batch_norm == "stored" or not batch_norms(model):
            return model
        if isinstance(source, SingleModel):
            # It is the user's, and shall stay as it is.
            with self.strategy.scope():
                model = logits_model(copy_of(source.model))
        estimator = self._estimator(model)
        model.set_weights(estimator.estimated(model.get_weights()))
        return model

    @property
    def batch_norm_used(self):
        """The policy for batch normalization; "none" where no model has any."""
        loaded = self._models.values()
        return self.batch_norm if any(map(batch_norms, loaded)) else "none"

    def _estimator(self, model):
        """Returns the `StatisticsEstimator` of a model's architecture."""
        key = tuple(
            [
                *(type(layer).__name__ for layer in model.layers),
                *(tuple(w.shape) for w in model.weights),
            ]
        )
        if key not in self._estimators:
            check_inputs(model, self.examples)
            self._estimators[key] = StatisticsEstimator(
                model, statistics_batches(model, self.examples, self.batch_norm)
            )
        return self._estimators[key]

    def weights(self, member, epoch=None):
        """Returns a member's weights, as `keras.Model.get_weights` lists them.

        Args:
            member: a `Member`.
            epoch: another epoch of the same run, "last", "best" or int.

        Returns:
            list of NumPy arrays, trainable and other, in the model's order.
        """
        return [np.asarray(w) for w in self.model(member, epoch).get_weights()]

    def checkpoints(self, member, epochs):
        """Returns a member's weights at several epochs, read when needed.

        Args:
            member: a `Member`.
            epochs: list of int, in order.

        Returns:
            `Checkpoints`.
        """
        return Checkpoints(member.source, epochs)

    def logits(self, member, split="test"):
        """Returns a member's logits on a split, computed once.

        The first call makes one pass over the images, which are preprocessed
        once, and through every member trained on the target.

        Args:
            member: a `Member`.
            split: "test" or "train".

        Returns:
            float32 array [n, K], in the split's order.

        Raises:
            UserError: if a model does not fit the data.
        """
        if (member, split) not in self._logits:
            wanted = [
                m
                for m in dict.fromkeys([*self.trained(), member])
                if (m, split) not in self._logits
            ]
            found = self._predict(wanted, split)
            self._logits |= {
                (m, split): f for m, f in zip(wanted, found, strict=True)
            }
        return self._logits[member, split]

    def _predict(self, members, split):
        for member in members:
            check_fit(self.model(member), self.examples, member.name)
        chosen = self.examples.split(split)
        number = len(chosen)
        replicas = self.strategy.num_replicas_in_sync
        steps = -(-number // (_BATCH_SIZE * replicas)) * replicas
        # Equal batches, so that next to nothing is padded and no replica idle.
        batches = tqdm(
            chosen.batches(-(-number // steps)),
            f"logits of {split}",
            unit="batch",
            disable=None,
            leave=None,
        )
        predict = [
            functools.partial(self.model(m), training=False) for m in members
        ]
        found = [
            [np.asarray(logits, np.float32) for logits in row]
            for row in on_replicas(
                self.strategy, predict, (batch[0] for batch in batches)
            )
        ]
        return [
            np.concatenate(parts)[:number] for parts in zip(*found, strict=True)
        ]

    def surface(self, split="test"):
        """Returns the loss surface over the trained members, made once.

        Args:
            split: "test" or "train".

        Returns:
            `LossSurface`; its vectors are the weights of `trained()`, in order.

        Raises:
            UserError: if there is none, or they do not fit.
        """
        if split not in self._surfaces:
            members = self.trained(1, "A loss surface")
            self._surfaces[split] = examples_surface(
                self.model(members[0]),
                [self.weights(member) for member in members],
                self.examples,
                split,
                self.batch_norm,
                strategy=self.strategy,
            )
        return self._surfaces[split]

    def module_loss(self, split="train", with_auc=True):
        """Returns the `ModuleLoss` that serves all trained members, made once.

        Args:
            split: "train" (without augmentation) or "test".
            with_auc: bool, whether to compute the AUC of multi-label data.

        Raises:
            UserError: if no member is trained, or they do not fit the data.
        """
        key = split, with_auc
        if key not in self._module_losses:
            members = self.trained(1, "The loss of perturbed modules")
            self._module_losses[key] = examples_modules(
                self.model(members[0]),
                self.examples,
                split,
                self.batch_norm,
                with_auc=with_auc,
                strategy=self.strategy,
            )
        return self._module_losses[key]

    def _identity(self):
        def told(source):
            return source.path if isinstance(source, Run) else id(source)

        return [
            told(self._data),
            self.batch_norm,
            *((m.kind, told(m.source), m.epoch) for m in self),
        ]


class Checkpoints(collections.abc.Sequence):
    """The weights of one model at several epochs, read when asked for.

    Args:
        source: `Run` or `Trajectory`.
        epochs: list of int, in order.

    Attributes:
        epochs: list of int.
    """

    def __init__(self, source, epochs):
        self.epochs = list(epochs)
        self._source = source
        self._model = None

    def __len__(self):
        return len(self.epochs)

    def __getitem__(self, index):
        """Returns a list of arrays, as `model.get_weights()` gives them.

        Raises:
            UserError: naming the checkpoint if it is damaged.
        """
        epoch = self.epochs[index]
        if self._model is None:
            self._model = self._source.load_model(epoch)
            self._logits_model = logits_model(self._model)
        else:
            # Another checkpoint of a run fits the same model.
            assign_weights(self._model, self._source.load_weights(epoch))
        return [np.asarray(w) for w in self._logits_model.get_weights()]


def _named(models):
    """Returns [(kind, model)]; checks that it is {str: model or list}."""
    received = f"Received: {models!r}"
    if not isinstance(models, dict) or not any(
        not isinstance(m, (list, tuple)) or len(m) for m in models.values()
    ):
        raise UserError(
            "Name the models to analyze by their kind, for example with "
            """--gin_bindings='Models.models = {"P-T": ["runs/pt0", """
            f""""runs/pt1"]}}'. {received}"""
        )
    for kind in models:
        if not isinstance(kind, str) or not kind or set(kind) & set("/,\n"):
            raise UserError(
                'A kind of model is a word such as "P-T", without a slash or a '
                f"comma. {received}"
            )
    return [
        (kind, model)
        for kind, own in models.items()
        for model in (own if isinstance(own, (list, tuple)) else [own])
    ]


def _source(model):
    """Returns where the weights of what was named come from."""
    if isinstance(model, (Run, Trajectory)):
        return model
    if isinstance(model, keras.Model):
        return SingleModel(model)
    if not isinstance(model, (str, os.PathLike)):
        raise UserError(
            "A model is a keras.Model, a .keras file, a run directory or a "
            f"Trajectory. Received: {model!r}"
        )
    path = pathlib.Path(model).expanduser()
    if path.suffix == ".keras" and not path.is_dir():
        return SingleModel(_load_keras(path))
    run = Run(path)
    run.check_exists()
    return run


def _load_keras(path):
    if not path.is_file():
        raise UserError(f"There is no file {path}. Received: {str(path)!r}")
    try:
        return keras.models.load_model(path, compile=False)
    # What a file that is none, or has layers unknown here, makes Keras raise.
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be loaded as a Keras model. If it has layers of "
            "your own, import the module that defines them first. Keras said: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _data_source(data, sources):
    """Returns `Examples`, the `Run` whose data are used, or None."""
    if data is None:
        runs = [source for source in sources if isinstance(source, Run)]
        return runs[0] if runs else None
    if isinstance(data, data_package.Dataset):
        return data.examples
    if isinstance(data, data_package.Examples):
        return data
    if not isinstance(data, (str, os.PathLike, Run)):
        raise UserError(
            "Data are Examples, what data.load returns, or a run directory. "
            f"Received: data={data!r}"
        )
    run = data if isinstance(data, Run) else Run(pathlib.Path(data))
    run.check_exists()
    return run


def _bound(name):
    """Returns what gin binds a parameter to; None if nothing is bound."""
    try:
        return gin.query_parameter(name)
    except ValueError:
        return None


def _check_distinct(models):
    """Raises a `UserError` if a model is named twice: no table could tell."""

    def identity(model):
        if isinstance(model, (str, os.PathLike)):
            return pathlib.Path(model).expanduser().resolve()
        return model.path.resolve() if isinstance(model, Run) else id(model)

    counts = collections.Counter(map(identity, models))
    twice = [str(model) for model, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            "Each model in Models.models is named once. Received more than "
            f"once: {', '.join(twice)}."
        )


def _names(named, sources):
    """Returns a name for each model, all different.

    Of runs and files the last parts of their paths, as many as tell them from
    each other; of others the kind and a number.
    """
    paths = [_path_of(model) for _, model in named]
    parts = [p.resolve().parts for p in paths if p is not None]
    short = []
    for length in range(1, max(map(len, parts), default=0) + 1):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(short):
            break
    short, counts, names = iter(short), collections.Counter(), []
    for (kind, _), path in zip(named, paths, strict=True):
        if path is not None:
            # Names are listed in tables, with commas between them.
            names.append(next(short).replace(", ", " "))
            continue
        names.append(f"{kind} {counts[kind]}")
        counts[kind] += 1
    return names


def _path_of(model):
    if isinstance(model, Run):
        return model.path
    return (
        pathlib.Path(model) if isinstance(model, (str, os.PathLike)) else None
    )
