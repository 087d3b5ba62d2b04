import html
import json
import re

import pytest
from markupsafe import Markup
from miniature import STRANGE
from report_run import STEMS, write_run

from codmoe.visualization.report import plots, write_report
from codmoe.visualization.report.page import describe, duration

HEADINGS = {
    "setup": "What was run",
    "results": "Results",
    "differences": "Is the ensemble better?",
    "cost": "Cost beside quality",
    "thresholds": "Precision, recall and F over the threshold",
    "curves": "Learning curves",
    "routing": "Routing",
    "images": "Test images",
    "attributes": "Which expert where",
    "notes": "To be aware of",
}


def made(folder):
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything in it: its page, its table and its folder."""
    folder, payload = write_run(tmp_path_factory.mktemp("report") / "run")
    return made(folder), payload, folder


@pytest.fixture
def plain(monkeypatch):
    """Plots that cost nothing."""
    monkeypatch.setattr(plots, "panel", lambda *_, **__: Markup("<svg></svg>"))


def section(page, key):
    return page.split(f'<section id="{key}">')[1].split("</section>")[0]


def cells(page, first):
    """Figures of the table row whose first cell is ``first``."""
    (row,) = re.findall(rf"<tr><td>{re.escape(first)}</td>(.*?)</tr>", page)
    return re.findall(r">([-+\d.]+)<", row)


def test_every_section_and_nothing_from_outside(run):
    page = run[0]
    assert re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', page) == list(HEADINGS.items())
    loaded = re.findall(r'(?:src|href|srcset|data|poster)\s*=\s*"([^"]*)"', page)
    assert all(target.startswith(("#", "data:image/")) for target in loaded) and len(loaded) > 8
    assert not re.findall(
        r"@import|url\((?!#)|<link|<script [^t]|<iframe|<object|<!DOCTYPE svg", page
    )
    assert "default-src 'none'; img-src data:" in page
    # In this run stage 1 routes too; cost has two plots, thresholds three.
    assert page.count("<svg") == 3 * 3 + 3 * 2 + 2 + 3
    assert "prefers-color-scheme: dark" in page and "currentColor" in page


def test_figures_are_those_of_the_table(run):
    page, payload, _ = run
    results = section(page, "results")
    labels = {"pranet": "pranet, stage 1", "sinet": "sinet, stage 1"}
    labels |= {"uniform": "uniform mixture of stage 1", "router": "router, stage 2"}
    labels |= {"ensemble": "ensemble, stage 3", "oracle": "oracle of stage 1"}
    for source, label in labels.items():
        row = payload["table"]["Animals"][source]
        expected = [f"{row[k]:.4f}" for k in ("IoU", "Dice", "Sm", "wFm", "meanEm", "MAE")]
        assert cells(results, label) == ["40", *expected]
    order = [results.index(f"<td>{label}</td>") for label in labels.values()]
    assert order == sorted(order)
    ensemble = re.search(r"<td>ensemble, stage 3</td>.*?</tr>", results)[0]
    # Best of all but the oracle; MAE is low where it is good.
    assert ensemble.count("<strong>") == 5
    after = payload["ensemble_experts"]["Animals"]["sinet"]["IoU"]
    assert f"{after:.4f}" in cells(results, "IoU after stage 3")


def test_difference_is_paired_and_names_what_it_is_against(run):
    page, payload, _ = run
    body = section(page, "differences")
    rows = payload["table"]["Animals"]
    gain = 100 * (rows["ensemble"]["IoU"] - rows["sinet"]["IoU"])
    found = re.search(r"best expert of stage 1 \(sinet\)</td>(.*?)</tr>", body)[1]
    first, *_, mae = re.findall(
        r'<td class="(.*?)">([-+.\d]+)<br><span class="soft">(.*?)</', found
    )
    assert first[0] == "num sure" and float(first[1]) == pytest.approx(gain, abs=0.01)
    low, high = map(float, first[2].split(" to "))
    assert low < gain < high and high - low < 3
    assert mae[0] == "num sure worse"
    assert f"(sinet) {rows['sinet']['IoU']:.4f}: {gain:+.1f} points" in page.split("<nav>")[0]


def test_curves_routing_cost_and_notes(run):
    page = run[0]
    for words in (
        "total 3 → 1<",
        "sinet 1 → 0.333<",
        "IoU on the validation set",
        "learning rate",
        ">sinet<",
    ):
        assert words in section(page, "curves").replace("> ", ">")
    assert "mutual information of image and expert" in section(page, "routing")
    assert cells(page, "sinet alone") == ["2.00", "1.50", "3.00", "4.2", "0.5621"]
    assert "One image of 96 × 64 on Some GPU, float32" in section(page, "cost")
    notes = section(page, "notes")
    assert "the router is &lt;blind&gt; (2 times)" in notes
    assert "stage 2: the router's probabilities are nearly the same" in html.unescape(notes)
    assert "stage 3: the router" not in notes and "40 test images" in notes
    setup = section(page, "setup")
    assert "2 × Some GPU" in setup and "0.5300 (epoch 2)" in setup and "1 min 1 s" in setup
    assert "--gpus 2" in setup and "--cfg-options train_cfg.max_epochs=3" in setup
    assert "1 h 2 min" in setup and "1,234" in setup


def test_what_is_not_shown_is_said(run, tmp_path, plain):
    page = made(write_run(tmp_path / "run", levels=dict(ensemble=0.55))[0])
    assert "better than the best expert of stage 1 (sinet) is not shown" in section(page, "notes")
    assert "best expert of stage 1 (sinet) is not shown" not in run[0]


def test_a_test_on_training_images_is_said_at_the_top(tmp_path, plain):
    folder, payload = write_run(tmp_path / "run")
    name = next(iter(payload["table"]))
    (folder / "table.json").write_text(json.dumps(dict(payload, trained_on={name: 3})))
    top = made(folder).partition("<nav>")[0]
    assert f"{name}: the weights were TRAINED ON 3 of these" in top


def test_names_are_escaped(tmp_path):
    name = "<b>x</b>&$a_b$"
    folder, payload = write_run(tmp_path / "run", dataset=name)
    for part in ("table", "ensemble_experts"):
        rows = payload[part][name]
        rows["<i>$e_1$</i>"] = rows.pop("sinet")
    for path in folder.glob("stage*/*/vis_data/scalars.json"):
        path.write_text(path.read_text().replace("sinet", "<i>$e_1$</i>"))
    payload["configs"][0] = "<u>config</u>"
    (folder / "table.json").write_text(json.dumps(payload))
    page = made(folder)
    assert not re.findall(r"<(?:b|i|u)>", page)
    assert page.count("</script>") == 2
    for key in ("results", "curves"):
        shown = re.sub(r"<!--.*?-->", "", section(page, key), flags=re.S)
        assert "&lt;i&gt;$e_1$&lt;/i&gt;" in shown
    assert "&lt;b&gt;x&lt;/b&gt;&amp;$a_b$" in page


@pytest.mark.parametrize(
    ("files", "gone"),
    [
        (["stage*/*/vis_data/scalars.json"], ["curves"]),
        (["ensemble_pictures/*.webp"], []),
        (["ensemble.json"], ["cost", "images", "attributes"]),
        (["stage*/finished.json", "stage*/*/*.log"], []),
        (["ensemble.json", "stage*/*/*.log", "stage*/*/vis_data/*", "stage*/finished.json"],
         ["cost", "curves", "images", "attributes"]),
    ],
)  # fmt: skip
def test_a_section_without_content_is_left_out(plain, tmp_path, files, gone):
    folder, _ = write_run(tmp_path / "run")
    for pattern in files:
        for path in folder.glob(pattern):
            path.unlink()
    page = made(folder)
    there = re.findall(r'<section id="(\w+)">', page)
    assert there == [key for key in HEADINGS if key not in gone]
    assert re.findall(r'<a href="#(\w+)"', page) == there


def test_a_run_of_an_older_version(plain, tmp_path):
    folder, payload = write_run(tmp_path / "run")
    table = {"Animals": {k: {"IoU": r["IoU"], "n": r["n"]} for k, r in
                         payload["table"]["Animals"].items()}}  # fmt: skip
    table["Animals"]["sinet"]["IoU"] = None  # how NaN is written
    (folder / "table.json").write_text(json.dumps(dict(table=table)))
    page = made(folder)
    assert re.findall(r'<section id="(\w+)">', page) == ["setup", "results", "notes"]
    assert cells(page, "sinet, stage 1") == ["40", "-"]


def test_a_first_stage_of_several_parts(plain, tmp_path):
    folder, payload = write_run(tmp_path / "run")
    (folder / "stage3").rename(folder / "stage4")
    payload["configs"].insert(1, "a/refit")
    payload["weights"].insert(1, "w/refit_best.pth")
    (folder / "table.json").write_text(json.dumps(payload))
    page = made(folder)
    titles = re.findall(r"<td>(stage.*?)</td><td>(.*?)</td>", section(page, "setup"))
    assert titles[:4] == [
        ("stage 1, part 1", "a/stage1"),
        ("stage 1, part 2", "a/refit"),
        ("stage 2", "a/stage2"),
        ("stage 3", "a/stage3"),
    ]
    assert 'id="images"' in page and 'id="cost"' in page
    assert "stage 2 has no finished.json" in section(page, "notes")


def test_what_a_stage_started_from(plain, tmp_path):
    folder, _ = write_run(tmp_path / "run")
    assert "started from" not in made(folder)
    experts = dict(sinet=dict(own=0.5, assembled=0.4321, drop=0.0679))
    (folder / "stage2" / "assembly.json").write_text(json.dumps(dict(experts=experts)))
    setup = section(made(folder), "setup")
    assert re.search(r"stage 2</td><td>sinet</td>.*0\.5000.*0\.4321", setup)


def test_how_unlike_experts_err_is_told_before_and_after(plain, tmp_path):
    folder, _ = write_run(tmp_path / "run")
    figures = dict(pairwise_iou=0.5, error_correlation=0.25, disagreement_over_error=1.25)
    after = dict(before={}, after=dict(diversity=figures))
    (folder / "stage3" / "experts_after.json").write_text(json.dumps(after))
    told = "errors of two experts correlate at 0.25, D = 1.25"
    notes = section(made(folder), "notes")
    assert f"After stage 3, on the validation images, {told}. D = (1 − IoU" in notes
    after["before"] = dict(diversity=dict(figures, disagreement_over_error=1.5))
    (folder / "stage3" / "experts_after.json").write_text(json.dumps(after))
    assert f"{told}; before it, errors of two" in section(made(folder), "notes")


def test_model_and_data_are_those_of_the_config(plain, tmp_path):
    folder, payload = write_run(tmp_path / "run")
    config = """model = dict(backbone=dict(type='Timm', name='pvt_v2_b0'), top_k=2,
        experts=dict(sinet=dict(), pranet=dict(), ujsc=None))
train_dataloader = dict(batch_size=12, dataset=dict(type='Photos', data_root='{}'))
"""
    for number in (1, 2, 3):
        (path,) = folder.glob(f"stage{number}/*/vis_data")
        (path / "config.py").write_text(config.format("a" if number == 2 else "b"))
    setup = section(made(folder), "setup")
    rows = dict(re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", setup))
    assert rows == {
        "backbone": "pvt_v2_b0",
        "experts": "pranet, sinet, 2 an image",
        "weights": ", ".join(payload["weights"]),
        "trained on: stage 1 and 3": "Photos (data_root=b)",
        "trained on: stage 2": "Photos (data_root=a)",
    }
    assert "12 × 2" in setup


def test_an_earlier_report_is_kept(plain, tmp_path):
    folder, _ = write_run(tmp_path / "run")
    (folder / "report.html").write_text("mine")
    write_report(folder)
    (kept,) = folder.glob("report.2*.html")
    assert kept.read_text() == "mine"
    out = write_report(folder, tmp_path / "elsewhere" / "a.html")
    assert STEMS and out.is_file() and len(list(folder.glob("*.html"))) == 2


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table\.json does not exist; give the --work-dir"):
        write_report(tmp_path)
    for content in ("[]", "{", '{"table": {}}', '{"table": {"a": {"b": 3}}}'):
        (tmp_path / "table.json").write_text(content)
        with pytest.raises(ValueError, match=r"table\.json is no table of codmoe stages"):
            write_report(tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_a_data_set_in_a_line():
    photos = dict(type="CODDataset", pipeline=[1], data_root="d", name=None)
    views = dict(type="FixedViews", dataset=dict(type="TolerantDataset", dataset=photos), views=4)
    assert describe(views) == "FixedViews (views=4) of CODDataset (data_root=d)"
    group = dict(type="DatasetGroup", datasets=dict(A=photos, B=None, C=dict(type="X")), seed=1)
    assert describe(group) == "A: CODDataset (data_root=d); C: X; seed=1"


@pytest.fixture
def opened(run, browser):
    """The page in a browser."""
    browser.get(f"file://{run[2]}/report.html")
    return browser


def rows_of(browser, table):
    """Texts of the cells of a table's body."""
    script = """return [...document.querySelectorAll(arguments[0])].map(
      (row) => [...row.cells].map((cell) => cell.innerText.trim().toWellFormed()))"""
    return browser.execute_script(script, f"#{table} tbody tr")


def test_images_are_sorted_and_found(opened, run):
    images = run[1]["ensemble_experts"]["Animals"]["mixture"]["images"]
    iou = {stem: round(image["IoU"], 4) for stem, image in images.items()}
    by_iou = sorted(iou, key=iou.__getitem__)
    rows = rows_of(opened, "list")
    assert [row[1] for row in rows] == by_iou and rows[0][2] == f"{images[by_iou[0]]['IoU']:.3f}"
    head = opened.find_element("css selector", "#list th[data-key=mixture]")
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element("tag name", "button").click()
    falling = sorted(iou, key=lambda stem: -iou[stem])
    assert [row[1] for row in rows_of(opened, "list")] == falling
    opened.find_element("css selector", "#list th[data-key=name] button").click()
    assert [row[1] for row in rows_of(opened, "list")] == STEMS  # img_9 before img_10
    opened.find_element("id", "name").send_keys("_3")
    assert [row[1] for row in rows_of(opened, "list")] == [f"img_{i}" for i in (3, *range(30, 40))]
    assert "11 of 40 images" in opened.find_element("id", "count").text
    opened.find_element(
        "css selector", "#bin option:last-child"
    ).click()  # kind: small, the last 10
    assert len(rows_of(opened, "list")) == 10
    opened.find_element("css selector", "#first option[value=pranet]").click()
    assert rows_of(opened, "list") == []


def test_one_image_by_keyboard(opened):
    opened.find_element("css selector", ".name button").send_keys("\n")
    viewer = opened.find_element("id", "viewer")
    assert viewer.get_attribute("open") == "true"
    first = opened.find_element("id", "title").text

    def told():
        return opened.find_element("id", "legend").text

    def press(key):
        opened.switch_to.active_element.send_keys(key)

    # The mixture's map is right, pranet's empty and sinet's full.
    for key, iou in (("2", "1.00"), ("3", "0.00"), ("4", "0.50")):
        press(key)
        assert told().endswith(f"small picture: {iou}")
    assert "missed" in told()
    press("v")
    assert told() == "black: 0, white: 1"
    press("v")
    assert told().startswith("above the threshold")
    press("\ue014")  # the right arrow
    assert opened.find_element("id", "place").text == "2 of 40"
    assert opened.find_element("id", "title").text != first
    pixel = "return [...canvas.getContext('2d').getImageData(canvas.width - 9, 9, 1, 1).data]"
    assert opened.execute_script(pixel)[2] > 120  # sinet's map, violet all over
    press("\ue00c")  # Esc
    assert viewer.get_attribute("open") is None


def test_which_expert_where_follows_the_measure(opened):
    rows = {row[1]: row for row in rows_of(opened, "where")}
    assert [row[:3] for row in rows.values()] == [
        ["all", "", "40"],
        ["kind", "big", "30"],
        ["", "small", "10"],
    ]
    assert rows["big"][-2:] == ["1.000", "0.000"] and rows["small"][-2:] == ["0.200", "0.800"]
    colour = """return [...document.querySelectorAll("#where tbody tr")].map(
      (row) => row.cells[row.cells.length - 1].style.background)"""
    _, less, more = opened.execute_script(colour)
    assert "--less" in less and "--more" in more
    before = rows["big"]
    opened.find_element("css selector", "#where-measure option[value=MAE]").click()
    assert len(rows_of(opened, "where")) == 3 and rows_of(opened, "where")[1][3] == before[3]


def test_strange_names_stay_text_and_nothing_is_loaded(browser, tmp_path, plain):
    folder, _ = write_run(tmp_path / "run", dataset="<img src=x onerror=alert(1)>")
    text = (folder / "ensemble.json").read_text()
    for stem, name in zip(STEMS, STRANGE, strict=False):
        text = text.replace(json.dumps(stem), json.dumps(f"{name}</script><script>alert(1)//"))
    (folder / "ensemble.json").write_text(text)
    write_report(folder)
    browser.requests()
    browser.get(f"file://{folder}/report.html")
    names = [row[1] for row in rows_of(browser, "list")]
    assert len(names) == 40 and sum("</script><script>alert(1)//" in name for name in names) > 9
    assert browser.requests() == [] and browser.errors() == []


def test_durations():
    told = [duration(seconds) for seconds in (12, 200, 7500, float("nan"))]
    assert told == ["12 s", "3 min 20 s", "2 h 5 min", "-"]
