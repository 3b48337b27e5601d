"""Report page: self-contained, with exactly the plots that its results allow."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from bmt_trainer.cli.main import app
from bmt_trainer.comparison import plots, tables
from bmt_trainer.comparison.measures import best_of
from bmt_trainer.comparison.plot_style import colors, load_pyplot, styles
from bmt_trainer.comparison.report import write
from bmt_trainer.comparison.results import files
from bmt_trainer.errors import DataError
from typer.testing import CliRunner

METHODS = ("base", "wanda", "full", "lora-1", "mth-99.95", "bmt")


def result(method, dataset, right, **more):
    total = len(right)
    found = {
        "method": method,
        "model": "tiny",
        "dataset": dataset,
        "trainer": "sft",
        "changes": {},
        "settings": {"steps": 4},
        "parameters": 1000,
        "score": {"exact": right.count("1"), "lenient": total, "total": total},
        "right": right,
        "size_bytes": 0 if method == "base" else 1 << (10 + METHODS.index(method)),
        "versions": {"torch": "0"},
    }
    return {**found, **more}


def track(closed, retention=True):
    kept = {"retention": 0.5, "retention_lenient": 0.6, "n": 10} if retention else {}
    return [
        {"step": s, "closed_gates": closed + s, "kl_token": s / 100, "kl_sequence": s / 10, **kept}
        for s in (0, 2, 4)
    ]


MEASURED = {
    "modules": 2,
    "updated": 2,
    "effective_rank": 5.0,
    "spectrum_drift": 1e-3,
    "overlap": 0.44,
    "changed": 0.01,
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    for at, method in enumerate(METHODS):
        for dataset in ("mmlu-pro:test.jsonl.gz?subject=law", "bbeh:<nycc>.json"):
            more = {}
            if method == "bmt":
                more = {"disk_bytes": 900, "zeros": 9, "numel": 500, "track": track(9)}
                more["geometry"] = {"gate": MEASURED, "all": MEASURED}
            if method == "full":
                none = {**MEASURED, "effective_rank": None, "overlap": None, "updated": 0}
                more = {"track": track(0), "geometry": {"gate": MEASURED, "all": none}}
            if method == "wanda":
                score = {"exact": 1, "lenient": 2, "total": 10}
                more = {"levels": [{"eta": 1 / 2, "score": score}, {"eta": 1 / 8, "score": score}]}
            right = "1" * at + "0" * (10 - at)
            name = f"{method}-{len(dataset)}.json"
            (root / name).write_text(json.dumps(result(method, dataset, right, **more)))
    history = {
        "reading": "lenient",
        "steps": [{"step": s, "reward": s / 9, "closed_gates": 5} for s in range(1, 5)],
        "validation": [{"step": 4, "exact": 0, "lenient": 5, "total": 10}],
    }
    (root / "sums.bmt.history.json").write_text(json.dumps(history))
    return root


class Page(HTMLParser):
    """Collects open tags, link targets and the number of cells."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.cells = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        self.cells += tag == "td"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_contains_every_table_and_plot(folder, tmp_path):
    page = write([folder, folder / "sums.bmt"], tmp_path / "out", "A <title>")
    names = {p.name for p in page.parent.iterdir()}
    pictures = {f"{name}.png" for name, *_ in plots.PLOTS} | {"training.png"}
    assert names == pictures | {"index.html"}
    assert all((page.parent / n).read_bytes().startswith(b"\x89PNG") for n in pictures)
    text = page.read_text()
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    assert len(parsed.sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert "A &lt;title&gt;" in text
    assert "bbeh &lt;nycc&gt;" in text
    for words in (
        "by data set",
        "wanda alone",
        "geometry in numbers",
        "first and last measurement",
    ):
        assert words in text.lower()
    assert not re.search(r"https?://", text)


def test_plots_without_data_are_left_out(folder, tmp_path):
    for path in folder.glob("*.json"):
        if not path.name.startswith(("base", "full")):
            path.unlink()
    for path in folder.glob("full*"):
        value = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in value.items() if k not in ("geometry",)}))
    page = write([folder], tmp_path / "out", "t")
    assert {p.name for p in page.parent.iterdir()} == {
        "index.html",
        "accuracy.png",
        "forgetting.png",
    }
    assert "Geometry" not in page.read_text()


def test_inputs_without_results_are_refused(tmp_path):
    (tmp_path / "x.history.json").write_text("{}")
    with pytest.raises(DataError, match="not the history"):
        write([tmp_path / "x.history.json"], tmp_path / "out", "t")
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["report", str(tmp_path / "empty")])
    assert isinstance(done.exception, DataError)


def test_labels_do_not_overlap(folder):
    """No two texts of a plot overlap, and none leaves the picture."""
    results = tables.read([folder])
    rows = tables.rows(results)
    drawn = {name: draw(results, rows) for name, _, draw in plots.PLOTS}
    history = json.loads((folder / "sums.bmt.history.json").read_text())
    learnt = {**history, "steps": [{**s, "loss": 1.0} for s in history["steps"]]}
    for step in learnt["steps"]:
        del step["reward"]
    drawn["training"] = plots.training({"sums": history, "a-demonstrated-task": learnt}, "Two runs")
    for name, figure in drawn.items():
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = []
        for text in _drawn(figure):
            box = text.get_window_extent(renderer)
            if text.get_text().strip() and box.width > 1:
                boxes.append((text.get_text(), box))
        size = figure.bbox
        for label, box in boxes:
            assert min(box.x0, box.y0) >= -1, (name, label)
            assert max(box.x1 - size.x1, box.y1 - size.y1) <= 1, (name, label)
        for i, (a, box) in enumerate(boxes):
            for b, other in boxes[i + 1 :]:
                wide = min(box.x1, other.x1) - max(box.x0, other.x0)
                high = min(box.y1, other.y1) - max(box.y0, other.y0)
                # A pixel or two of two lines of ticks is no overlap.
                assert wide <= 2 or high <= 2, (name, a, b)
        load_pyplot().close(figure)


def _drawn(figure):
    """Texts of a figure, except ticks beyond an axis's limits, which are not drawn."""
    texts = [figure._suptitle] if figure._suptitle else []
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            texts += [t.label1 for t in ticks if low <= t.get_loc() <= high]
    return texts


def test_each_method_keeps_its_color():
    found = colors(["base", "full", "full@1e-5", "bmt"])
    assert len(set(found.values())) == 4
    assert colors(["bmt"])["bmt"] == found["bmt"]


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("mmlu-pro:a/test.jsonl.gz?subject=computer+science", "mmlu-pro computer science"),
        ("bbeh:data/bbeh_nycc.json", "bbeh nycc"),
        ("task:sort-numbers?order=descending", "sort-numbers order=descending"),
        ("org/name?config=main", "name config=main"),
        ("/data/questions.jsonl", "questions"),
    ],
)
def test_labels_of_data_sets_are_short(dataset, label):
    assert tables.short(dataset) == label


def test_a_run_with_accuracy_0_or_1_is_drawn():
    """Rounding puts the end of such an interval on the wrong side of its share."""
    looks = [
        {"step": n, "exact": right, "lenient": right, "total": n}
        for n in range(1, 400)
        for right in (0, n)
    ]
    steps = [{"step": 1, "loss": 1.0, "closed_gates": 3}]
    history = {"reading": "exact", "steps": steps, "validation": looks}
    load_pyplot().close(plots.training({"x": history}))


def test_runs_of_one_method_have_different_styles():
    runs = [{"method": "bmt", "changes": {"init": str(at)}} for at in range(4)]
    looks = styles([*runs, {"method": "full", "changes": {}}, runs[0]])
    assert len(looks) == 5
    assert len({tuple(sorted({**look, "label": ""}.items())) for look in looks.values()}) == 5
    assert len({look["color"] for look in looks.values()}) == 2


@pytest.mark.found
def test_a_narrow_page_shows_each_cell_with_its_column_and_letters_that_can_be_read(
    folder, tmp_path
):
    text = write([folder, folder / "sums.bmt"], tmp_path / "out", "t").read_text()
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        columns = re.findall(r"<th>(.*?)</th>", table)
        labels = re.findall(r'<td data-label="(.*?)">', table)
        assert labels == columns * (len(labels) // len(columns))
        assert labels
    results = tables.read([folder])
    rows = tables.rows(results)
    for _, _, draw in plots.PLOTS:
        figure = draw(results, rows)
        # Below one another, and no wider than a narrow page can show.
        assert figure.get_figwidth() <= plots.WIDTH
        load_pyplot().close(figure)


@pytest.mark.found
def test_histories_that_lack_numbers_are_drawn_without_them(tmp_path):
    steps = [{"step": 1, "reward": -5.0, "closed_gates": 3}, {"step": 2, "closed_gates": 3}]
    steps.append({"step": 3, "reward": 40.0, "closed_gates": 4})
    looks = [{"step": 1, "total": 0, "exact": 0}, {"step": 3, "total": 4, "exact": 1}]
    paths = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "_x.bmt.history.json")
        paths[-1].write_text(json.dumps({"steps": steps, "validation": looks}))
    page = write(paths, tmp_path / "out", "t")
    assert "Training" in page.read_text()
    history = {"steps": steps, "validation": looks, "reading": "exact"}
    figure = plots.training({"_x": history, "b/_x": history, "none": {**history, "steps": []}})
    low, high = figure.axes[0].get_ylim()
    assert low <= -5
    assert high >= 40
    assert [text.get_text().strip("\u2007") for text in figure.legends[0].get_texts()] == [
        "_x",
        "b/_x",
    ]
    load_pyplot().close(figure)


def test_a_skill_whose_last_score_failed_is_shown_with_those_before(tmp_path):
    *before, last = track(0)
    rows = [*before, {k: v for k, v in last.items() if not k.startswith("retention")}]
    one = result("full", "bbeh:nycc.json", "10", track=rows)
    assert len(plots.forgetting([one]).axes) == 2
    (tmp_path / "a.json").write_text(json.dumps(one))
    text = write([tmp_path], tmp_path / "out", "t").read_text()
    assert '<td data-label="kept before, %">60.0</td>' in text
    assert '<td data-label="after, %">-</td>' in text


@pytest.mark.found
@pytest.mark.parametrize("name", ["zeros", "closed_gates"])
def test_closed_gates_have_one_name_and_older_files_are_read(tmp_path, name):
    """`zeros` was the number of a mask's deletions, and of closed gates in logs and tracks."""
    rows = track(9)
    for row in rows:
        row[name] = row.pop("closed_gates")
    more = {"zeros": 4, "track": rows, "logs": {"loss": [1.0, 0.5], name: [9, 11]}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(result("bmt", "d.jsonl", "1100", **more)))
    found = files.read(path)
    assert (found["zeros"], found["logs"]["closed_gates"]) == (4, [9, 11])
    assert [row["closed_gates"] for row in found["track"]] == [9, 11, 13]
    assert not any("zeros" in part for part in (found["logs"], *found["track"]))
    history = tmp_path / "y.bmt.history.json"
    steps = [{"step": n, "reward": 0.5, name: 5} for n in (1, 2)]
    history.write_text(json.dumps({"steps": steps, "validation": []}))
    page = write([path, history], tmp_path / "page", "t")
    assert "closed gates before, %" in page.read_text()


@pytest.mark.found
def test_the_best_measurement_stands_beside_the_last(tmp_path):
    rows = [{**row, "heldout": share} for row, share in zip(track(9), (0.1, 0.5, 0.3), strict=True)]
    best = best_of(rows)
    assert best == {"step": 2, "heldout": 0.5}
    assert best_of([*rows, {**rows[0], "step": 6, "heldout": 0.5}])["step"] == 2
    assert best_of(track(9)) is None
    path = tmp_path / "x.json"
    found = result("bmt", "d.jsonl", "1100", track=rows, best=best)
    path.write_text(json.dumps(found))
    page = write([path], tmp_path / "page", "t").read_text()
    assert re.search(r"30\.0</td>\s*<td[^>]*>50\.0</td>\s*<td[^>]*>2<", page)
    path.write_text(json.dumps({**found, "best": {"step": "2"}}))
    with pytest.raises(DataError, match="best has no numbers step and heldout"):
        files.read(path)
