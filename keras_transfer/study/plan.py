"""A transfer study as data, and the runs and analyses it consists of."""

import dataclasses
import pathlib
import re

import gin

from keras_transfer.errors import UserError

# The files under gin/ that say how a sweep's runs are analysed.
_SHUFFLED = "shuffled.gin"
_FEATURE_REUSE = "feature_reuse.gin"
_PRETRAINING = "pretraining.gin"


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
        kind: "P", "P-T" or "RI-T" of a run, "" of an analysis.
        target: str, name of the target; "" for P.
        seed: int of a run, None of an analysis.
    """

    name: str
    command: str
    files: tuple
    bindings: dict
    needs: tuple = ()
    kind: str = ""
    target: str = ""
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class DirectoryOf:
    """The directory of another task, wherever the study lies."""

    name: str


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Study:
    """What is trained and analysed, as data (paper sections 3.1 to 3.5).

    For every target: P-Ts and RI-Ts, one per seed, and the analyses of them;
    the sweep over block sizes, one P-T and one RI-T per size and seed; and the
    sweep over pre-training checkpoints, one P-T per checkpoint and seed.

    Attributes:
        title: str, of the report.
        question: str, what is asked, a paragraph.
        pretrain: gin file of P.
        scratch: gin file of an RI-T; "{target}" stands for the target's name.
        fine_tune: gin file of a P-T, likewise.
        source: {parameter: value} bound for P, such as its "load.data_dir".
        targets: {name: {parameter: value}}, what is bound for a target's runs;
            under "P-T" or "RI-T", another such dict, for one kind only.
        seeds: integers, one P-T and one RI-T each.
        block_sizes: pixels; the image's own size is the unshuffled image. Empty
            for no sweep.
        shuffle_seeds: one for each of `seeds`.
        pretrained_epochs: epochs of P to start from, the last left out: the
            P-Ts of `seeds` start there. Empty for no sweep.
        analyses: gin files, each run on every target's P-Ts and RI-Ts.
        bindings: {parameter: value} bound for every run.
        sweep_bindings: {parameter: value} bound for the runs of the sweeps,
            and then for the last checkpoint's as well, which are trained again.
        analysis_bindings: {parameter: value} bound for every analysis.
        num_images: {"" or target: (training, test images)} for the estimate of
            compute, where the data are not there to be counted.
    """

    title: str = gin.REQUIRED
    question: str = gin.REQUIRED
    pretrain: str = gin.REQUIRED
    scratch: str = gin.REQUIRED
    fine_tune: str = gin.REQUIRED
    targets: dict = gin.REQUIRED
    source: dict = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    block_sizes: tuple[int, ...] = ()
    shuffle_seeds: tuple[int, ...] = (1234, 1235, 1236)
    pretrained_epochs: tuple[int, ...] = ()
    analyses: tuple[str, ...] = ()
    bindings: dict = dataclasses.field(default_factory=dict)
    sweep_bindings: dict = dataclasses.field(default_factory=dict)
    analysis_bindings: dict = dataclasses.field(default_factory=dict)
    num_images: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_targets(self.targets)
        for name in (
            "source",
            "bindings",
            "sweep_bindings",
            "analysis_bindings",
        ):
            _check_bindings(f"Study.{name}", getattr(self, name))
        if not self.seeds:
            raise UserError(
                "Study.seeds must hold at least one seed. Received: none."
            )
        _check_distinct("seeds", self.seeds, 0)
        _check_distinct("block_sizes", self.block_sizes, 1)
        _check_distinct("pretrained_epochs", self.pretrained_epochs, 0)
        _check_distinct("analyses", tuple(map(_name_of, self.analyses)))
        _check_sizes(self.num_images)
        if self.block_sizes and len(self.shuffle_seeds) < len(self.seeds):
            raise UserError(
                "Each seed needs a shuffle seed of its own. Received: "
                f"{len(self.seeds)} Study.seeds and {len(self.shuffle_seeds)} "
                "Study.shuffle_seeds."
            )

    def tasks(self):
        """Returns every `Task`, each after those it needs."""
        tasks = [
            Task(
                "runs/P",
                "train",
                (self.pretrain,),
                {**self.bindings, **self.source},
                kind="P",
                seed=None,
            )
        ]
        for target in self.targets:
            models = self._models(target, f"runs/{target}")
            tasks += models
            for file in self.analyses:
                tasks.append(self._analysis(target, file, models))
            if self.block_sizes:
                tasks += self._block_sweep(target)
            if self.pretrained_epochs:
                tasks += self._checkpoint_sweep(target, models)
        return tasks

    def _models(self, target, directory, kinds=("P-T", "RI-T"), **options):
        return [
            self._run(target, kind, seed, f"{directory}/{kind}_{seed}", options)
            for kind in kinds
            for seed in self.seeds
        ]

    def _run(self, target, kind, seed, name, options):
        files = {"P-T": self.fine_tune, "RI-T": self.scratch}
        own = dict(self.targets[target])
        by_kind = {k: own.pop(k, {}) for k in files}
        start = {}
        if kind == "P-T":
            start = {"train.pretrained": DirectoryOf("runs/P")}
        return Task(
            name,
            "train",
            (
                files[kind].replace("{target}", target),
                *options.get("files", ()),
            ),
            {
                **self.bindings,
                **own,
                **by_kind[kind],
                **start,
                "train.seed": seed,
                **options.get("bindings", {}),
            },
            needs=("runs/P",) if kind == "P-T" else (),
            kind=kind,
            target=target,
            seed=seed,
        )

    def _block_sweep(self, target):
        runs = []
        for size in self.block_sizes:
            for seed, shuffle_seed in zip(
                self.seeds, self.shuffle_seeds, strict=False
            ):
                shuffle = {
                    "load.block_size": size,
                    "load.shuffle_seed": shuffle_seed,
                }
                options = {
                    "files": (_SHUFFLED,),
                    "bindings": {**self.sweep_bindings, **shuffle},
                }
                runs += [
                    self._run(
                        target,
                        kind,
                        seed,
                        f"runs/{target}/blocks_{size}/{kind}_{seed}",
                        options,
                    )
                    for kind in ("P-T", "RI-T")
                ]
        return [*runs, self._analysis(target, _FEATURE_REUSE, runs)]

    def _checkpoint_sweep(self, target, models):
        last = [task for task in models if task.kind == "P-T"]
        epochs = list(self.pretrained_epochs)
        if self.sweep_bindings:
            epochs, last = [*epochs, "last"], []
        runs = []
        for epoch in epochs:
            runs += self._models(
                target,
                f"runs/{target}/from_epoch_{epoch}",
                ("P-T",),
                bindings={
                    **self.sweep_bindings,
                    "train.pretrained_epoch": epoch,
                },
            )
        analysis = self._analysis(
            target, _PRETRAINING, [*runs, *last], ("runs/P",)
        )
        return [*runs, analysis]

    def _analysis(self, target, file, runs, needs=()):
        kinds = dict.fromkeys(task.kind for task in runs)
        named = {
            kind: [DirectoryOf(task.name) for task in runs if task.kind == kind]
            for kind in kinds
        }
        return Task(
            f"analyses/{target}/{_name_of(file)}",
            "analyze",
            (file,),
            {**self.analysis_bindings, "Models.models": named},
            needs=(*needs, *(task.name for task in runs)),
            target=target,
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


def _check_bindings(name, bindings):
    if not isinstance(bindings, dict):
        raise UserError(
            f'{name} must be a dictionary such as {{"train.epochs": 5}}. '
            f"Received: {bindings!r}"
        )
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


def _check_distinct(name, values, least=None):
    """Checks that no task is planned twice, and numbers are large enough."""
    if len(set(values)) < len(values):
        raise UserError(
            f"Study.{name} must not hold anything twice. Received: {values}"
        )
    if least is not None and any(value < least for value in values):
        raise UserError(
            f"Study.{name} must be whole numbers of {least} or more. "
            f"Received: {values}"
        )
