r"""Trains everything a study needs, analyses it, and writes the report.

    bin/reproduce --gin_file=gin/study_digits.gin --work_dir=runs/study_digits
    bin/reproduce --gin_file=gin/study_digits.gin --work_dir=runs/study_digits \
        --dry_run

Stop it whenever you like (SIGTERM: exit status 143); the same command redoes
nothing that was finished. If you remove a run's directory, that run is done
again, and whatever depends on it. --dry_run prints the plan: runs, analyses,
what each needs, and an estimate of compute.

Runs and analyses go side by side, each with 'Study.threads' threads, so numbers
do not depend on how many cores there are. As many go at a time as the cores
have room for, and one on each GPU; 'Workers.num_workers' and
'Workers.jobs_per_gpu' change that.

--executor=ray spreads them over the cluster at --ray_address, whose machines
must see --work_dir and the data under the same paths; each gets
'OnRay.cpus_per_job' and 'OnRay.gpus_per_job'.
"""

from absl import flags

from keras_transfer import app, progress


def define_flags():
    """Defines what only this command takes."""
    app.define_path("work_dir", "Directory of the study; made if need be.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print the plan and an estimate of compute; run nothing.",
    )
    flags.DEFINE_enum(
        "executor",
        "local",
        ["local", "ray"],
        "Where runs and analyses go: processes of this machine, or Ray (pip "
        "install 'keras_transfer[ray]').",
    )
    flags.DEFINE_string(
        "ray_address",
        None,
        'Address of a running Ray cluster, such as "auto" or "HOST:6379"; '
        "without it one is started on this machine and ends with the study.",
    )


def main(work_dir, dry_run, executor, ray_address):
    """Reproduces a study, or prints its plan."""
    from keras_transfer.study import OnRay, Study, Workers, plan_text
    from keras_transfer.study.reproduce import reproduce

    app.parse_gin()
    study = Study()
    if dry_run:
        print(plan_text(study, work_dir))
        return
    if executor == "local":
        chosen = Workers(study.threads)
    else:
        chosen = OnRay(ray_address, study.threads)
    reproduce(study, work_dir, _Telling(chosen))


class _Telling:
    """An executor that says in a line when a job is finished.

    Args:
        executor: the one that runs the jobs.
    """

    def __init__(self, executor):
        self._executor = executor
        self._paths = {}

    def __enter__(self):
        self._executor.__enter__()
        return self

    def __exit__(self, *exception):
        return self._executor.__exit__(*exception)

    def __getattr__(self, name):
        return getattr(self._executor, name)

    def submit(self, job):
        """Takes a job, and remembers where it leaves its results."""
        self._paths[job.name] = job.path
        self._executor.submit(job)

    def wait(self):
        """Returns the name of a job that has ended, and says so."""
        from keras_transfer.study.tasks import read_record

        name = self._executor.wait()
        record = read_record(self._paths.pop(name))
        # Of one that failed, whoever ran it has told.
        if record.get("state") == "finished":
            seconds = record["seconds"]
            progress.write_line(f"{name}: finished in {seconds:.1f} s")
        return name
