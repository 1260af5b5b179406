"""A transfer study as data, and the runs and analyses it consists of."""

import dataclasses
import os
import pathlib
import re
from typing import Literal

import gin

from keras_transfer.config import schema
from keras_transfer.errors import UserError

# The files under gin/ that say how a sweep's runs are made and analysed.
_SHUFFLED = "shuffled.gin"
_FROZEN = "frozen_features.gin"
_FEATURE_REUSE = "feature_reuse.gin"
_PRETRAINING = "pretraining.gin"
_LABEL_EFFICIENCY = "label_efficiency.gin"

# Two models of a kind make a pair.
_MODELS = 2
# Every replication has so many numbers to itself, for the seeds of its runs.
_SEEDS = 1000
# The first of the paper's seeds of shuffling.
_SHUFFLE_SEED = 1234
# A sweep is judged by its learning curves alone.
_WITHOUT_CHECKPOINTS = {"train.keep_epochs": []}


@dataclasses.dataclass(frozen=True)
class Task:
    """One run or one analysis of a study.

    Attributes:
        name: str, its directory within the study's.
        command: "train" or "analyze".
        files: tuple of gin files.
        bindings: {parameter: value}, which win over the files. A
            `DirectoryOf` in a value stands for that directory.
        needs: tuple of names of the tasks whose results this one reads.
        replication: int, 0, 1, ...
        kind: "P", "P-T", "RI-T" or "P-T frozen" of a run, "" of an analysis.
        target: str, name of the target; "" for P.
        seed: int, of an analysis that draws by one; None of a run, whose
            bindings hold it.
        in_sweep: bool, whether it is a run of a sweep.
    """

    name: str
    command: str
    files: tuple
    bindings: dict
    needs: tuple = ()
    replication: int = 0
    kind: str = ""
    target: str = ""
    seed: int | None = None
    in_sweep: bool = False


@dataclasses.dataclass(frozen=True)
class DirectoryOf:
    """The directory of another task, wherever the study lies."""

    name: str


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Study:
    """What is trained and analysed, as data (paper sections 3.1 to 3.5).

    A study is so many independent replications. Each has its own P and, for
    every target, its own draw of the training images, two P-Ts and two RI-Ts,
    the analyses of them, and its part of the sweeps: over block sizes, over
    pre-training checkpoints, and over numbers of training images, with one run
    of a kind each. No two runs have one seed.

    Attributes:
        title: str, of the report.
        question: str, what is asked, a paragraph.
        pretrain: gin file of P, "" if there is one already.
        pretrained: that P's run directory or weights, whatever
            `train.pretrained` takes; all replications start from it.
        scratch: gin file of an RI-T; "{target}" stands for the target's name.
        fine_tune: gin file of a P-T, likewise.
        source: {parameter: value} bound for P, such as its "load.data_dir".
        targets: {name: {parameter: value}}, what is bound for a target's runs;
            under "P-T" or "RI-T", another such dict, for one kind only.
        replications: int; a verdict needs five or more.
        first_seed: int, from which all seeds of the first replication follow;
            the second has those of `first_seed` + 1, and so on.
        draw: the parameter by which a replication's own training images are
            drawn, "" if all have the same ones. It matters where fewer images
            are drawn than there are (load.num_train).
        block_sizes: pixels; the image's own size is the unshuffled image, and
            "pixels" has all pixels and channels shuffled. Empty for no sweep.
        pretrained_epochs: epochs of P to start from, the last left out: the
            P-Ts that are no part of a sweep start there. Empty for no sweep.
        num_train: {number of training images: {parameter: value}}, what is
            bound for the runs on so many. Empty for no sweep.
        analyses: gin files, each run on every target's P-Ts and RI-Ts.
        analyses_of_one: gin files, each run on one P-T and one RI-T of every
            target: of dear analyses more replications tell more than more
            models.
        analyses_of_three: gin files, each run on three P-Ts of every target, in
            the first replication alone.
        bindings: {parameter: value} bound for every run.
        analysis_bindings: {parameter: value} bound for every analysis.
        threads: int, that each run and analysis has to itself, so that numbers
            do not depend on how many cores there are.
        num_images: {"" or target: (training, test images)} for the estimate of
            compute, where the data are not there to be counted.
    """

    title: str = gin.REQUIRED
    question: str = gin.REQUIRED
    scratch: str = gin.REQUIRED
    fine_tune: str = gin.REQUIRED
    targets: dict = gin.REQUIRED
    pretrain: str = ""
    pretrained: str = ""
    source: dict = dataclasses.field(default_factory=dict)
    replications: schema.Count = 1
    first_seed: schema.Seed = 0
    draw: str = "load.seed"
    block_sizes: tuple[int | Literal["pixels"], ...] = ()
    pretrained_epochs: tuple[int, ...] = ()
    num_train: dict = dataclasses.field(default_factory=dict)
    analyses: tuple[str, ...] = ()
    analyses_of_one: tuple[str, ...] = ()
    analyses_of_three: tuple[str, ...] = ()
    bindings: dict = dataclasses.field(default_factory=dict)
    analysis_bindings: dict = dataclasses.field(default_factory=dict)
    threads: schema.Count = 1
    num_images: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_targets(self.targets)
        self._check_pretrained()
        for name in ("source", "bindings", "analysis_bindings"):
            _check_bindings(f"Study.{name}", getattr(self, name))
        _check_dictionary("Study.num_train", self.num_train, "{50: {}}")
        for number, bindings in self.num_train.items():
            _check_bindings(f"Study.num_train[{number!r}]", bindings)
        _check_bindings("Study.draw", {self.draw: 0} if self.draw else {})
        pixels = tuple(n for n in self.block_sizes if n != "pixels")
        _check_distinct("block_sizes", self.block_sizes)
        _check_least("block_sizes", pixels, 1)
        _check_distinct("pretrained_epochs", self.pretrained_epochs)
        _check_least("pretrained_epochs", self.pretrained_epochs, 0)
        _check_least("num_train", tuple(self.num_train), 1)
        planned = ()
        for name in ("analyses", "analyses_of_one", "analyses_of_three"):
            planned += tuple(map(_name_of, getattr(self, name)))
            _check_distinct(name, planned)
        _check_sizes(self.num_images)

    def _check_pretrained(self):
        if bool(self.pretrain) == bool(self.pretrained):
            raise UserError(
                "A study trains P, as the gin file Study.pretrain says, or "
                "starts from the weights in Study.pretrained. Received: "
                f"{self.pretrain!r} and {self.pretrained!r}; bind one of them."
            )
        if self.pretrained and (self.source or self.pretrained_epochs):
            raise UserError(
                "Study.source and Study.pretrained_epochs are about a P that "
                "the study trains, and this one starts from "
                f"{self.pretrained}. Leave them out."
            )

    def tasks(self):
        """Returns every `Task`, each after those it needs."""
        return [
            task
            for number in range(self.replications)
            for task in _Replication(self, number).tasks()
        ]


def replication_directory(number):
    """Returns the name of a replication's directory within the study's."""
    return f"replication_{number}"


class _Replication:
    """The plan of one replication.

    Args:
        study: `Study`.
        number: int, 0, 1, ...
    """

    def __init__(self, study, number):
        self._study = study
        self._number = number
        self._path = replication_directory(number)
        self._seed = study.first_seed + number
        # As they are planned; each run's seed is its place in them.
        self._runs = []

    def tasks(self):
        """Returns every `Task`, each after those it needs."""
        study = self._study
        tasks, models = [], {}
        if study.pretrain:
            tasks = [self._train("runs/P", "P", "", (), study.source)]
        # First, so that another sweep leaves their seeds as they are.
        for target in study.targets:
            models[target] = self._models(target, f"runs/{target}")
            tasks += models[target]
        for target, own in models.items():
            tasks += [self._analysis(target, f, own) for f in study.analyses]
            # The first of each kind.
            one = own[::_MODELS]
            tasks += [
                self._analysis(target, f, one) for f in study.analyses_of_one
            ]
            if study.block_sizes:
                tasks += self._block_sweep(target)
            if study.pretrained_epochs:
                tasks += self._checkpoint_sweep(target, own)
            if study.num_train:
                tasks += self._size_sweep(target, own)
            if study.analyses_of_three and self._number == 0:
                tasks += self._three(target, own)
        return tasks

    def _models(self, target, directory):
        return [
            self._run(target, kind, f"{directory}/{kind}_{i}")
            for kind in ("P-T", "RI-T")
            for i in range(_MODELS)
        ]

    def _run(self, target, kind, name, files=(), bindings=None, sweep=False):
        """Plans a run on a target; its bindings win over all others."""
        study = self._study
        own = dict(study.targets[target])
        by_kind = {k: own.pop(k, {}) for k in ("P-T", "RI-T")}
        recipe = "RI-T" if kind == "RI-T" else "P-T"
        file = study.scratch if kind == "RI-T" else study.fine_tune
        bindings = {
            **({study.draw: self._seed} if study.draw else {}),
            **own,
            **by_kind[recipe],
            **(_WITHOUT_CHECKPOINTS if sweep else {}),
            **(bindings or {}),
        }
        needs = ()
        if recipe == "P-T" and study.pretrained:
            # From anywhere, not only where the study was begun.
            path = os.path.abspath(os.path.expanduser(study.pretrained))
            bindings["train.pretrained"] = path
        elif recipe == "P-T":
            source = f"{self._path}/runs/P"
            bindings["train.pretrained"] = DirectoryOf(source)
            needs = (source,)
        files = (file.replace("{target}", target), *files)
        return self._train(name, kind, target, files, bindings, needs, sweep)

    def _train(
        self, name, kind, target, files, bindings, needs=(), in_sweep=False
    ):
        study = self._study
        task = Task(
            f"{self._path}/{name}",
            "train",
            files or (study.pretrain,),
            {
                **study.bindings,
                **bindings,
                "train.seed": _SEEDS * self._seed + len(self._runs),
            },
            needs,
            self._number,
            kind,
            target,
            in_sweep=in_sweep,
        )
        self._runs.append(task)
        return task

    def _block_sweep(self, target):
        runs = []
        for size in self._study.block_sizes:
            shuffle = {"load.shuffle_seed": _SHUFFLE_SEED + self._seed}
            if size == "pixels":
                name, shuffle["load.shuffle"] = "pixels", "pixels"
            else:
                name, shuffle["load.block_size"] = f"blocks_{size}", size
            runs += [
                self._run(
                    target,
                    kind,
                    f"runs/{target}/{name}/{kind}",
                    (_SHUFFLED,),
                    shuffle,
                    sweep=True,
                )
                for kind in ("P-T", "RI-T")
            ]
        return [*runs, self._analysis(target, _FEATURE_REUSE, runs)]

    def _checkpoint_sweep(self, target, models):
        runs = [
            self._run(
                target,
                "P-T",
                f"runs/{target}/from_epoch_{epoch}/P-T",
                bindings={"train.pretrained_epoch": epoch},
                sweep=True,
            )
            for epoch in self._study.pretrained_epochs
        ]
        last = [task for task in models if task.kind == "P-T"]
        analysis = self._analysis(
            target, _PRETRAINING, [*runs, *last], (f"{self._path}/runs/P",)
        )
        return [*runs, analysis]

    def _size_sweep(self, target, models):
        files = {"P-T": (), "RI-T": (), "P-T frozen": (_FROZEN,)}
        runs = [
            self._run(
                target,
                kind,
                f"runs/{target}/images_{number}/{kind.replace(' ', '_')}",
                files[kind],
                {"load.num_train": number, **bindings},
                sweep=True,
            )
            for number, bindings in self._study.num_train.items()
            for kind in files
        ]
        analysis = self._analysis(target, _LABEL_EFFICIENCY, [*models, *runs])
        return [*runs, analysis]

    def _three(self, target, models):
        own = [task for task in models if task.kind == "P-T"]
        third = self._run(target, "P-T", f"runs/{target}/P-T_{_MODELS}")
        analyses = [
            self._analysis(target, file, [*own, third])
            for file in self._study.analyses_of_three
        ]
        return [third, *analyses]

    def _analysis(self, target, file, runs, needs=()):
        kinds = dict.fromkeys(task.kind for task in runs)
        named = {
            kind: [DirectoryOf(task.name) for task in runs if task.kind == kind]
            for kind in kinds
        }
        return Task(
            f"{self._path}/analyses/{target}/{_name_of(file)}",
            "analyze",
            (file,),
            {**self._study.analysis_bindings, "Models.models": named},
            (*needs, *(task.name for task in runs)),
            self._number,
            target=target,
            seed=self._seed,
        )


def _name_of(file):
    """Returns the name of the analysis that a gin file is of."""
    return pathlib.PurePath(file).name.removesuffix(".gin")


def _check_targets(targets):
    if not isinstance(targets, dict) or not targets:
        raise UserError(
            "Study.targets must name at least one target, for example "
            '{"photo": {"load.data_dir": "DIR"}}. '
            f"Received: {targets!r}"
        )
    for name, bindings in targets.items():
        # It names directories and stands in a claim.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w", name):
            raise UserError(
                "A name in Study.targets must be of letters, digits, _, - and "
                f". alone. Received: {name!r}"
            )
        where = f"Study.targets[{name!r}]"
        _check_bindings(where, bindings)
        for kind in {"P-T", "RI-T"} & set(bindings):
            _check_bindings(f"{where}[{kind!r}]", bindings[kind])


def _check_dictionary(name, value, example):
    if not isinstance(value, dict):
        raise UserError(
            f"{name} must be a dictionary such as {example}. Received: "
            f"{value!r}"
        )


def _check_bindings(name, bindings):
    _check_dictionary(name, bindings, '{"train.epochs": 5}')
    for key in bindings:
        if not isinstance(key, str) or not re.fullmatch(r"[\w./-]+", key):
            raise UserError(
                f'{name} must bind parameters such as "train.epochs". '
                f"Received: {key!r}"
            )


def _check_sizes(num_images):
    for target, sizes in num_images.items():
        is_list = isinstance(sizes, list | tuple)
        if not is_list or [type(size) for size in sizes] != [int] * 2:
            raise UserError(
                f"Study.num_images[{target!r}] must be the numbers of training "
                f"and of test images. Received: {sizes!r}"
            )


def _check_distinct(name, values):
    """Checks that no task is planned twice."""
    if len(set(values)) < len(values):
        raise UserError(
            f"Study.{name} must not hold anything twice. Received: {values}"
        )


def _check_least(name, values, least):
    """Checks that all are whole numbers, and large enough."""
    if any(not isinstance(value, int) or value < least for value in values):
        raise UserError(
            f"Study.{name} must be whole numbers of {least} or more. "
            f"Received: {values}"
        )
