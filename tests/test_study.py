import importlib
import json
import math
import pkgutil
import re
import shutil

import commands
import gin
import keras
import numpy as np
import pandas
import pytest
from scipy import stats

import keras_transfer
from keras_transfer import config
from keras_transfer.analysis import declaration
from keras_transfer.analysis.declaration import Statistic
from keras_transfer.analysis.statistics import jackknife, mean_over_seeds
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.study import InTurn, Runner, Study, plan_text
from keras_transfer.study.claims import decide, finding, statistics
from keras_transfer.study.estimate import forward_operations
from keras_transfer.study.plan import DirectoryOf
from keras_transfer.study.reproduce import reproduce
from keras_transfer.study.tasks import record_failure

GIN = commands.ROOT / "gin"
STUDIES = sorted(path.name for path in GIN.glob("study_*.gin"))
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
            "seeds": (0, 1),
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
    study = tiny(block_sizes=(1, 8), pretrained_epochs=(0,))
    seen = set()
    for task in study.tasks():
        assert set(task.needs) <= seen
        assert task.name not in seen
        seen.add(task.name)
    # P; two P-Ts, two RI-Ts; 2 sizes x 2 kinds x 2 seeds; epoch 0 x 2 seeds.
    assert sum(name.startswith("runs/") for name in seen) == 1 + 4 + 8 + 2
    assert {n for n in seen if n.startswith("analyses/")} == {
        "analyses/digits/distance",
        "analyses/digits/feature_reuse",
        "analyses/digits/pretraining",
    }


def test_tasks_bind_what_the_study_says():
    study = tiny(
        block_sizes=(4,),
        pretrained_epochs=(0,),
        sweep_bindings={"train.epochs": 7},
        targets={"digits": {"load.num_train": 50, "RI-T": {"train.epochs": 9}}},
    )
    tasks = {task.name: task for task in study.tasks()}
    fine_tuned = tasks["runs/digits/P-T_1"].bindings
    assert fine_tuned["train.pretrained"] == DirectoryOf("runs/P")
    assert (fine_tuned["train.seed"], fine_tuned["load.num_train"]) == (1, 50)
    assert fine_tuned["train.epochs"] == 1
    assert tasks["runs/digits/RI-T_0"].bindings["train.epochs"] == 9
    assert "train.pretrained" not in tasks["runs/digits/RI-T_0"].bindings
    shuffled = tasks["runs/digits/blocks_4/P-T_1"]
    assert shuffled.files == ("pt_digits.gin", "shuffled.gin")
    assert shuffled.bindings["load.block_size"] == 4
    assert shuffled.bindings["load.shuffle_seed"] == 1235
    # Trained as long as those it is compared with, so once more.
    last = tasks["runs/digits/from_epoch_last/P-T_0"].bindings
    assert (last["train.pretrained_epoch"], last["train.epochs"]) == ("last", 7)
    sweep = tasks["analyses/digits/pretraining"].bindings["Models.models"]
    assert sweep == {
        "P-T": [
            DirectoryOf(f"runs/digits/from_epoch_{epoch}/P-T_{seed}")
            for epoch in (0, "last")
            for seed in (0, 1)
        ]
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"targets": {}}, "at least one target"),
        ({"targets": {"../digits": {}}}, "Received: '../digits'"),
        ({"targets": {"digits": 3}}, "digits.* must be a dictionary"),
        ({"targets": {"digits": {"P-T": 3}}}, "P-T.* must be a dictionary"),
        ({"bindings": {"a = 1\nb": 3}}, "must bind parameters such as"),
        ({"source": {3: 3}}, "Study.source must bind .* Received: 3"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (0, 0)}, "Study.seeds must not hold anything twice"),
        ({"seeds": (0, -1)}, "Study.seeds must be .* of 0 or more"),
        ({"block_sizes": (0,)}, "Study.block_sizes must be .* of 1 or more"),
        ({"pretrained_epochs": (-1,)}, "Study.pretrained_epochs must be"),
        ({"num_images": {"digits": [1]}}, r"num_images.* Received: \[1\]"),
        ({"analyses": ("a.gin", "a.gin")}, "Study.analyses must not hold"),
        ({"block_sizes": (4,), "shuffle_seeds": (1,)}, "2 Study.seeds and 1"),
    ],
)
def test_studies_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned(name, tmp_path):
    bindings = []
    if name == "study_folder.gin":
        bindings = ["Study.targets = {'photo': {'load.data_dir': 'D'}}"]
    config.parse([str(GIN / name)], bindings)
    text = plan_text(Study(), tmp_path / "study")
    assert "runs/P " in text and "criticality" in text
    assert not (tmp_path / "study").exists()


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
    metrics = Run(copied / "runs/digits/P-T_0").metrics_path.read_bytes()
    shutil.rmtree(copied / "runs/digits/P-T_0")
    Runner(copied, tasks).run()
    after = completions(copied, tasks)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"runs/digits/P-T_0", "analyses/digits/distance"}
    again = Run(copied / "runs/digits/P-T_0").metrics_path.read_bytes()
    assert again == metrics


def test_removing_p_redoes_what_came_of_it(copied):
    tasks = tiny().tasks()
    before = completions(copied, tasks)
    shutil.rmtree(copied / "runs/P")
    Runner(copied, tasks).run()
    after = completions(copied, tasks)
    same = {name for name in before if before[name] == after[name]}
    assert same == {"runs/digits/RI-T_0", "runs/digits/RI-T_1"}


def test_a_changed_configuration_is_done_again(copied):
    runner = Runner(copied, tiny(bindings=TINY | {"train.epochs": 2}).tasks())
    runs = [task for task in runner.tasks if task.command == "train"]
    assert len(runs) == 5
    assert not any(runner.is_current(task) for task in runs)
    assert {o.state for o in runner.run()} == {"finished"}
    assert Run(copied / "runs/digits/RI-T_0").epochs() == [0, 1, 2]


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
    record = copied / "runs/digits/P-T_0/task.json"
    told = json.loads(record.read_text()) | {"state": "begun"}
    record.write_text(json.dumps(told))
    (copied / "runs/digits/P-T_0/config.gin").write_text("train.epochs = 5\n")
    shutil.rmtree(copied / "runs/digits/RI-T_1")
    outcomes = {o.task.name: o for o in Runner(copied, tasks).run()}
    failed = outcomes["runs/digits/P-T_0"]
    assert failed.state == "failed"
    assert "holds a run of another configuration" in failed.log
    assert "In call to configurable" not in failed.log
    assert outcomes["runs/digits/RI-T_1"].state == "finished"
    analysis = outcomes["analyses/digits/distance"]
    assert analysis.state == "not run"
    assert "runs/digits/P-T_0" in analysis.log


def test_a_damaged_record_is_done_again(copied):
    path = copied / "runs/digits/RI-T_0/task.json"
    path.write_text(path.read_text()[:20])
    outcomes = Runner(copied, tiny().tasks()).run()
    assert {o.state for o in outcomes} == {"finished"}
    assert json.loads(path.read_text())["state"] == "finished"


def test_reproduce_leaves_claims_and_report(copied, capsys):
    gin.clear_config()
    reproduce(tiny(), copied)
    claims = pandas.read_csv(copied / "claims.csv")
    assert set(claims.claim) == {f"C{i}" for i in range(1, 13)}
    decided = claims[claims.value.notna()]
    # The one analysis of this study.
    assert set(decided.claim) == {"C5"}
    table = pandas.read_csv(copied / "analyses/digits/distance/distance.csv")
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
        if row.startswith(("runs/", "analyses/"))
    }


def test_the_plan_counts_the_images_that_are_drawn(tmp_path):
    found = []
    for drawn in ({}, {"examples_modules.num_examples": 20}):
        study = tiny(analyses=("criticality.gin",), analysis_bindings=drawn)
        told = costs(plan_text(study, tmp_path))
        found.append(float(told["analyses/digits/criticality"]))
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
    assert "runs/digits/blocks_16/RI-T_2" in output
    assert "34 runs and 11 analyses" in output
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "value, low, high, direction, threshold, expected",
    [
        (2, 1, 3, ">", 0, "reproduced"),
        (2, -1, 5, ">", 0, "inconclusive"),
        (-2, -3, -1, ">", 0, "not reproduced"),
        (0.5, 0.4, 0.6, "<", 1, "reproduced"),
        (1.5, 1.4, 1.6, "<", 1, "not reproduced"),
        (1.5, 0.4, 2.6, "<", 1, "inconclusive"),
        (2, math.nan, math.nan, ">", 0, "inconclusive"),
        (math.nan, math.nan, math.nan, ">", 0, "not decided"),
    ],
)
def test_finding(value, low, high, direction, threshold, expected):
    assert finding(value, low, high, direction, threshold) == expected


# A barrier of so much between the models of each pair: none for P-Ts.
HEIGHTS = {"P-T/P-T": 0.01, "P-T/RI-T": 0.8, "RI-T/RI-T": 0.02}


def write_lines(place):
    """Writes interpolation.csv with barriers of `HEIGHTS`."""
    place.mkdir(parents=True)
    names = {"P-T": "abc", "RI-T": "xyz"}
    rows = [
        (kind, i, j, "test", alpha, 0.0, 0.9 - height * (alpha == 0.5))
        for kind, height in HEIGHTS.items()
        for i in names[kind.split("/")[0]]
        for j in names[kind.split("/")[1]]
        if i < j
        for alpha in (0.0, 0.5, 1.0)
    ]
    columns = ["pair", "first", "second", "split", "alpha", "loss", "accuracy"]
    table = pandas.DataFrame(rows, columns=columns)
    table.to_csv(place / "interpolation.csv", index=False)


@pytest.mark.parametrize("name", ["interpolation", "lines"])
def test_a_claim_is_as_good_as_its_worst_statistic(tmp_path, name):
    # In whichever directory the table lies.
    write_lines(tmp_path / "t" / name)
    (tmp_path / "t" / "another").mkdir()
    found = decide(tmp_path, ["t"])
    barriers = found[found.claim == "C6"]
    assert list(barriers.value) == pytest.approx([0.01, 0.02])
    assert list(barriers.finding) == ["reproduced", "not reproduced"]
    assert set(barriers.verdict) == {"not reproduced"}
    path = f"{tmp_path.name}/t/{name}/interpolation"
    assert set(barriers.figure) == set(barriers.table) == {path}
    others = found[found.claim != "C6"]
    assert set(others.verdict) == {"not decided"}
    (note,) = set(found[found.claim == "C3"].note)
    missing = f"{tmp_path.name}/t/mistakes/mistakes.csv is not there"
    assert note.startswith(missing)


def test_every_claim_has_a_statistic():
    claims = [statistic.claim for _, statistic in statistics()]
    assert claims == sorted(claims, key=lambda claim: int(claim[1:]))
    assert set(claims) == {f"C{i}" for i in range(1, 13)}


def own_statistic(claim, compute, table="interpolation"):
    return Statistic(claim, "It is so.", "it", ">", 0.0, compute, (table,))


def declare(monkeypatch, name, *statistics):
    """Declares an analysis for one test."""
    monkeypatch.setattr(declaration, "_DECLARED", dict(declaration._DECLARED))

    def function(models):
        pass

    function.__name__ = name
    declaration.declare_analysis(statistics=statistics)(function)


def test_claims_of_others_come_after_the_papers(monkeypatch, tmp_path):
    declare(
        monkeypatch,
        "own_claims",
        own_statistic("X2", lambda table: (2.0, 1.0, 3.0)),
        own_statistic("C1b", lambda table: (2.0, 1.0, 3.0)),
        own_statistic("C11", lambda table: (-2.0, -3.0, -1.0)),
    )
    write_lines(tmp_path / "t" / "interpolation")
    found = decide(tmp_path, ["t"])
    claims = list(dict.fromkeys(found.claim))
    assert claims == [f"C{i}" for i in range(1, 13)] + ["C1b", "X2"]
    assert set(found[found.claim == "X2"].verdict) == {"reproduced"}
    assert "not reproduced" in set(found[found.claim == "C11"].finding)


def test_what_is_not_there_refutes_and_an_error_does_not(monkeypatch, tmp_path):
    def refute(table):
        raise declaration.Refuted("There was none.")

    def fail(table):
        return table["no such column"]

    own = own_statistic("X1", refute), own_statistic("X2", fail)
    declare(monkeypatch, "own_errors", *own)
    write_lines(tmp_path / "t" / "interpolation")
    found = decide(tmp_path, ["t"]).set_index("claim")
    refuted, failed = found.loc["X1"], found.loc["X2"]
    assert (refuted.verdict, refuted.note) == (
        "not reproduced",
        "There was none.",
    )
    assert failed.verdict == "not decided"
    assert failed.note == ("It cannot be computed. KeyError: 'no such column'")


# One new analysis is one file, and a gin file that asks for it.
OWN = {
    "my_analysis.py": """
import math

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
            lambda table: (table["share"].mean(), 0.6, math.inf),
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
Study.seeds = [0, 1]
Study.block_sizes = []
Study.pretrained_epochs = []
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
    place = "analyses/digits/my_analysis"
    table = pandas.read_csv(study / place / "sparsity.csv")
    assert list(table.name) == ["P-T_0", "P-T_1", "RI-T_0", "RI-T_1"]
    assert set(table.share) == {1.0}
    claims = pandas.read_csv(study / "claims.csv")
    assert list(claims.claim)[-1] == "X1"
    claim = claims.iloc[-1]
    assert (claim.value, claim.low, claim.threshold) == (1.0, 0.6, 0.5)
    assert claim.verdict == "reproduced"
    assert claim.figure == claim.table == f"{place}/sparsity"
    report = (study / "report.html").read_text()
    assert "X1: P-Ts have small weights." in report
    assert "share of small weights" in report
    sections = re.findall("<section>\n<h3>(.*)</h3>", report)
    # Not the claim's figure again, nor what has no title.
    titles = [f"Small weights of a kind, {k}: digits" for k in ("P-T", "RI-T")]
    assert sections == [*titles, "Pictures: digits"]
    # Drawn from what is not written, and has a table of its own name.
    assert "analyses_digits_my_analysis_pictures.csv" in report
    for name in ("sparsity", "small_P-T", "small_RI-T", "pictures"):
        assert f": {place}/{name}." in report
    assert (study / place / "untold.png").is_file()
    assert "untold" not in report


@pytest.mark.long
def test_a_new_analysis_is_one_file(tmp_path):
    flags = write_own(tmp_path)
    status, output, errors = commands.run("reproduce", *flags)
    assert status == 0, errors
    assert "X1  reproduced" in output
    check_own(tmp_path / "study")


def test_a_new_analysis_tells_its_cost(tmp_path):
    flags = write_own(tmp_path)
    status, output, errors = commands.run("reproduce", *flags, "--dry_run")
    assert status == 0, errors
    told = costs(output)
    # An epoch: three passes of the 64 training images, one of 797 test images.
    forward = float(told["runs/digits/RI-T_0"]) / (3 * 64 + 797)
    found = float(told["analyses/digits/my_analysis"])
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
        found.append(float(told["analyses/digits/planes"]))
    # Six pairs, and two kinds: the line's points and the square of the plane's.
    expected = (6 * 22 + 2 * 22**2) / (6 * 11 + 2 * 11**2)
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
    assert found["runs/digits/RI-T_0"] == "?"
    assert float(found["runs/digits/P-T_0"]) > 0


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
    assert list(executor.jobs) == ["runs/digits/P-T_0", "runs/digits/P-T_1"]
    for job in executor.jobs.values():
        # Nor is a study another one because it has been moved.
        assert str(copied) not in job.identity["config"]
        gin.clear_config()
        config.parse([], [job.config])
        assert gin.query_parameter("train.pretrained") == f"{copied}/runs/P"
        assert gin.query_parameter("train.epochs") == 2


def test_analyses_are_told_where_the_runs_lie(copied):
    executor = Refusing()
    shutil.rmtree(copied / "analyses/digits/distance")
    Runner(copied, tiny().tasks()).run(executor)
    (job,) = executor.jobs.values()
    config.parse([], [job.config])
    assert gin.query_parameter("Models.models") == {
        kind: [f"{copied}/runs/digits/{kind}_{seed}" for seed in (0, 1)]
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


def test_mean_over_seeds_is_students():
    values = [0.2, 0.5, 0.9, 0.4]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_over_seeds(values) == pytest.approx((0.5, *expected))
    mean, low, high = mean_over_seeds([0.5])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_jackknife_of_a_mean_is_students():
    values = dict(zip("abcd", [0.2, 0.5, 0.9, 0.4], strict=True))

    def mean(models):
        return np.mean([values[m] for m in models])

    expected = mean_over_seeds(list(values.values()))
    assert jackknife(mean, ["abcd"]) == pytest.approx(expected)
    value, low, high = jackknife(mean, ["a"])
    assert value == 0.2 and math.isnan(low) and math.isnan(high)
