"""The report in a real browser: quiet, asking for nothing, sortable, readable by day and night."""

import base64
import fcntl
import io
import json
import math
import os
import select
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from robustjax.analysis import page
from robustjax.analysis.report import write_report

pytestmark = pytest.mark.slow

PATIENCE = 30
"""Seconds that the browser may be silent."""

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip

TEXT_COLOURS = """
(() => {
  const found = new Set();
  for (const element of document.body.querySelectorAll("*:not(script)")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.getClientRects().length) continue;
    let behind = element;
    const isClear = (e) => getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)";
    while (isClear(behind) && behind !== document.body) behind = behind.parentElement;
    found.add(JSON.stringify(
      [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]));
  }
  return [...found].map((pair) => JSON.parse(pair));
})()
"""


class Browser:
    """Chromium, driven through the pipes of its DevTools protocol."""

    def __init__(self, executable, profile):
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()

        def connect():  # the child finds its commands at 3 and leaves its answers at 4
            # Copies first: one of the two may itself be number 3 or 4.
            source = fcntl.fcntl(to_child, fcntl.F_DUPFD_CLOEXEC, 10)
            sink = fcntl.fcntl(from_child, fcntl.F_DUPFD_CLOEXEC, 10)
            os.dup2(source, 3)
            os.dup2(sink, 4)

        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=connect,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._count, self._buffer, self.events, self._session = 0, b"", [], {}

    def call(self, method, **params):
        """Send a command and return its result; what happens meanwhile goes to `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            data = os.read(self._read, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, file, width=1200, scheme="light"):
        """Open a file in a tab of its own and wait until it has loaded."""
        self._session = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride",
                  width=width, height=900, deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
        self.events = []
        self.call("Page.navigate", url=file.as_uri())
        until = time.monotonic() + PATIENCE
        while not self.parameters("Page.loadEventFired"):
            assert time.monotonic() < until
            self.events.append(self._receive())
        self.evaluate("new Promise((done) => setTimeout(done, 200))")

    def evaluate(self, expression):
        """The value of some JavaScript."""
        answer = self.call("Runtime.evaluate",
            expression=expression, returnByValue=True, awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def parameters(self, method):
        """Of all events of a kind since the tab was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def requests(self):
        """Addresses that the page asked for."""
        return [event["request"]["url"] for event in self.parameters("Network.requestWillBeSent")]

    def complaints(self):
        """Whatever the console shows."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for kind in kinds for event in self.parameters(kind)]

    def click(self, selector):
        """Press the mouse button over the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent",
                      type=kind, x=x, y=y, button="left", clickCount=1)  # fmt: skip

    def press(self, key, text):
        """Press a key."""
        code = {"\r": 13, " ": 32}[text]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key,
                      windowsVirtualKeyCode=code, **({"text": text} if kind == "keyDown" else {}),
                      )  # fmt: skip

    def screenshot(self):
        """Pixels of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def close(self):
        """End the browser."""
        self._session = {}
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("this test needs a browser: apt-get install chromium")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(shared_study, tmp_path_factory):
    sizes = {"nano-28k": 28_320, "nano-900k": 913_664}
    out = tmp_path_factory.mktemp("report")
    plan = {"attacks": ("gcg",), "defences": ("gcg",), "num_rounds": 2}
    return write_report([shared_study(sizes=sizes, num_examples=32, **plan)], out)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page of every building block, with a table that has all that is hard to sort."""
    rows = [
        {"name": "b10", "rate": 0.5, "flops": 9e9},
        {"name": "b9", "rate": math.nan, "flops": 1e10},
        {"name": "Éa", "rate": -0.25, "flops": 2},
        {"name": "", "rate": 0.5, "flops": None},
        {"name": "f", "rate": -0.5, "flops": math.inf},
    ]
    columns = {
        "Name": page.column("name"),
        "Rate": page.column("rate", page.percent),
        "FLOPs": page.column("flops", lambda value: "" if value is None else str(value)),
        "Many words in a column": page.column("name", lambda _: "much text " * 4),
    }
    table = page.table(rows, columns, "A caption " * 20)
    answers = page.answers(
        [
            page.Answer("Does it sort?", "yes", "It does, for every column.", table),
            page.Answer("Is it known?", "withheld", "Too few points."),
        ]
    )
    image = io.BytesIO()
    Image.new("RGB", (900, 300), "#dddddd").save(image, "png")
    drawn = page.figure(1, "Grey", "A caption.", image.getvalue(), {"CSV": "grey.csv"})
    sections = [("answers", "Answers", answers), ("rest", "The rest", table + drawn)]
    out = tmp_path_factory.mktemp("small") / "index.html"
    out.write_text(page.document("Title", "Subtitle", sections), encoding="utf-8")
    return out


def shown(browser, column):
    return browser.evaluate(
        "[...document.querySelector('#rest tbody').rows]"
        f".map((row) => row.cells[{column}].textContent)"
    )


def head(column):
    return f"#rest th:nth-child({column + 1})"


def ratio(pair):
    """Contrast of two computed colours after WCAG 2."""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted(map(luminance, pair))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_the_report_is_quiet_fits_and_asks_for_nothing(browser, report, width, scheme):
    browser.open(report, width, scheme)
    assert browser.complaints() == []
    addresses = browser.requests()
    assert report.as_uri() in addresses
    assert {address.partition(":")[0] for address in addresses} == {"file", "data"}
    assert sum(address.startswith("file:") for address in addresses) == 1
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    pixels = browser.screenshot()
    assert pixels.shape[1] == width
    thirds = np.array_split(pixels, 3)
    assert all(part.std() > 5 for part in thirds)
    images = "[...document.images].every((image) => image.complete && image.naturalWidth > 100)"
    assert browser.evaluate(images)


def test_a_request_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://elsewhere.example/x.png">')
    browser.open(bad)
    assert "http://elsewhere.example/x.png" in browser.requests()
    assert browser.complaints()


def test_nothing_smuggled_into_a_page_is_fetched_or_run(browser, small, tmp_path):
    bad = tmp_path / "bad.html"
    smuggled = '<img src="http://elsewhere.example/x.png"><script>document.title = "x"</script>'
    bad.write_text(small.read_text("utf-8").replace("</main>", f"{smuggled}</main>"), "utf-8")
    browser.open(bad)
    assert browser.evaluate("document.title") == "Title"
    blocked = [event["entry"]["text"] for event in browser.parameters("Log.entryAdded")]
    assert len([text for text in blocked if "Content Security Policy" in text]) == 2
    assert not browser.evaluate("document.querySelector('main > img').naturalWidth")


@pytest.mark.parametrize(
    ("column", "up", "down"),
    [
        (0, ["b9", "b10", "Éa", "f", ""], ["f", "Éa", "b10", "b9", ""]),
        (1, ["-50.0 %", "-25.0 %", "50.0 %", "50.0 %", "–"],
            ["50.0 %", "50.0 %", "-25.0 %", "-50.0 %", "–"]),
    ],
)  # fmt: skip
def test_clicks_sort_up_down_and_not_at_all(browser, small, column, up, down):
    browser.open(small)
    original = shown(browser, column)
    for order, expected in (("ascending", up), ("descending", down), ("none", original)):
        browser.click(head(column))
        texts = [text.replace("\u2009", " ") for text in shown(browser, column)]
        assert texts == [text.replace("\u2009", " ") for text in expected]
        sorts = browser.evaluate(
            "[...document.querySelectorAll('#rest th')].map((h) => h.ariaSort)"
        )
        assert sorts == [order if index == column else "none" for index in range(4)]
        arrow = browser.evaluate(
            f"getComputedStyle(document.querySelector('{head(column)} button'), '::after').content"
        )
        assert arrow == {"ascending": '"▲"', "descending": '"▼"', "none": "none"}[order]
    assert browser.complaints() == []


def test_equal_rows_keep_their_order(browser, small):
    browser.open(small)
    for _ in range(2):
        browser.click(head(1))
        names = shown(browser, 0)
        assert names.index("b10") < names.index("")


@pytest.mark.parametrize(("key", "text"), [("Enter", "\r"), (" ", " ")])
def test_keys_sort(browser, small, key, text):
    browser.open(small)
    browser.evaluate(f"document.querySelector('{head(2)} button').focus()")
    browser.press(key, text)
    assert shown(browser, 0) == ["Éa", "b10", "b9", "f", ""]  # infinity before what is missing


def test_the_tables_of_the_report_sort_by_their_numbers(browser, report):
    browser.open(report)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    tables = browser.evaluate("document.querySelectorAll('table.sortable').length")
    assert tables >= 3
    for number in range(tables):
        ascending = browser.evaluate(
            f"(() => {{ const t = document.querySelectorAll('table.sortable')[{number}];"
            "return [...t.tHead.rows[0].cells].map((head, i) => { head.click();"
            "  return [...t.tBodies[0].rows].map((row) => row.cells[i].dataset.value ?? null); });"
            "})()"
        )
        for values in ascending:
            known = [float(value) for value in values if value is not None]
            assert known == sorted(known)
            assert values[len(known) :] == [None] * (len(values) - len(known))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_by_day_and_night(browser, report, small, scheme):
    for file in (report, small):
        browser.open(file, scheme=scheme)
        browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        pairs = browser.evaluate(TEXT_COLOURS)
        assert len(pairs) >= 4
        assert {tuple(pair): ratio(pair) for pair in pairs if ratio(pair) < 4.5} == {}
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        level = sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) / (3 * 255)
        assert level > 0.9 if scheme == "light" else level < 0.15


def test_a_narrow_window_scrolls_the_tables_alone(browser, small):
    browser.open(small, 400)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(
        "(() => { const s = document.querySelector('#rest .scroll');"
        "return s.scrollWidth > s.clientWidth; })()"
    )
