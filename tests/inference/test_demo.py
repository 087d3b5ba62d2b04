"""The page of the demo in a real browser, and what it is made of."""

import socket
import sys
import time

import numpy as np
import pytest
import torch
from miniature import build, free_port, write_config
from PIL import Image
from torch import nn

pytest.importorskip("gradio")
from codmoe.cli import command
from codmoe.inference import demo
from codmoe.inference.inferencer import Inferencer


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    """A miniature whose router cares about the image."""
    torch.manual_seed(0)
    model = build(write_config(tmp_path_factory.mktemp("demo"), 3))
    nn.init.normal_(model.router.fuse[-1].weight, std=2)
    for norm in model.router.norms.values():
        nn.init.normal_(norm.bias)
    return Inferencer(model, image_size=64, device="cpu", batch_size=1)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_an_explanation_is_what_the_model_says(infer, photo):
    found = demo.explain(infer, photo)
    plain = infer(photo)[0]
    np.testing.assert_allclose(found.prediction.probability, plain.probability, atol=1e-5)
    assert found.prediction.weights == pytest.approx(plain.weights, abs=1e-5)
    assert list(found.prediction.expert_maps) == list(infer.model.expert_names)
    for name, map_ in found.prediction.expert_maps.items():
        alone = infer.model.on_route([name])
        expected = Inferencer(alone, image_size=64, device="cpu")(photo)[0].probability
        np.testing.assert_allclose(map_, expected, atol=1e-5)
    assert sum(found.choice.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert found.choice.chosen == list(plain.weights)
    assert list(found.without) == ["texture", "edge", "context", "frequency"]
    different = {tuple(c.probabilities.values()) for c in found.without.values()}
    assert len(different) == 4 and tuple(found.choice.probabilities.values()) not in different


def test_of_a_grown_mixture_evidence_is_switched_off_too(photo, tmp_path):
    config = write_config(tmp_path, 3, dict(model=dict(newcomers=["ujsc"])))
    found = demo.explain(Inferencer(build(config), image_size=64, device="cpu"), photo)
    assert list(found.without) == ["texture", "edge", "context", "frequency"]
    assert {tuple(c.probabilities) for c in found.without.values()} == {
        tuple(found.choice.probabilities)
    }


def test_a_large_photo_is_shown_smaller():
    assert demo.reduced(np.zeros((2048, 1024, 3), np.uint8)).shape == (1024, 512, 3)


def test_reasons_are_told_and_names_escaped():
    def choice(*values):
        names = ("<b>a</b>", "b", "c")
        order = sorted(names, key=lambda name: -values[names.index(name)])
        return demo.Choice(dict(zip(names, values, strict=True)), order[:2])

    whole = choice(0.6, 0.3, 0.1)
    without = dict(texture=choice(0.2, 0.3, 0.5), edge=choice(0.5, 0.4, 0.1))
    blank = np.zeros((2, 2))
    found = demo.Explanation(demo.Prediction(blank), whole, without, 0.0)
    page = demo.reasons(found)
    assert "<b>a</b>" not in page and "&lt;b&gt;a&lt;/b&gt; and b; texture speaks most for" in page
    assert "without texture it would choose c and b." in page
    assert "<small>-0.40</small> 0.20" in page and "<b>0.50</b>" in page
    all_three = demo.Choice(whole.probabilities, ["c", "b", "<b>a</b>"])
    page = demo.reasons(demo.Explanation(demo.Prediction(blank), all_three, {}, 0.0))
    assert "The router chose c, b and &lt;b&gt;a&lt;/b&gt;; it has no branches of evidence" in page


def test_files_of_the_machine_are_not_opened(photo, tmp_path):
    (tmp_path / "uploads").mkdir()
    inside = tmp_path / "uploads" / "a.png"
    inside.write_bytes(photo.read_bytes())
    (tmp_path / "uploads" / "link.png").symlink_to(photo)
    folder = tmp_path / "uploads"
    assert demo.uploaded(dict(path=str(inside)), folder) == inside
    others = (photo, folder / "link.png", folder / ".." / "photo.png", folder, "absent.png")
    assert {demo.uploaded(dict(path=str(path)), folder) for path in others} == {None}
    assert {demo.uploaded(data, folder) for data in (None, {}, dict(path=3), "a.png")} == {None}


def test_a_threshold_beyond_the_sliders_ends(infer, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "threshold", 0.998)
    blocks = demo.build(infer, tmp_path, "a model").blocks.values()
    (slider,) = [block for block in blocks if getattr(block, "elem_id", None) == "threshold"]
    assert slider.preprocess(slider.value) == 0.99


def until(condition, seconds=120):
    """What the condition gives, once it gives something; the page may be drawn anew meanwhile."""
    gone = pytest.importorskip("selenium.common.exceptions").WebDriverException
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except gone as error:
            last = error
        time.sleep(0.1)
    raise TimeoutError(f"not after {seconds} s") from last


def test_the_page(infer, photo, browser, tmp_path, monkeypatch):
    places, passes, connect, predict = [], [], socket.socket.connect, infer.maps

    def noted(self, address):
        places.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(infer, "maps", lambda *a, **k: passes.append(1) or predict(*a, **k))
    fake = tmp_path / "fake.jpg"
    fake.write_text("no picture")
    with demo.serving(infer, name="a <b>miniature</b>") as address:
        assert address.startswith("http://127.0.0.1:")
        browser.requests()
        browser.get(address)

        def one(selector):
            return browser.find_element("css selector", selector)

        def upload(path):
            until(lambda: one("input[type=file]").send_keys(str(path)) is None)

        def shown(selector, *texts):
            until(lambda: all(text in one(selector).text for text in texts))

        upload(fake)
        shown("body", "fake.jpg is unreadable: ")
        assert str(tmp_path) not in one("body").text and not passes
        upload(photo)  # once the first is taken away
        shown("#told", "60 × 40 pixels are object")
        shown("#why", "The router chose", "without frequency")
        until(lambda: len(browser.find_elements("css selector", "#experts img")) == 4)
        shown("#experts", "not chosen", "weight 0.")
        until(lambda: browser.find_elements("css selector", ".gallery-item")[1].click() is None)
        shown("#told", "384 × 384 pixels are object")
        until(lambda: one("button[aria-label='Remove Image']").click() is None)
        until(lambda: one("#told").text == "" and one("#why").text == "")
        upload(photo)
        shown("#told", "60 × 40 pixels are object")
        before, probability = one("#told").text, infer(photo)[0].probability
        passes.clear()
        shares = {t: (probability > t).mean() for t in (0.4, 0.48, 0.49, 0.5, 0.51, 0.52, 0.6)}
        threshold = max(shares, key=lambda t: abs(shares[t] - shares[0.5]))
        number = one("#threshold input[type=number]")
        number.send_keys("\ue009a")  # Ctrl+A: all of it is written over
        number.send_keys(f"{threshold}\n")
        until(lambda: one("#told").text != before)
        assert one("#told").text.startswith(f"{shares[threshold]:.1%}")
        assert not passes  # a threshold needs none
        mask = browser.downloads / "photo_mask.png"

        def downloaded():
            # The button has its file a moment after the overlay changed; a click before is lost.
            mask.unlink(missing_ok=True)
            one("#mask").click()
            deadline = time.monotonic() + 3
            while not mask.is_file() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(0.2)
            if not mask.is_file():
                return False
            return np.array_equal(np.asarray(Image.open(mask)) > 0, probability > threshold)

        until(downloaded)
        assert {url.startswith((address, "chrome")) for url in browser.requests()} == {True}
        assert one("h1").text == "codmoe" and "<b>" in one("body").text
    assert {str(place[0]) for place in places if isinstance(place, tuple)} <= {"127.0.0.1", "::1"}


def test_the_command(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(demo, "wait", lambda: told.append(capsys.readouterr().out))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["codmoe", "demo", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            command()
        return left.value.code

    port = free_port()
    assert not call("--port", port)
    assert told == [f"open http://127.0.0.1:{port}/ in a browser; Ctrl+C ends it\n"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert f"--port {port} of 127.0.0.1 is taken" in call("--port", port)
    monkeypatch.setattr("codmoe.commands.demo_command.find_spec", lambda name: None)
    assert "pip install 'codmoe[demo]'" in call() and len(told) == 1
