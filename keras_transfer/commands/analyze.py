r"""Runs one or more analyses on finished runs.

    bin/analyze --gin_file=gin/interpolation.gin --work_dir=analyses/barriers \
        --gin_bindings='Models.models = {"P-T": ["runs/pt0", "runs/pt1"]}'

Writes tables (.csv) and figures of them (.png, .svg), and both into
TensorBoard. To run several analyses, name them in one binding:
'analyze.analyses = [@similarity, @mistakes]'; of several files that bind it,
the last one wins. If it was stopped (SIGTERM: exit status 143), the same
command continues where it was.
"""

from keras_transfer import app, progress


def define_flags():
    """Defines what only this command takes."""
    app.define_path("work_dir", "Directory for the results; made if need be.")


def main(work_dir):
    """Analyses, and says where everything is."""
    import keras_transfer.analysis.all  # noqa: F401, so that gin knows each
    from keras_transfer.analysis.analyze import analyze

    app.parse_gin()
    progress.ask_for_lines()
    analyze(work_dir)
    print(
        f"\nTables and figures lie in {work_dir}.\n"
        f"  look at them:  tensorboard --logdir {work_dir}"
    )
