r"""Runs one or more analyses on finished runs.

    bin/analyze --gin_file=gin/interpolation.gin --work_dir=analyses/barriers \
        --gin_bindings='Models.models = {"P-T": ["runs/pt0", "runs/pt1"]}'

Leaves tables (.csv), the figure drawn from each (.png, .svg) and the same in
TensorBoard. --gin_file may be repeated with files that bind
`analyze.analyses` each; the last one wins, so name several analyses in one
binding: 'analyze.analyses = [@similarity, @mistakes]'. Stopped (SIGTERM: exit
status 143), the same command goes on with the points not yet evaluated.
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
