import json
import math
import shutil

import commands
import gin
import numpy as np
import pandas
import pytest
from scipy import stats

from keras_transfer.analysis.statistics import jackknife, mean_over_seeds
from keras_transfer.errors import UserError
from keras_transfer.runs import Run
from keras_transfer.study import Runner, Study, plan_text, reproduce
from keras_transfer.study.claims import STATISTICS, decide, find
from keras_transfer.study.plan import Place

GIN = commands.ROOT / "gin"
STUDIES = sorted(path.name for path in GIN.glob("study_*.gin"))
# A study that takes seconds: a tiny network, an epoch, few images.
TINY = {
    "train.epochs": 1,
    "load.image_size": 8,
    "fixup_resnet.widths": (4,),
}


def tiny(**changes):
    gin.add_config_file_search_path(str(GIN))
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
    assert fine_tuned["train.pretrained"] == Place("runs/P")
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
    sweep = tasks["analyses/digits/pretraining"].bindings["Subjects.runs"]
    assert sweep == {
        "P-T": [
            Place(f"runs/digits/from_epoch_{epoch}/P-T_{seed}")
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
    gin.add_config_file_search_path(str(GIN))
    gin.parse_config_file(str(GIN / name))
    if name == "study_folder.gin":
        gin.bind_parameter("Study.targets", {"photo": {"load.data_dir": "D"}})
    text = plan_text(Study(), tmp_path / "study")
    gin.clear_config()
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

    def save(self, epoch, checkpoint):
        saved.append((self.path.name, epoch))
        if saved[-1] == ("P-T_0", 2) and saved.count(saved[-1]) == 1:
            raise KeyboardInterrupt
        original(self, epoch, checkpoint)

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


def test_the_plan_counts_the_images_that_are_drawn(tmp_path):
    costs = []
    for drawn in ({}, {"dataset_suffixes.num_examples": 20}):
        study = tiny(analyses=("criticality.gin",), analysis_bindings=drawn)
        text = plan_text(study, tmp_path)
        (row,) = [r for r in text.splitlines() if "/criticality " in r]
        costs.append(float(row.split()[1]))
    # Of 200 training images; both are shown with two digits.
    assert costs[0] / costs[1] == pytest.approx(10, rel=0.05)


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
    "value, low, high, direction, line, expected",
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
def test_find(value, low, high, direction, line, expected):
    assert find(value, low, high, direction, line) == expected


def test_a_claim_is_as_good_as_its_worst_statistic(tmp_path):
    place = tmp_path / "t" / "interpolation"
    place.mkdir(parents=True)
    names = {"P-T": "abc", "RI-T": "xyz"}
    heights = {"P-T/P-T": 0.01, "P-T/RI-T": 0.8, "RI-T/RI-T": 0.02}
    rows = [
        (kind, i, j, "test", "accuracy", height)
        for kind, height in heights.items()
        for i in names[kind.split("/")[0]]
        for j in names[kind.split("/")[1]]
        if i < j
    ]
    columns = ["pair", "first", "second", "split", "measure", "height"]
    pandas.DataFrame(rows, columns=columns).to_csv(
        place / "interpolation_barriers.csv", index=False
    )
    found = decide(tmp_path, ["t"])
    barriers = found[found.claim == "C6"]
    assert list(barriers.value) == pytest.approx([0.01, 0.02])
    assert list(barriers.finding) == ["reproduced", "not reproduced"]
    assert set(barriers.verdict) == {"not reproduced"}
    others = found[found.claim != "C6"]
    assert set(others.verdict) == {"not decided"}
    assert others.note.str.len().min() > 0


def test_every_claim_has_a_statistic():
    assert [s.claim for s in STATISTICS] == sorted(
        (s.claim for s in STATISTICS), key=lambda claim: int(claim[1:])
    )
    assert {s.claim for s in STATISTICS} == {f"C{i}" for i in range(1, 13)}


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
