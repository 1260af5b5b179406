import importlib
import json
import pkgutil
import re
import shutil

import commands
import gin
import keras
import pandas
import pytest

import keras_transfer
from keras_transfer import config
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.study import InTurn, Runner, Study, plan_text
from keras_transfer.study.estimate import Estimate, forward_operations
from keras_transfer.study.plan import DirectoryOf
from keras_transfer.study.reproduce import reproduce
from keras_transfer.study.tasks import record_failure

GIN = commands.ROOT / "gin"
STUDIES = sorted(path.name for path in GIN.glob("study_*.gin"))
# The directory of the first replication.
ONE = "replication_0"
# A study that takes seconds: a tiny network, an epoch, few images.
TINY = {
    "train.epochs": 1,
    "load.image_size": 8,
    "fixup_resnet.widths": (4,),
}


def tiny(**changes):
    return Study(
        **{
            "title": "Tiny",
            "question": "Does it run?",
            "pretrain": "p_mnist.gin",
            "scratch": "rit_{target}.gin",
            "fine_tune": "pt_{target}.gin",
            "targets": {"digits": {}},
            "source": {"load.num_train": 64},
            "bindings": TINY,
            "analyses": ("distance.gin",),
        }
        | changes
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny study, not to be changed."""
    path = tmp_path_factory.mktemp("study")
    runner = Runner(path, tiny().tasks())
    assert {o.state for o in runner.run()} == {"finished"}
    return path


@pytest.fixture
def copied(finished, tmp_path):
    """A finished tiny study, to be changed."""
    path = tmp_path / "study"
    shutil.copytree(finished, path)
    return path


def completions(path, tasks):
    return {
        task.name: Runner(path, tasks).record(task).get("completion")
        for task in tasks
    }


def test_tasks_come_after_what_they_need():
    study = tiny(
        replications=2,
        block_sizes=(1, 8, "pixels"),
        pretrained_epochs=(0,),
        num_train={50: {}, 100: {}},
        analyses_of_one=("rewinding.gin",),
        analyses_of_three=("plane.gin",),
    )
    seen = set()
    for task in study.tasks():
        assert set(task.needs) <= seen
        assert task.name not in seen
        seen.add(task.name)
    # P; two P-Ts, two RI-Ts; 3 shuffles x 2 kinds; epoch 0; 2 sizes x 3 kinds.
    each = 1 + 4 + 6 + 1 + 6
    runs = [name for name in seen if "/runs/" in name]
    # The third P-T.
    assert len(runs) == 2 * each + 1
    assert {n for n in seen if n.startswith(f"{ONE}/analyses/")} == {
        f"{ONE}/analyses/digits/{name}"
        for name in (
            "distance",
            "feature_reuse",
            "label_efficiency",
            "plane",
            "pretraining",
            "rewinding",
        )
    }


def test_replications_share_nothing():
    study = tiny(
        replications=3,
        first_seed=7,
        targets={"one": {}, "two": {}},
        block_sizes=(1, 8),
        pretrained_epochs=(0, 1),
        num_train={50: {}},
        analyses_of_three=("plane.gin",),
    )
    runs = [task for task in study.tasks() if task.command == "train"]
    seeds = [task.bindings["train.seed"] for task in runs]
    assert len(set(seeds)) == len(seeds)
    for task in study.tasks():
        number = task.replication
        assert task.name.startswith(f"replication_{number}/")
        assert all(n.startswith(f"replication_{number}/") for n in task.needs)
        if task.target and task.command == "train":
            assert task.bindings["load.seed"] == 7 + number
        if "load.block_size" in task.bindings:
            assert task.bindings["load.shuffle_seed"] == 1234 + 7 + number
        if task.command == "analyze":
            assert task.seed == 7 + number
    # The first of a study that begins where this one ends is its third.
    (moved, *_) = tiny(first_seed=9).tasks()
    third = [task for task in runs if task.name == "replication_2/runs/P"]
    assert moved.bindings == third[0].bindings


def test_a_study_starts_from_weights_that_are_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = tiny(pretrain="", pretrained="p.keras", source={}, replications=2)
    runs = [task for task in study.tasks() if task.command == "train"]
    assert {task.kind for task in runs} == {"P-T", "RI-T"}
    for task in runs:
        expected = str(tmp_path / "p.keras") if task.kind == "P-T" else None
        assert task.bindings.get("train.pretrained") == expected
        assert task.needs == ()


def test_tasks_bind_what_the_study_says():
    study = tiny(
        block_sizes=(4, "pixels"),
        pretrained_epochs=(0,),
        num_train={70: {"train.epochs": 3}},
        targets={"digits": {"load.num_train": 50, "RI-T": {"train.epochs": 9}}},
        analyses_of_one=("rewinding.gin",),
    )
    tasks = {task.name: task for task in study.tasks()}
    fine_tuned = tasks[f"{ONE}/runs/digits/P-T_1"].bindings
    assert fine_tuned["train.pretrained"] == DirectoryOf(f"{ONE}/runs/P")
    assert (fine_tuned["train.seed"], fine_tuned["load.num_train"]) == (2, 50)
    assert fine_tuned["train.epochs"] == 1
    scratch = tasks[f"{ONE}/runs/digits/RI-T_0"]
    assert scratch.bindings["train.epochs"] == 9
    assert "train.pretrained" not in scratch.bindings
    shuffled = tasks[f"{ONE}/runs/digits/blocks_4/RI-T"]
    assert shuffled.files == ("rit_digits.gin", "shuffled.gin")
    assert shuffled.bindings["load.block_size"] == 4
    # Trained as long as the RI-Ts that are no part of a sweep.
    assert shuffled.bindings["train.epochs"] == 9
    assert shuffled.bindings["train.keep_epochs"] == []
    pixels = tasks[f"{ONE}/runs/digits/pixels/P-T"].bindings
    assert pixels["load.shuffle"] == "pixels"
    frozen = tasks[f"{ONE}/runs/digits/images_70/P-T_frozen"]
    assert frozen.files == ("pt_digits.gin", "frozen_features.gin")
    assert frozen.bindings["load.num_train"] == 70
    assert frozen.bindings["train.epochs"] == 3
    assert frozen.needs == (f"{ONE}/runs/P",)
    sweep = tasks[f"{ONE}/analyses/digits/pretraining"]
    one = tasks[f"{ONE}/analyses/digits/rewinding"]
    assert one.bindings["Models.models"] == {
        kind: [DirectoryOf(f"{ONE}/runs/digits/{kind}_0")]
        for kind in ("P-T", "RI-T")
    }
    names = ("from_epoch_0/P-T", "P-T_0", "P-T_1")
    assert sweep.bindings["Models.models"] == {
        "P-T": [DirectoryOf(f"{ONE}/runs/digits/{name}") for name in names]
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"targets": {}}, "at least one target"),
        ({"pretrain": ""}, "Received: '' and ''; bind one of them"),
        ({"pretrained": "p.keras"}, "bind one of them"),
        ({"pretrain": "", "pretrained": "p.keras"}, "are about a P that the"),
        ({"targets": {"../digits": {}}}, "Received: '../digits'"),
        ({"targets": {"digits": 3}}, "digits.* must be a dictionary"),
        ({"targets": {"digits": {"P-T": 3}}}, "P-T.* must be a dictionary"),
        ({"bindings": {"a = 1\nb": 3}}, "must bind parameters such as"),
        ({"source": {3: 3}}, "Study.source must bind .* Received: 3"),
        ({"num_train": {0: {}}}, "Study.num_train must be .* of 1 or more"),
        ({"num_train": {5: 3}}, r"Study.num_train\[5\] must be a dictionary"),
        ({"analyses_of_three": ("distance.gin",)}, "must not hold anything"),
        ({"block_sizes": (0,)}, "Study.block_sizes must be .* of 1 or more"),
        ({"pretrained_epochs": (-1,)}, "Study.pretrained_epochs must be"),
        ({"num_images": {"digits": [1]}}, r"num_images.* Received: \[1\]"),
        ({"analyses": ("a.gin", "a.gin")}, "Study.analyses must not hold"),
    ],
)
def test_studies_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned(name, tmp_path):
    bindings = []
    if name in ("study_folder.gin", "study_pretrained.gin"):
        bindings = ["Study.targets = {'photo': {'load.data_dir': 'D'}}"]
    config.parse([str(GIN / name)], bindings)
    study = Study()
    text = plan_text(study, tmp_path / "study")
    assert (f"{ONE}/runs/P " in text) == bool(study.pretrain)
    assert "criticality" in text
    assert not (tmp_path / "study").exists()


def test_images_need_not_be_square(tmp_path):
    costs = []
    for size in (8, (8, 16)):
        study = tiny(bindings=TINY | {"load.image_size": size})
        estimate = Estimate({})
        Runner(tmp_path, study.tasks(), on_read=estimate.add)
        costs.append(estimate.costs[f"{ONE}/runs/P"])
    # All but the head goes with the number of pixels.
    assert costs[1] / costs[0] == pytest.approx(2, rel=0.02)


def test_a_missing_file_is_named_before_anything_is_trained(tmp_path):
    tasks = tiny(analyses=("nowhere.gin",)).tasks()
    with pytest.raises(UserError, match="nowhere.gin"):
        Runner(tmp_path, tasks)
    with pytest.raises(UserError, match="no_such_parameter"):
        Runner(tmp_path, tiny(bindings={"train.no_such_parameter": 1}).tasks())
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_command_is_named_before_anything_is_trained(
    tmp_path,
):
    for changes, missing in (
        ({"analyses": ("pt_digits.gin",)}, "bind analyze.analyses"),
        ({"pretrain": "mistakes.gin"}, "bind train.model"),
    ):
        with pytest.raises(UserError, match=missing):
            Runner(tmp_path, tiny(bindings={}, source={}, **changes).tasks())
    assert not list(tmp_path.iterdir())


def test_what_is_finished_is_not_done_again(copied):
    tasks = tiny().tasks()
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    outcomes = Runner(copied, tasks).run()
    assert {o.state for o in outcomes} == {"finished"}
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*")} == before


def test_a_study_can_be_moved(finished, tmp_path):
    path = tmp_path / "elsewhere"
    shutil.copytree(finished, path)
    runner = Runner(path, tiny().tasks())
    assert all(runner.is_current(task) for task in runner.tasks)


def test_a_removed_run_is_done_again_with_what_needs_it(copied):
    tasks = tiny().tasks()
    before = completions(copied, tasks)
    metrics = Run(copied / f"{ONE}/runs/digits/P-T_0").metrics_path.read_bytes()
    shutil.rmtree(copied / f"{ONE}/runs/digits/P-T_0")
    Runner(copied, tasks).run()
    after = completions(copied, tasks)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        f"{ONE}/runs/digits/P-T_0",
        f"{ONE}/analyses/digits/distance",
    }
    again = Run(copied / f"{ONE}/runs/digits/P-T_0").metrics_path.read_bytes()
    assert again == metrics


def test_removing_p_redoes_what_came_of_it(copied):
    tasks = tiny().tasks()
    before = completions(copied, tasks)
    shutil.rmtree(copied / f"{ONE}/runs/P")
    Runner(copied, tasks).run()
    after = completions(copied, tasks)
    same = {name for name in before if before[name] == after[name]}
    assert same == {f"{ONE}/runs/digits/RI-T_0", f"{ONE}/runs/digits/RI-T_1"}


def test_a_changed_configuration_is_done_again(copied):
    runner = Runner(copied, tiny(bindings=TINY | {"train.epochs": 2}).tasks())
    runs = [task for task in runner.tasks if task.command == "train"]
    assert len(runs) == 5
    assert not any(runner.is_current(task) for task in runs)
    assert {o.state for o in runner.run()} == {"finished"}
    assert Run(copied / f"{ONE}/runs/digits/RI-T_0").epochs() == [0, 1, 2]


def test_another_number_of_threads_is_done_again(copied):
    tasks = tiny().tasks()
    assert Runner(copied, tasks).is_current(tasks[0])
    assert not any(map(Runner(copied, tasks, threads=2).is_current, tasks))


def test_an_interrupted_run_goes_on(copied, monkeypatch):
    study = tiny(bindings=TINY | {"train.epochs": 3}, analyses=())
    saved = []

    def save(self, epoch, *state):
        saved.append((self.path.name, epoch))
        if saved[-1] == ("P-T_0", 2) and saved.count(saved[-1]) == 1:
            raise KeyboardInterrupt
        original(self, epoch, *state)

    original = Run.save
    monkeypatch.setattr(Run, "save", save)
    with pytest.raises(KeyboardInterrupt):
        Runner(copied, study.tasks()).run()
    assert Runner(copied, study.tasks()).record(study.tasks()[1])["seconds"] > 0
    del saved[:-1]
    outcomes = Runner(copied, study.tasks()).run()
    assert {o.state for o in outcomes} == {"finished"}
    # P is not begun again, nor the epochs that were finished.
    assert ("P", 1) not in saved
    assert [e for name, e in saved if name == "P-T_0"] == [2, 2, 3]


def test_a_failure_is_reported_and_stops_only_what_needs_it(copied):
    tasks = tiny().tasks()
    # A run of another configuration, which training refuses to go on with.
    record = copied / f"{ONE}/runs/digits/P-T_0/task.json"
    told = json.loads(record.read_text()) | {"state": "begun"}
    record.write_text(json.dumps(told))
    config_path = copied / f"{ONE}/runs/digits/P-T_0/config.gin"
    config_path.write_text("train.epochs = 5\n")
    shutil.rmtree(copied / f"{ONE}/runs/digits/RI-T_1")
    outcomes = {o.task.name: o for o in Runner(copied, tasks).run()}
    failed = outcomes[f"{ONE}/runs/digits/P-T_0"]
    assert failed.state == "failed"
    assert "holds a run of another configuration" in failed.log
    assert "In call to configurable" not in failed.log
    assert outcomes[f"{ONE}/runs/digits/RI-T_1"].state == "finished"
    analysis = outcomes[f"{ONE}/analyses/digits/distance"]
    assert analysis.state == "not run"
    assert f"{ONE}/runs/digits/P-T_0" in analysis.log


def test_a_damaged_record_is_done_again(copied):
    path = copied / f"{ONE}/runs/digits/RI-T_0/task.json"
    path.write_text(path.read_text()[:20])
    outcomes = Runner(copied, tiny().tasks()).run()
    assert {o.state for o in outcomes} == {"finished"}
    assert json.loads(path.read_text())["state"] == "finished"


def test_reproduce_leaves_claims_and_report(copied, capsys):
    gin.clear_config()
    reproduce(tiny(), copied)
    claims = pandas.read_csv(copied / "claims.csv")
    assert set(claims.claim) == {f"C{i}" for i in range(1, 13)} | {"L1"}
    decided = claims[claims.value.notna()]
    # The one analysis of this study.
    assert set(decided.claim) == {"C5"}
    place = copied / f"{ONE}/analyses/digits/distance"
    table = pandas.read_csv(place / "distance.csv")
    total = table[table.module == "total"].groupby("pair").l2.mean()
    assert decided.value.iloc[0] == pytest.approx(
        total["P-T/P-T"] / total["RI-T/RI-T"]
    )
    report = (copied / "report.html").read_text()
    assert "Does it run?" in report and "P-Ts are close" in report
    assert "C5" in capsys.readouterr().out


def costs(plan):
    """Returns {task: what a plan says that it costs}."""
    return {
        row.split()[0]: row.split()[1]
        for row in plan.splitlines()
        if row.startswith((f"{ONE}/runs/", f"{ONE}/analyses/"))
    }


def test_the_plan_counts_the_images_that_are_drawn(tmp_path):
    found = []
    for drawn in ({}, {"examples_modules.num_examples": 20}):
        study = tiny(analyses=("criticality.gin",), analysis_bindings=drawn)
        told = costs(plan_text(study, tmp_path))
        found.append(float(told[f"{ONE}/analyses/digits/criticality"]))
    # Of 200 training images; both are shown with two digits.
    assert found[0] / found[1] == pytest.approx(10, rel=0.05)


def test_the_command_prints_the_plan(tmp_path):
    status, output, errors = commands.run(
        "reproduce",
        f"--gin_file={GIN}/study_digits.gin",
        f"--work_dir={tmp_path}/study",
        "--dry_run",
    )
    assert status == 0, errors
    assert f"{ONE}/runs/digits/blocks_12/RI-T" in output
    assert "All 8 replications are like this one." in output
    assert "225 runs and 98 analyses" in output
    assert not (tmp_path / "study").exists()


# One new analysis is one file, and a gin file that asks for it.
OWN = {
    "my_analysis.py": """
import pandas

import keras_transfer as kt
from keras_transfer.analysis.drawing import new_figure


def draw(table):
    figure, axes = new_figure()
    axes.plot(table["share"])
    return figure


@kt.declare_analysis(
    figures=[
        kt.Figure("sparsity", draw, "Small weights", "One dot a model."),
        kt.Figure("small_{kind}", draw, "Small weights of a kind", "Dots."),
        kt.Figure("untold", draw),
        kt.Figure("pictures", draw, "Pictures", "Dots.", tables=("pixels",)),
    ],
    in_memory=["pixels"],
    statistics=[
        kt.Statistic(
            "X1",
            "P-Ts have small weights.",
            "share of small weights",
            ">",
            0.5,
            lambda table: table["share"].mean(),
        )
    ],
    cost=lambda options, models: 10 * models + options["factor"],
)
def sparsity(models, threshold: float = 1e-3, factor: int = 0):
    rows = [
        (m.kind, m.name, share(models.weights(m), threshold))
        for m in models.trained()
    ]
    table = pandas.DataFrame(rows, columns=["kind", "name", "share"])
    return kt.Table(table, pictures=table[:1], pixels=table[:1].copy())


def share(weights, threshold):
    small = sum((abs(w) < threshold).sum() for w in weights)
    return small / sum(w.size for w in weights)
""",
    "my_analysis.gin": """
import my_analysis
analyze.analyses = [@sparsity]
sparsity.threshold = 1e9
sparsity.factor = 60
""",
    "my_study.gin": f"""
include "study_digits.gin"
Study.bindings = {TINY | {"load.num_train": 64}}
Study.source = {{}}
Study.targets = {{"digits": {{}}}}
Study.replications = 1
Study.block_sizes = []
Study.pretrained_epochs = []
Study.num_train = {{}}
Study.analyses_of_one = []
Study.analyses_of_three = []
Study.analyses = ["my_analysis.gin"]
""",
}


def write_own(directory):
    """Writes the files of `OWN`; returns flags that run its study."""
    for name, text in OWN.items():
        (directory / name).write_text(text)
    return [
        f"--gin_file={directory}/my_study.gin",
        f"--work_dir={directory}/study",
    ]


def check_own(study):
    """Checks that a study shows all that the module declares."""
    place = f"{ONE}/analyses/digits/my_analysis"
    table = pandas.read_csv(study / place / "sparsity.csv")
    assert list(table.name) == ["P-T_0", "P-T_1", "RI-T_0", "RI-T_1"]
    assert set(table.share) == {1.0}
    claims = pandas.read_csv(study / "claims.csv")
    assert list(claims.claim)[-1] == "X1"
    claim = claims.iloc[-1]
    assert (claim.value, claim.threshold) == (1.0, 0.5)
    # Of one replication.
    assert claim.verdict == "not decided"
    assert claim.figure == claim.table == f"{place}/sparsity"
    report = (study / "report.html").read_text()
    assert "X1: P-Ts have small weights." in report
    assert "share of small weights" in report
    sections = re.findall("<summary><h3>(.*)</h3>", report)
    # Not the claim's figure again, nor what has no title.
    titles = [f"Small weights of a kind, {k}: digits" for k in ("P-T", "RI-T")]
    assert sections == [*titles, "Pictures: digits"]
    # Drawn from what is not written, and has a table of its own name.
    assert "replication_0_analyses_digits_my_analysis_pictures.csv" in report
    # The claim's and the three of the sections, beside learning curves.
    for name in ("sparsity", "small_P-T", "small_RI-T", "pictures"):
        assert (study / place / f"{name}.png").is_file()
    assert "Figure not available" not in report.partition('id="X1"')[2]
    assert (study / place / "untold.png").is_file()
    assert "untold" not in report


@pytest.mark.long
def test_a_new_analysis_is_one_file(tmp_path):
    flags = write_own(tmp_path)
    status, output, errors = commands.run("reproduce", *flags)
    assert status == 0, errors
    assert "X1  not decided" in output and "1 (> 0.5 is asked)" in output
    check_own(tmp_path / "study")


def test_a_new_analysis_tells_its_cost(tmp_path):
    flags = write_own(tmp_path)
    status, output, errors = commands.run("reproduce", *flags, "--dry_run")
    assert status == 0, errors
    told = costs(output)
    # An epoch: three passes of the 64 training images, one of 797 test images.
    forward = float(told[f"{ONE}/runs/digits/RI-T_0"]) / (3 * 64 + 797)
    found = float(told[f"{ONE}/analyses/digits/my_analysis"])
    # 100 passes over a split; both are shown with two digits.
    expected = (10 * 4 + 60) * (64 + 797) / 2 * forward
    assert found == pytest.approx(expected, rel=0.05)


def test_costs_follow_macros(tmp_path):
    path = tmp_path / "planes.gin"
    path.write_text(
        "analyze.analyses = [@plane, @interpolation]\n"
        "SPLITS = ['test']\nPOINTS = 11\n"
        "interpolation.splits = %SPLITS\ninterpolation.num_points = %POINTS\n"
    )
    found = []
    for points in (11, 22):
        names = "plane.num_points", "interpolation.num_points"
        study = tiny(
            analyses=(str(path),),
            analysis_bindings=dict.fromkeys(names, points),
        )
        told = costs(plan_text(study, tmp_path / "study"))
        found.append(float(told[f"{ONE}/analyses/digits/planes"]))
    # Six pairs, each with as many points again beyond its ends, less one; three
    # models of neither kind make a plane, which is planned for all the same.
    expected = (6 * 43 + 2 * 22**2) / (6 * 21 + 2 * 11**2)
    assert found[1] / found[0] == pytest.approx(expected, rel=0.05)


def test_operations_of_layers_wherever_they_are():
    def convolution(shape):
        return keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.Conv2D(3, 3, 2, padding="same"),
                keras.layers.Dense(4),
            ]
        )

    # A multiplication and an addition are two, at 4 x 4 positions.
    expected = 2 * 16 * (9 * 2 * 3 + 3 * 4)
    assert forward_operations(convolution((8, 8, 2))) == expected
    inputs = keras.Input((8, 8, 2))
    nested = convolution((8, 8, 2))(inputs)
    pooled = keras.layers.GlobalAveragePooling2D()(nested)
    outputs = keras.layers.Dense(10)(pooled)
    network = keras.Model(inputs, outputs)
    assert forward_operations(network) == expected + 2 * 4 * 10


def test_data_of_ones_own_are_not_counted(tmp_path):
    @gin.configurable(module="test_study")
    def own_data():
        raise AssertionError("It may take long.")

    path = tmp_path / "own.gin"
    path.write_text("include 'rit_digits.gin'\ntrain.dataset = @own_data")
    found = costs(plan_text(tiny(scratch=str(path)), tmp_path / "study"))
    assert found[f"{ONE}/runs/digits/RI-T_0"] == "?"
    assert float(found[f"{ONE}/runs/digits/P-T_0"]) > 0


def test_every_configuration_is_read_once(tmp_path, monkeypatch):
    def parse(*arguments, **options):
        read.append(arguments)
        original(*arguments, **options)

    read, original = [], config.parse
    monkeypatch.setattr(config, "parse", parse)
    study = tiny(block_sizes=(4,), pretrained_epochs=(0,))
    plan_text(study, tmp_path)
    assert len(read) == len(study.tasks())


class Refusing(InTurn):
    """Keeps what it is given and runs nothing."""

    def __init__(self):
        super().__init__()
        self.jobs = {}

    def wait(self):
        name, job = self.running.popitem()
        self.jobs[name] = job
        record_failure(job, "It was refused.")
        return name


def test_jobs_are_told_where_the_study_lies(copied):
    executor = Refusing()
    changed = tiny(targets={"digits": {"P-T": {"train.epochs": 2}}})
    Runner(copied, changed.tasks()).run(executor)
    names = [f"{ONE}/runs/digits/P-T_{i}" for i in range(2)]
    assert list(executor.jobs) == names
    for job in executor.jobs.values():
        # Nor is a study another one because it has been moved.
        assert str(copied) not in job.identity["config"]
        gin.clear_config()
        config.parse([], [job.config])
        pretrained = gin.query_parameter("train.pretrained")
        assert pretrained == f"{copied}/{ONE}/runs/P"
        assert gin.query_parameter("train.epochs") == 2


def test_analyses_are_told_where_the_runs_lie(copied):
    executor = Refusing()
    shutil.rmtree(copied / f"{ONE}/analyses/digits/distance")
    Runner(copied, tiny().tasks()).run(executor)
    (job,) = executor.jobs.values()
    config.parse([], [job.config])
    assert gin.query_parameter("Models.models") == {
        kind: [f"{copied}/{ONE}/runs/digits/{kind}_{seed}" for seed in (0, 1)]
        for kind in ("P-T", "RI-T")
    }


def test_an_analysis_that_is_not_declared_is_named(tmp_path):
    @gin.configurable(module="test_study")
    def undeclared(models):
        pass

    path = tmp_path / "undeclared.gin"
    path.write_text("analyze.analyses = [@undeclared]")
    with pytest.raises(UserError, match="There is no analysis 'undeclared'"):
        Runner(tmp_path, tiny(analyses=(str(path),)).tasks())


PACKAGES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(
        keras_transfer.__path__, "keras_transfer."
    )
    if module.ispkg
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_no_module_is_hidden_by_what_has_its_name(package):
    for module in pkgutil.iter_modules(package.__path__):
        full_name = f"{package.__name__}.{module.name}"
        found = importlib.import_module(full_name)
        assert getattr(package, module.name) is found
