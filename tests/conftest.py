"""Settings that every test shares: one thread, no network, no file outside the test's own folders."""

import atexit
import http.client
import importlib.machinery
import logging
import os
import shutil
import signal
import sys
import tempfile
import types
import uuid

import hypothesis
import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")

os.environ.pop("COLUMNS", None)  # so that nothing is folded

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="runner-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
PATIENCE = 60_000  # ms, with a page


def pytest_configure(config):
    """Lets signals be heard though the tests run in the background or under nohup, where some are ignored."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config, items):
    """Of a test that is marked `some(N)`, N of its cases are run, spread over all; RUNNER_THOROUGH=1 runs every one.

    `some(0)` is a test of much time and little risk.
    """
    if os.environ.get("RUNNER_THOROUGH") == "1":
        return
    cases = {}
    for item in items:
        if mark := item.get_closest_marker("some"):
            cases.setdefault((item.path, item.originalname, mark.args[0]), []).append(item)
    left_out = set()
    for (*_, count), found in cases.items():
        kept = {round(place * (len(found) - 1) / max(1, count - 1)) for place in range(count)}
        left_out |= {id(item) for place, item in enumerate(found) if place not in kept}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
    items[:] = [item for item in items if id(item) not in left_out]


@pytest.fixture
def limit(monkeypatch):
    """Gives constants of a module, its limits and measured numbers, another value for one test; never a function."""

    def replace(module, **values):
        for name, value in values.items():
            assert (name.isupper() and not callable(getattr(module, name))) or name == "LOADER", name
            monkeypatch.setattr(module, name, value)

    return replace


@pytest.fixture
def system(monkeypatch):
    """Lets functions of the system answer otherwise for one test: a full disk, another clock, fewer processors."""

    def replace(module, **functions):
        assert module.__name__ in ("os", "time", "sysconfig", "torch", "fcntl", "concurrent.futures"), module
        for name, function in functions.items():
            monkeypatch.setattr(module, name, function)

    return replace


@pytest.fixture
def installed(monkeypatch):
    """Lets a library that a run can do without be installed for one test, or not; it can't be used."""

    def replace(name, *, there=True):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module if there else None)

    return replace


@pytest.fixture
def no_noise(monkeypatch):
    """Lets the items of these seeds fail while they are rendered, or all."""

    def replace(*seeds):
        from runner.engine import denoise

        draw = denoise.draw_noise

        def fail(items, *rest):
            if not seeds or any(item.seed in seeds for item in items):
                raise ValueError("no noise today")
            return draw(items, *rest)

        monkeypatch.setattr(denoise, "draw_noise", fail)

    return replace


@pytest.fixture(scope="module")
def browser():
    """Chromium. Without it, tests are skipped, and fail where CI is set.

    It closes with its file of tests: as long as Playwright is there, its event loop counts as running in this thread.
    """
    from playwright.sync_api import expect, sync_playwright

    found = shutil.which("chromium")
    if found is None and not os.environ.get("CI"):
        pytest.skip("needs Chromium: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found or "/usr/bin/chromium", args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def s3():
    """The port of a server that speaks S3; nothing is kept when the tests end."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """The name of a new bucket, and an environment in which it is found."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    told = {"ACCESS_KEY_ID": "AKIATEST", "SECRET_ACCESS_KEY": "verysecret", "ENDPOINT_URL": f"http://127.0.0.1:{s3}"}
    for name, value in told.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{uuid.uuid4().hex}"
    connection = http.client.HTTPConnection("127.0.0.1", s3)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    return name
