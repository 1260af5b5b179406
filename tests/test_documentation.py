"""What the documents promise, and what they may weigh."""

import os
import pathlib
import re
import subprocess

import commands
import pytest

_DOCS = commands.ROOT / "docs"
_PAGES = sorted(
    [*_DOCS.rglob("*.md"), *commands.ROOT.glob("*.md")],
    key=lambda path: path.name,
)
_NOTEBOOKS = sorted((commands.ROOT / "notebooks").glob("*.ipynb"))


def _blocks(path, language):
    """Returns the fenced blocks of a language in a page."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_record_of_the_build_is_short():
    text = (commands.ROOT / "BUILD_NOTES.md").read_text()
    assert len(text.splitlines()) < 250


def test_figures_are_small_and_made_by_a_script():
    figures = [*(_DOCS / "figures").iterdir()]
    assert sum(path.stat().st_size for path in figures) < 200_000
    script = (_DOCS / "make_figures.py").read_text()
    assert all(f'"{path.stem}"' in script for path in figures)


@pytest.mark.parametrize("page", _PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    # In the tutorial, and at the head of a block.
    made = text + (_DOCS / "tutorial.md").read_text()
    made = set(re.findall(r"^(?:cat > |# )(\S+\.gin)", made, re.M))
    shipped = {p.name for p in (commands.ROOT / "gin").glob("*.gin")}
    for named in re.findall(r"--gin_file=(?:gin/)?(\w+\.gin)", text):
        assert named in shipped | made, named


def test_every_analysis_has_its_mathematics_and_its_reference():
    analyses = {
        path.stem
        for path in (commands.ROOT / "keras_transfer/analysis").glob("*.py")
        if re.search(rf"^def {path.stem}\(\s*models", path.read_text(), re.M)
    }
    assert len(analyses) > 12
    mathematics = (_DOCS / "mathematics.md").read_text()
    reference = (_DOCS / "api.md").read_text()
    for name in analyses:
        assert f"[`{name}`]" in mathematics
        assert f"::: keras_transfer.analysis.{name}.{name}\n" in reference


def test_every_public_name_has_its_reference():
    import keras_transfer

    reference = (_DOCS / "api.md").read_text()
    for name in keras_transfer.__all__:
        if name not in ("__version__", "figures"):
            assert re.search(
                rf"^::: keras_transfer\S+\.{name}$", reference, re.M
            )


def test_the_site_is_built(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("latex2mathml")
    built = subprocess.run(
        ["mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "mathematics.html").read_text()
    formulae = (_DOCS / "mathematics.md").read_text().count("$$") // 2
    assert page.count('display="block"') == formulae > 8
    assert "arithmatex" not in page
    # Nothing is fetched by whoever reads it.
    for path in tmp_path.rglob("*.html"):
        text = path.read_text()
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.\w+)"', text)
        assert not [f for f in fetched if f.endswith((".js", ".css"))]


@pytest.mark.long
def test_the_tutorial_runs_as_it_stands(tmp_path):
    script = "\n".join(
        # The programs of this checkout, whatever is installed.
        block.replace("keras-transfer ", "python -m keras_transfer ")
        for name in ("tutorial.md", "gallery.md")
        for block in _blocks(_DOCS / name, "bash")
    )
    # Two epochs of each: what is tested are the commands.
    script = script.replace("train.epochs = 20", "train.epochs = 2")
    script = script.replace("epochs = [0, 2, 5, 20]", "epochs = [0, 2]")
    script = script.replace(
        "# Networks that", "train.epochs = 2\n# Networks that"
    )
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )
    assert run.returncode == 0, run.stderr
    assert pathlib.Path(tmp_path, "exported", "1").is_dir()
    assert "runs and" in run.stdout


@pytest.mark.long
@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_as_they_stand(tmp_path, path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(commands.ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=600, resources=resources
    ).execute()


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_the_outputs_of_a_run(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    kinds = {o.output_type for c in cells for o in c.outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert any(c.outputs for c in cells)
    assert path.stat().st_size < 150_000
