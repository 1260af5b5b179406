r"""Trains one model; the same command resumes it.

    bin/train --gin_file=gin/p_mnist.gin --work_dir=runs/p_mnist
    bin/train --gin_file=gin/pt_digits.gin --work_dir=runs/pt_digits \
        --gin_bindings='train.pretrained = "runs/p_mnist"'

The work directory receives the configuration, a checkpoint per kept epoch,
metrics.csv and TensorBoard files. Exit status: 0 when trained, 1 with a
sentence that says what to mend; 143 on SIGTERM and 130 on Ctrl-C, after saving
the epoch so far.
"""

from keras_transfer import app, progress


def define_flags():
    """Defines what only this command takes."""
    app.define_path("work_dir", "Directory of this run; made if need be.")


def main(work_dir):
    """Trains, and says where everything is."""
    from keras_transfer.training import train

    app.parse_gin()
    progress.ask_for_lines()
    run = train(work_dir)
    best = run.best()
    print(
        f"\n{run.path}: best {run.choosing_split} {best['metric']} "
        f"{best['value']:.4f} (epoch {best['epoch']}).\n"
        f"  figures:  {run.metrics_path}\n"
        f"  curves:   tensorboard --logdir {run.path}\n"
        f"  use it:   {app.command('export')} --run={run.path} --output=DIR"
    )
