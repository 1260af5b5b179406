import base64
import gzip
import html
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pandas
import pytest
from PIL import Image

from keras_transfer.analysis.declaration import described_claim
from keras_transfer.analysis.drawing import new_figure
from keras_transfer.study.claims import statistics
from keras_transfer.study.report import Report, write_report

NASTY = "<script>throw 'R&D'</script>"
NAN = float("nan")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))),
    None,
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--dump-dom",
]


class Page(html.parser.HTMLParser):
    """The elements of a page in order: (tag, attributes, text within)."""

    VOID = ("meta", "img", "rect", "path", "circle", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, *tags):
        return [e for e in self.elements if e[0] in tags]

    @property
    def text(self):
        return " ".join(self.all("body")[0][2].split())


def claim(name, target, value, low, high, verdict, **others):
    return {
        "claim": name,
        "target": target,
        "statement": f"Statement of {name}.",
        "statistic": f"statistic of {name}",
        "unit": "",
        "value": value,
        "low": low,
        "high": high,
        "direction": ">",
        "threshold": 0.0,
        "decides": True,
        "finding": verdict,
        "verdict": verdict,
        "replications": 8,
        "note": "",
        "figure": "",
        "table": "",
    } | others


def claims():
    barrier = {"figure": "analyses/a/barrier", "table": "analyses/a/barrier"}
    return pandas.DataFrame(
        [
            claim("C2", "a", 0.2, -0.1, 0.4, "inconclusive"),
            claim("C2", NASTY, 0.3, 0.1, 0.4, "reproduced"),
            claim("C6", "a", 0.9, 0.8, 1.0, "not reproduced", **barrier)
            | {"direction": "<", "threshold": 0.05},
            claim("C10", "a", NAN, NAN, NAN, "not decided", note=NASTY)
            | {"figure": "analyses/a/gone", "table": "analyses/a/gone"},
            claim("C12", "a", -5.0, NAN, NAN, "inconclusive", **barrier),
        ]
    )


def values():
    """What two replications gave, as far from the value as each other."""
    return pandas.DataFrame(
        {
            "claim": row.claim,
            "target": row.target,
            "statistic": row.statistic,
            "replication": number,
            "value": row.value + 0.1 * number - 0.05,
            "note": "",
        }
        for row in claims().itertuples()
        for number in range(2)
    )


def runs():
    columns = ["name", "kind", "target", "seed", "final", "best", "speed"]
    columns += ["seconds", "state"]
    rows = [
        ("runs/P", "P", "", NAN, 0.9, 0.95, 0.7, 40, "finished"),
        ("runs/a/P-T_0", "P-T", "a", 0, 0.8, 0.8, 0.7, 1234.5, "finished"),
        ("runs/a/P-T_1", "P-T", "a", 1, 0.6, 0.8, 0.7, 9, "finished"),
        ("runs/a/RI-T_0", "RI-T", "a", 0, 0.5, 0.5, 0.3, 10, "finished"),
        (NASTY, "RI-T", "a", 1, NAN, NAN, NAN, 11, "failed"),
    ]
    return pandas.DataFrame(rows, columns=columns)


def curves():
    rows = [
        (run.name, run.kind, run.target, epoch, split, 1.0, "accuracy")
        + (0.125 if epoch == 0 else run.final,)
        for run in runs().itertuples()
        if run.state == "finished"
        for epoch in range(3)
        for split in ("test", "train")
        if epoch or split == "test"
    ]
    columns = ["run", "kind", "target", "epoch", "split", "loss", "metric"]
    return pandas.DataFrame(rows, columns=[*columns, "value"])


def write(directory, **others):
    """Writes a report; returns its path."""
    place = directory / "analyses" / "a"
    place.mkdir(parents=True)
    figure, axes = new_figure(9, 2)
    axes.plot([1, 2])
    figure.savefig(place / "barrier.png")
    (place / "barrier.csv").write_bytes(b"alpha,loss\n0,\xc3\xa9\n")
    section = ("Spectrum", "What it is.", "analyses/a/barrier", "Lines.", "")
    data = {
        "title": f"Study of {NASTY}",
        "question": "What is being transferred?",
        "claims": claims(),
        "values": values(),
        "runs": runs(),
        "curves": curves(),
        "sections": [section],
        "failures": [(NASTY, f"Traceback\n{NASTY}")],
        "facts": {"TensorFlow": "2.21.0", "CPU cores": 2},
        "config": f'load.data_dir = "{NASTY}"',
        "directory": directory,
    }
    path = directory / "report.html"
    write_report(path, Report(**data | others))
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("study"))
    return Page(path.read_text(encoding="utf-8"))


def test_every_claim_is_told_with_its_verdict_and_values(page):
    expected = {
        ("C2", "a", "0.2 (-0.1 to 0.4)", "> 0", "≈ inconclusive"),
        ("C2", NASTY, "0.3 (0.1 to 0.4)", "> 0", "✓ reproduced"),
        ("C6", "a", "0.9 (0.8 to 1)", "< 0.05", "✗ not reproduced"),
        ("C10", "a", "–", "> 0", "? not decided"),
        ("C12", "a", "-5", "> 0", "≈ inconclusive"),
    }
    found = [" ".join(row[2].split()) for row in page.all("tr")]
    for name, target, *rest in expected:
        row = " ".join((name, target, f"Statement of {name}.", *rest))
        assert row in found
    sections = {e[1].get("aria-labelledby"): e[2] for e in page.all("section")}
    for name, _, _, _, verdict in expected:
        assert verdict in sections[name]
    order = [e[1].get("id") for e in page.all("h2", "h3")]
    order = [name for name in order if name]
    assert order[:4] == ["answers", "verdicts", "models", "claims"]
    assert order[4:8] == ["C2", "C6", "C10", "C12"]


def test_nothing_is_fetched(page):
    for _, attributes, _ in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:"))
    (style,) = page.all("style")
    assert "url(" not in style[2] and "@import" not in style[2]
    places = {e[1].get("id") for e in page.elements}
    for _, attributes, _ in page.all("a"):
        assert attributes["href"][:1] != "#" or attributes["href"][1:] in places


def test_images_have_a_description_and_their_size(page):
    images = [attributes for _, attributes, _ in page.all("img")]
    # The source's and the target's learning curves, and the barrier, once.
    assert len(images) == 3
    assert all(image["alt"] for image in images)
    # 9 x 2 inches, of which CSS has 96 pixels each.
    assert (images[2]["width"], images[2]["height"]) == ("864", "192")
    told = "C6 on a. statistic of C6: 0.9. Not reproduced."
    assert images[2]["alt"] == told
    assert "P-T 0.7, RI-T 0.5" in images[1]["alt"]
    assert "P 0.9" in images[0]["alt"]


def test_the_data_come_back_as_they_were(page):
    saved = {
        attributes["download"]: base64.b64decode(
            attributes["href"].partition("base64,")[2]
        )
        for _, attributes, _ in page.all("a")
        if "download" in attributes
    }
    assert saved["analyses_a_barrier.csv"] == b"alpha,loss\n0,\xc3\xa9\n"
    assert saved["claims.csv"].decode() == claims().to_csv(index=False)
    assert saved["replications.csv"].decode() == values().to_csv(index=False)
    assert saved["runs.csv"].decode() == runs().to_csv(index=False)
    assert saved["curves.csv"].decode() == curves().to_csv(index=False)


def test_a_table_is_embedded_once(page):
    links = [a for _, a, _ in page.all("a") if "download" in a]
    names = [link["download"] for link in links]
    assert len(set(names)) == len(names)
    (link,) = [a for a in links if a["download"] == "analyses_a_barrier.csv"]
    again = [
        text
        for _, attributes, text in page.all("a")
        if attributes["href"] == f"#{link['id']}"
    ]
    # Of C6 and of C12, which have the same one.
    assert again == ["Data above"]


def test_what_others_have_named_is_text(page):
    # Data, Plotly, and its own script: nothing of what others have named.
    *data, plotly, own = page.all("script")
    assert all(a == {"type": "application/json"} for _, a, _ in data)
    assert plotly[1] == {"type": "text/plain", "id": "plotly"}
    assert own[1] == {} and "R&D" not in own[2]
    assert page.all("title")[0][2] == f"Study of {NASTY}"
    assert page.all("pre")[0][2] == f"Traceback\n{NASTY}"
    assert page.all("pre")[1][2] == f'load.data_dir = "{NASTY}"'


def test_the_four_models_have_their_means_and_ranges(page):
    rows = [" ".join(row[2].split()) for row in page.all("tr")]
    assert "source P accuracy 0.9 0.7 1" in rows
    # RI is the RI-Ts before training.
    assert "a RI accuracy 0.125 – 1" in rows
    assert "a RI-T accuracy 0.5 0.3 1" in rows
    assert "a P-T accuracy 0.7 (0.6 to 0.8) 0.7 2" in rows


def test_failed_runs_and_what_is_missing_are_told(page):
    assert f"{NASTY} RI-T a 1 – – – 11 ✗ failed" in page.text
    assert "runs/a/P-T_0 P-T a 0 0.8 0.8 0.7 1234 finished" in page.text
    assert "statistic of C10: not known; the claim asks" in page.text
    assert "statistic of C12: -5, no interval; the claim" in page.text
    assert "Figure not available: analyses/a/gone." in page.text
    assert "Data not available: analyses/a/gone.csv" in page.text


def test_intervals_are_drawn_to_scale(page):
    drawings = page.all("svg")
    # None of the one that was not decided.
    assert len(drawings) == 4
    marks = [e for e in page.elements if e[0] in ("rect", "path", "circle")]
    shaded, _, line, bar, *rings, dot = (e[1] for e in marks[:7])
    at = {
        "line": float(re.match(r"M([\d.]+) ", line["d"])[1]),
        "low": float(re.match(r"M([\d.]+) ", bar["d"])[1]),
        "high": float(re.search(r"H([\d.]+)M", bar["d"])[1]),
        "value": float(dot["cx"]),
    }
    values = {"line": 0.0, "low": -0.1, "high": 0.4, "value": 0.2}
    slope, start = np.polyfit(list(values.values()), list(at.values()), 1)
    for name, value in values.items():
        assert at[name] == pytest.approx(start + slope * value, abs=1e-9)
    # One ring a replication.
    for ring, value in zip(rings, (0.15, 0.25), strict=True):
        assert float(ring["cx"]) == pytest.approx(start + slope * value)
    # The claim holds above the line: to the right, up to the edge.
    assert slope > 0 and float(shaded["x"]) == at["line"]
    assert float(shaded["width"]) == pytest.approx(320 - at["line"])
    # The other target's is drawn to the same scale.
    assert float(marks[13][1]["cx"]) == pytest.approx(start + slope * 0.3)
    # Below the line.
    assert marks[14][1]["x"] == "0"
    # Without an interval there is no bar.
    assert len(marks) == 4 * 7 - 1


def test_what_decides_nothing_is_shown_beside(tmp_path):
    table = pandas.DataFrame(
        [
            claim("C1", "a", 1, 0.5, 2, "reproduced"),
            claim("C1", "a", -7, -9, -5, "reproduced", finding="")
            | {"decides": False, "statistic": "another"},
        ]
    )
    page = Page(write(tmp_path, claims=table).read_text(encoding="utf-8"))
    rows = [" ".join(row[2].split()) for row in page.all("tr")]
    assert "C1 a Statement of C1. 1 (0.5 to 2) > 0 ✓ reproduced" in rows
    assert "another: -7, 95% interval -9 to -5; shown beside." in page.text


def test_the_worst_statistic_decides_and_each_is_told(tmp_path):
    others = {"finding": "not reproduced", "statistic": "another"}
    table = pandas.DataFrame(
        [
            claim("C5", "a", 1, 0.5, 2, "not reproduced")
            | {"finding": "reproduced"},
            claim("C5", "a", -1, -2, -0.5, "not reproduced", **others),
        ]
    )
    page = Page(write(tmp_path, claims=table).read_text(encoding="utf-8"))
    (result,) = page.all("article")
    text = " ".join(result[2].split())
    assert "a ✗ not reproduced statistic of C5: 1, 95%" in text
    assert "asks for more than 0: reproduced." in text
    assert "another: -1, 95% interval -2 to -0.5" in text
    assert "asks for more than 0: not reproduced." in text
    assert page.text.count("✗ not reproduced 1") == 1


def test_a_table_too_large_to_download_is_named(tmp_path):
    large = tmp_path / "analyses" / "large.csv"
    large.parent.mkdir()
    large.write_bytes(b"0" * 1_500_001)
    sections = [("Large", "Text.", "", "", "analyses/large")]
    path = tmp_path / "report.html"
    empty = pandas.DataFrame()
    report = Report(
        "T", "Q", empty, empty, empty, empty, sections, [], {}, "", tmp_path
    )
    write_report(path, report)
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Data: analyses/large.csv (1.5 MB, too large for this page)" in text
    assert path.stat().st_size < 100_000
    # And nothing else there is not there.
    for words in (
        "No claim was examined.",
        "No run has learning curves.",
        "Nothing was trained.",
        "Nothing failed.",
    ):
        assert words in text


def test_the_answers_come_first(page):
    (answers,) = [e for e in page.all("dl") if e[1].get("class") == "answers"][
        :1
    ]
    questions = [e[2] for e in page.all("dt")][:5]
    assert questions[0] == "What did P give?" and len(set(questions)) == 5
    assert answers[2].count("?") >= 5


def test_every_claim_of_ours_is_described():
    for _, statistic in statistics():
        claim = described_claim(statistic.claim)
        for text in (claim.question, claim.why, claim.measure):
            assert text[0].isupper() and text[-1] in ".?"


def test_captions_are_sentences(page):
    captions = [" ".join(e[2].split()) for e in page.all("figcaption")]
    assert captions
    for text in captions:
        assert re.match(r"Figure \d+\. [A-Z].*\.", text), text
        assert "replication_0/" not in text


def test_what_can_be_touched_has_the_numbers_of_the_tables(page):
    (figure,) = [
        json.loads(text)
        for _, attributes, text in page.all("script")
        if attributes.get("type") == "application/json" and "-5" in text
    ]
    dots = figure["data"][-2]
    assert dots["text"] == ["replication 0: -5.05", "replication 1: -4.95"]
    (library,) = [
        text for _, a, text in page.all("script") if a.get("id") == "plotly"
    ]
    script = gzip.decompress(base64.b64decode(library)).decode()
    assert "plotly.js" in script[:100] and "newPlot" in script


def test_a_page_stays_small_enough_to_send(tmp_path):
    place = tmp_path / "noise"
    place.mkdir()
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (1200, 1000, 3), np.uint8)
    sections = []
    for number in range(12):
        Image.fromarray(noise).save(place / f"{number}.png")
        sections.append((f"N{number}", "T", f"noise/{number}", "N", ""))
    path = write(tmp_path, sections=sections)
    text = path.read_text(encoding="utf-8")
    assert 4_000_000 < len(text) < 8_000_000
    # What is not in it is named.
    assert "noise/11.png" in Page(text).text


def _themes(style):
    """Returns the colours of light and of dark, {name: "#rrggbb"}."""
    found = []
    for block in re.findall(r":root \{([^}]*)\}", style)[:2]:
        pairs = re.findall(r"--(\w+): (#\w+);", block)
        found.append(
            {
                name: "#" + "".join(c * 2 for c in code[1:])
                if len(code) == 4
                else code
                for name, code in pairs
            }
        )
    return found


def _luminance(code):
    """Relative luminance, WCAG 2.2."""
    shares = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4
        for s in shares
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_letters_can_be_read_by_day_and_by_night(page):
    (style,) = page.all("style")
    themes = _themes(style[2])
    assert len(themes) == 2
    for theme in themes:
        for letters in ("ink", "quiet", "link"):
            for ground in ("paper", "soft"):
                pair = [_luminance(theme[name]) for name in (letters, ground)]
                contrast = (max(pair) + 0.05) / (min(pair) + 0.05)
                assert contrast >= 4.5, (letters, ground)
    assert _luminance(themes[1]["paper"]) < 0.05


def test_html_is_valid(tmp_path):
    html5lib = pytest.importorskip("html5lib")
    text = write(tmp_path).read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(text)


HOOK = """<script>
window.problems = [];
console.error = (...words) => problems.push(words.join(" "));
addEventListener("error", event => problems.push(
  event.message || "cannot load " + event.target.outerHTML.slice(0, 80)), true);
addEventListener("securitypolicyviolation", event =>
  problems.push("refused " + event.blockedURI));
</script>"""
PROBE = """<script>
const settled = async () => {
  for (let i = 0; i < 200; i += 1) {
    if (document.querySelectorAll(".main-svg").length) break;
    await new Promise(done => setTimeout(done, 100));
  }
};
addEventListener("load", async () => {
  const table = document.querySelector("table");
  const names = () => [...table.tBodies[0].rows].map(row =>
    row.cells[0].textContent + " " + row.cells[5].textContent.trim());
  const header = index => table.tHead.rows[0].cells[index];
  const sorted = index => {
    header(index).querySelector("button").click();
    return [header(index).getAttribute("aria-sort"), ...names()];
  };
  document.getElementById("C2").scrollIntoView();
  await settled();
  const width = document.documentElement.scrollWidth;
  parent.postMessage(JSON.stringify({
    problems, width, inner: innerWidth,
    plots: document.querySelectorAll(".live .main-svg").length,
    images: [...document.images].map(image =>
      [image.naturalWidth, image.width, image.height]),
    fetched: performance.getEntriesByType("resource").map(r => r.name)
      .filter(name => !name.startsWith("data:")),
    byValue: sorted(3), back: sorted(3), byClaim: sorted(0),
    unsorted: header(3).getAttribute("aria-sort"),
  }), "*");
});
</script>"""
# A browser's window cannot be as narrow as a phone; a frame within it can.
FRAME = """<!DOCTYPE html><body><script>
addEventListener("message", event => {
  document.body.textContent = event.data;
});
</script><iframe src="probed.html" width="390" height="800" style="border: 0">
</iframe></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_it_on_a_phone_and_sorts_it(tmp_path):
    text = write(tmp_path).read_text(encoding="utf-8")
    probed = text.replace("<head>", f"<head>{HOOK}", 1)
    probed = probed.replace("</body>", f"{PROBE}</body>")
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    address = (tmp_path / "frame.html").as_uri()
    shown = subprocess.run(
        [BROWSER, *FLAGS, profile, address],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(
        html.unescape(re.search(r"<body>(.*)</body>", shown, re.DOTALL)[1])
    )
    assert found["problems"] == [] and found["fetched"] == []
    assert found["inner"] == 390
    assert found["width"] <= 390 and found["plots"] > 0
    assert len(found["images"]) == 3
    assert np.min(found["images"]) > 100
    by_value = ["C12 ≈ inconclusive", "C2 ≈ inconclusive", "C2 ✓ reproduced"]
    by_value.append("C6 ✗ not reproduced")
    # What is not known is last either way.
    unknown = "C10 ? not decided"
    assert found["byValue"] == ["ascending", *by_value, unknown]
    assert found["back"] == ["descending", *by_value[::-1], unknown]
    # C10 comes after C6; those of one claim stay in their order.
    names = [name.split()[0] for name in found["byClaim"]]
    assert names == ["ascending", "C2", "C2", "C6", "C10", "C12"]
    assert found["unsorted"] == "none"
