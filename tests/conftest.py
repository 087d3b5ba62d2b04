"""Settings under which miniatures are quick on two cores."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys

# Two workers of pytest on two cores: more threads than cores make OpenMP spin for minutes. And a
# process whose OpenMP has threads cannot be forked (`miniature.ranks`), so whatever was asked for.
os.environ["OMP_NUM_THREADS"] = "1"

# What runs behind a shell's `&` or `nohup` ignores these, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import miniature  # noqa: F401
import pytest
import torch

torch.set_num_threads(1)
# Nothing imported is ever garbage; mmengine looks for garbage with every data set.
gc.freeze()
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for the tests, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def ended():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def processes():
    """A list of processes that are killed when the test ends, however it ends."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def browser(chromium):
    """A headless Chromium, as selenium drives it, with ``requests()`` and ``errors()`` of this
    test; where there is none the test is skipped.
    """
    chromium.get("about:blank")
    chromium.requests(), chromium.errors()  # those of the test before
    return chromium


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(found):
        pytest.skip(
            "no chromium or chromedriver (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    quiet = "background-networking component-update sync gpu quic".split()
    folder = tmp_path_factory.mktemp("chromium")
    for flag in ("headless", "no-sandbox", "no-first-run", "window-size=1200,900",
                 f"user-data-dir={folder}", *(f"disable-{name}" for name in quiet)):  # fmt: skip
        options.add_argument(f"--{flag}")
    downloads = {"download.default_directory": str(folder)}
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(found[1])
    with webdriver.Chrome(options=options, service=service) as driver:

        def requests():
            entries = [json.loads(entry["message"]) for entry in driver.get_log("performance")]
            events = [entry["message"] for entry in entries]
            sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
            urls = [event["params"]["request"]["url"] for event in sent]
            return [
                url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome"))
            ]

        driver.requests, driver.errors = requests, lambda: driver.get_log("browser")
        driver.downloads = folder
        yield driver
