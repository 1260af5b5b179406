"""What is in a study's directories, and whose it is."""

import os

import pytest

from keras_transfer import files, manifest
from keras_transfer.analysis.output import Output
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.study import Runner, reproduce, tasks
from keras_transfer.study.plan import Task


@pytest.fixture(autouse=True)
def executed(monkeypatch):
    """The jobs that were run; each leaves its configuration as its result."""
    found = []

    def execute(job, loaded, trainers):
        found.append(job.config)
        with files.writing(job.path):
            (job.path / "result").write_text(job.config)

    monkeypatch.setattr(tasks, "_execute", execute)
    return found


def job_of(study, config="a", command="train", name="runs/P"):
    identity = {"command": command, "config": config, "needs": {}}
    return tasks.Job(name, study / name, config, identity)


def results(study):
    return sorted(path.read_text() for path in study.rglob("result"))


def test_another_configuration_keeps_what_was_there(tmp_path, executed, caplog):
    for config in "ab":
        tasks.run_job(job_of(tmp_path, config))
    (tmp_path / "runs/P/notes.txt").write_text("mine")
    tasks.run_job(job_of(tmp_path, "c"))
    assert results(tmp_path) == ["a", "b", "c"]
    (kept,) = tmp_path.glob("replaced/runs/P/*/notes.txt")
    assert kept.read_text() == "mine" and str(kept.parent) in caplog.text
    assert (tmp_path / "runs/P/result").read_text() == "c"
    assert executed == ["a", "b", "c"]


def test_a_configuration_that_comes_back_is_not_done_again(tmp_path, executed):
    for config in "aba":
        tasks.run_job(job_of(tmp_path, config))
    assert executed == ["a", "b"] and results(tmp_path) == ["a", "b"]
    assert (tmp_path / "runs/P/result").read_text() == "a"
    assert tasks.read_record(tmp_path / "runs/P")["state"] == "finished"
    assert not list(tmp_path.rglob(files.LOCK_NAME))


def test_a_run_that_was_trained_by_hand_is_refused(tmp_path, executed):
    path = tmp_path / "runs/P"
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="P holds what no study .*notes.txt"):
        tasks.run_job(job_of(tmp_path))
    assert os.listdir(path) == ["notes.txt"] and not executed


def test_a_linked_run_is_left_where_it_is(tmp_path, executed):
    mine, study = tmp_path / "mine", tmp_path / "study"
    tasks.run_job(job_of(mine, "a"))
    (study / "runs").mkdir(parents=True)
    (study / "runs/P").symlink_to(mine / "runs/P")
    tasks.run_job(job_of(study, "a"))
    assert executed == ["a"]
    tasks.run_job(job_of(study, "b"))
    assert (mine / "runs/P/result").read_text() == "a"
    assert (study / "runs/P/result").read_text() == "b"


def test_nothing_is_begun_if_a_directory_is_not_the_studys(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("keras_transfer.study.runner._read", lambda task: "a")
    (tmp_path / "runs/B").mkdir(parents=True)
    (tmp_path / "runs/B/config.gin").write_text("mine")
    both = [Task(f"runs/{name}", "train", (), {}) for name in "AB"]
    with pytest.raises(UserError, match="B holds what no study"):
        Runner(tmp_path, both).run()
    assert os.listdir(tmp_path / "runs") == ["B"]
    assert os.listdir(tmp_path / "runs/B") == ["config.gin"]


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b'"finished"',
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
        b'{"state": 3}',
        b'{"seconds": "x"}',
    ],
)
def test_records_of_another_form_are_done_again(tmp_path, executed, content):
    tasks.run_job(job_of(tmp_path))
    (tmp_path / "runs/P/task.json").write_bytes(content)
    assert tasks.read_record(tmp_path / "runs/P") == {}
    tasks.run_job(job_of(tmp_path))
    assert executed == ["a", "a"] and results(tmp_path) == ["a", "a"]


def test_a_log_that_is_no_text(tmp_path):
    (tmp_path / "error.log").write_bytes(b"why \xff\xfe\0")
    assert tasks.read_log(tmp_path).startswith("why ")
    assert tasks.read_log(tmp_path / "absent") == ""


def test_a_table_that_was_changed_is_made_again(tmp_path, monkeypatch):
    made = []

    def analyse(job, loaded, trainers):
        made.append(job.name)
        Output(job.path).text("distance.csv", "value\n1.5\n")

    monkeypatch.setattr(tasks, "_execute", analyse)
    job = job_of(tmp_path, command="analyze", name="analyses/a/distance")
    for _ in range(2):
        tasks.run_job(job)
    assert len(made) == 1
    path = job.path / "distance.csv"
    path.write_text("value\n1.7\n")
    with pytest.raises(UserError, match="distance.csv is damaged"):
        Manifest(job.path).read_table("distance.csv")
    tasks.run_job(job)
    assert len(made) == 2 and path.read_text() == "value\n1.5\n"


def test_a_study_does_not_take_the_directory_of_something_else(tmp_path):
    claim = reproduce._claimed
    (tmp_path / "config.gin").write_text("mine")
    with pytest.raises(UserError, match="config.gin is there already"):
        claim(tmp_path)
    Manifest(tmp_path / "run", "run").claim()
    with pytest.raises(UserError, match="a run of bin/train and cannot be"):
        claim(tmp_path / "run")
    study = claim(tmp_path / "study")
    study.write_text("config.gin", "ours")
    # The same study goes on, and one of a version without manifests.
    claim(tmp_path / "study").write_text("config.gin", "changed")
    tasks.run_job(job_of(tmp_path / "study"))
    (tmp_path / "study" / manifest.NAME).unlink()
    claim(tmp_path / "study").write_text("config.gin", "again")
    assert (tmp_path / "study/config.gin").read_text() == "again"


def test_an_analysis_goes_on_where_one_without_manifest_was(tmp_path):
    output = Output(tmp_path)
    output.text("config.gin", "first")
    (tmp_path / "tensorboard").mkdir(exist_ok=True)
    (tmp_path / manifest.NAME).unlink()
    Output(tmp_path).text("config.gin", "second")
    assert (tmp_path / "config.gin").read_text() == "second"
