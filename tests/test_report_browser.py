"""The page in a real browser: every control, links, the keyboard, hostile text, accessibility."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.test_report import ALL_CONTROLS
from tests.test_report_page import HOSTILE, run_with_concepts, whole_run

from saelign.report import write_report

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no Chromium with its driver is installed", allow_module_level=True)

PAGE = Path(__file__).parents[1] / "src" / "saelign" / "report" / "page"
AXE = PAGE / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1300,950",
)  # fmt: skip
VIEWS = ("overview", "grid", "cell", "features", "map", "methods")


class Browser:
    """A browser with a page open."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=DRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})

    def open(self, page: Path, address: str = "") -> None:
        """Open a page afresh and wait for it."""
        self.driver.get("about:blank")
        self.driver.get(f"{page.as_uri()}#{address}")
        self.until("return !!document.querySelector('header.top')")
        self.settle()

    def go(self, address: str) -> None:
        """Follow a link within the page."""
        self.js("location.hash = arguments[0]", address)
        self.settle()

    def settle(self) -> None:
        """Wait for what is being opened."""
        time.sleep(0.05)
        self.until("return !document.querySelector('.wait')")

    def js(self, script: str, *arguments: Any) -> Any:
        """What a script gives."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, seconds: float = 30) -> None:
        """Wait for a script to give true."""
        end = time.monotonic() + seconds
        while not self.js(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def text(self, selector: str = "main") -> str:
        """What a reader sees in an element."""
        return self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def choose(self, label: str, value: str) -> None:
        """Set a choice by its label."""
        found = self.js(
            """for (const l of document.querySelectorAll('label.choice')) {
                 if (l.querySelector('span').textContent !== arguments[0]) continue;
                 const s = l.querySelector('select, input'); s.value = arguments[1];
                 const is = s.tagName === 'SELECT' ? 'change' : 'input';
                 s.dispatchEvent(new Event(is, {bubbles: true})); return s.value;
               }""",
            label, value,
        )  # fmt: skip
        assert found == value
        self.settle()

    def press(self, key: str, selector: str | None = None) -> None:
        """Press a key, on an element or on what has the focus."""
        self.js(
            """const on = arguments[1] ? document.querySelector(arguments[1])
                 : document.activeElement ?? document.body;
               if (arguments[1]) on.focus();
               on.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true,
                 cancelable: true}));""",
            key, selector,
        )  # fmt: skip
        self.settle()

    def errors(self) -> list[str]:
        """What the console holds that it should not."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] != "INFO"]

    def requests(self) -> set[str]:
        """Addresses that were asked for."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(message["params"]["request"]["url"].split("#")[0])
        return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = whole_run(
        tmp_path_factory.mktemp("run"), controls=ALL_CONTROLS, seeds=(0, 7),
        metrics=("pearson", "cosine"), warnings=["a warning"],
    )  # fmt: skip
    return write_report(run)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


def test_every_view_opens_without_an_error_or_a_request(browser: Browser, page: Path) -> None:
    browser.errors()
    browser.requests()
    for view in VIEWS:
        browser.open(page, f"view={view}")
        assert browser.text("nav a[aria-current]")
        assert len(browser.text()) > 100
        assert browser.js("return document.querySelectorAll('main h2').length") == 1
    assert browser.errors() == []
    asked = {url for url in browser.requests() if not url.startswith(("data:", "about:", "chrome"))}
    assert asked == {page.as_uri()}
    shown = "return performance.getEntriesByName('saelign-shown')[0].startTime"
    print(f"first view after {browser.js(shown):.0f} ms of {page.stat().st_size / 2**20:.1f} MiB")


def test_every_switch_of_the_grid_changes_what_is_shown(browser: Browser, page: Path) -> None:
    browser.open(page, "view=grid")
    cells = "return [...document.querySelectorAll('svg[role=grid] text.ink')].map(t => t.innerHTML)"
    seen = [browser.js(cells)]
    for label, value in (
        ("Show", "score"), ("Measure", "svcca"), ("Null", "shuffle"), ("Comparison", "untrained"),
        ("Comparison", "minus_untrained"), ("Comparison", "seed_a"), ("Comparison", "trained"),
        ("Matching", "many_to_one"), ("Matched by", "cosine"), ("Run", "1"), ("Run", "spread"),
        ("Run", "0"), ("Show", "held_out_correlation"), ("Pairs", "1"), ("Show", "p"),
        ("Show", "n_kept"),
    ):  # fmt: skip
        browser.choose(label, value)
        now = browser.js(cells)
        # A score is the same beside every null; all else moves some number.
        assert now != seen[-1] or (label, value) == ("Null", "shuffle"), (label, value)
        seen.append(now)
    assert browser.errors() == []


def test_cells_that_do_not_beat_chance_are_hatched(browser: Browser, page: Path) -> None:
    browser.open(page, "view=grid&control=untrained&run=0")
    weak = browser.js(
        """return [...document.querySelectorAll('svg[role=grid] [role=gridcell]')].map(c =>
             [c.getAttribute('aria-label').includes('does not beat chance'),
              !!c.querySelector('rect[fill^=url]')])"""
    )
    assert any(said for said, _ in weak)
    assert all(said == drawn for said, drawn in weak)


def test_the_grid_is_worked_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, "view=grid")
    browser.press("Home", "[role=gridcell][tabindex='0']")
    at = "return document.activeElement.dataset.cell"
    first = browser.js(at)
    browser.press("ArrowRight")
    right = browser.js(at)
    browser.press("ArrowDown")
    down = browser.js(at)
    assert len({first, right, down}) == 3
    assert "null" in browser.text("[role=tooltip]")
    browser.press("Enter")
    a, b = down.split("-")
    assert f"A layer {a}" in browser.text("h2")
    assert f"B layer {b}" in browser.text("h2")


def test_a_click_on_a_cell_opens_it_with_all_that_stands_behind_it(
    browser: Browser, page: Path
) -> None:
    browser.open(page, "view=grid")
    browser.js("document.querySelector('[data-cell=\"1-10\"] rect').dispatchEvent("
               "new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    browser.settle()
    text = browser.text()
    for told in (
        "From features to kept pairs", "Correlations of matched features", "Canonical correlations",
        "What RSA compares", "Matched features", "rate-matched",
    ):  # fmt: skip
        assert told in text
    assert browser.js("return document.querySelectorAll('image').length") == 2
    assert browser.errors() == []


def test_a_link_to_a_pair_opens_it_again(browser: Browser, page: Path) -> None:
    browser.open(page, "view=features&cell=1-10")
    browser.press("j")
    browser.press("j")
    browser.press("k")
    address = browser.js("return location.hash")
    assert "pair=1-10:" in address
    heads = "return [...document.querySelectorAll('article h3')].map(h => h.innerText)"
    shown = browser.js(heads)
    browser.open(page, address[1:])
    assert browser.js(heads) == shown
    a, b = address.split("pair=1-10:")[1].split("&")[0].split("-")
    assert a in shown[0]
    assert b in shown[1]
    browser.open(page, f"pair=1-10:{a}-{b}")  # as short as it can be
    assert browser.js(heads) == shown
    assert "no pair of this cell" not in browser.text()
    browser.open(page, f"pair=1-10:{a}-999999")
    assert f"A {a} and B 999999 are no pair of this cell" in browser.text()
    assert len(browser.js(heads)) == 2


def test_a_feature_links_to_neuronpedia_where_its_sae_has_a_name(
    browser: Browser, tmp_path: Path
) -> None:
    run = whole_run(tmp_path)
    run.info["models"]["a"]["saes"] = {
        str(layer): {"source": "there", "sha256": "0", "neuronpedia": f"gpt2-small/{layer}-res-jb"}
        for layer in run.cells["layer_a"]
    }
    browser.open(write_report(run), "view=features")
    links = browser.js(
        "return [...document.querySelectorAll('.feature header a')].map(a => a.href)"
    )
    feature, layer = re.findall(r"\d+", browser.text(".feature.a h3"))[:2]
    assert links == [f"https://www.neuronpedia.org/gpt2-small/{layer}-res-jb/{feature}"]


def test_pairs_are_searched_sorted_and_filtered(browser: Browser, page: Path) -> None:
    browser.open(page, "view=features&cell=1-10")
    status = ".list [role=status]"
    assert browser.text(status).startswith("150 of 150")
    number = browser.js("return document.querySelector('.row b.a').innerText")
    browser.choose("Token or feature number", f"A{number}")
    assert browser.text(status).startswith("1 of 150")
    browser.choose("Token or feature number", "no such token")
    assert "No pair fits" in browser.text()
    browser.choose("Token or feature number", "dog")
    some = int(browser.text(status).split(" ")[0])
    assert 0 < some < 150
    browser.choose("Token or feature number", "")
    counts = {}
    for show in ("kept", "dropped", "mutual"):
        browser.choose("Pairs", show)
        counts[show] = int(browser.text(status).split(" ")[0])
    assert counts["kept"] + counts["dropped"] == 150
    browser.choose("Pairs", "all")
    browser.choose("Concept", "Animals")
    assert 0 < int(browser.text(status).split(" ")[0]) < 150
    browser.choose("Concept", "")
    browser.choose("Order by", "feature_a")
    first = "return [...document.querySelectorAll('.row b.a')].slice(0, 9).map(b => +b.innerText)"
    numbers = browser.js(first)
    assert numbers == sorted(numbers)
    assert browser.errors() == []


def test_only_what_is_seen_of_a_list_is_drawn(browser: Browser, page: Path) -> None:
    browser.open(page, "view=features&cell=1-10")
    drawn = "return document.querySelectorAll('.row').length"
    assert browser.js(drawn) < 60
    browser.press("End", ".rows")
    browser.until(
        "return !!document.querySelector('.row[aria-posinset=\"150\"][aria-selected=true]')"
    )
    assert browser.js(drawn) < 60


def test_a_context_is_shaded_by_activation_and_its_top_token_marked(
    browser: Browser, page: Path
) -> None:
    browser.open(page, "view=features&cell=0-0")
    shades = browser.js(
        """return [...document.querySelector('.contexts li').querySelectorAll('strong, span')]
             .map(e => [e.tagName, +e.style.getPropertyValue('--on')])"""
    )
    assert shades == [["STRONG", 1], ["SPAN", pytest.approx(0.25, abs=0.01)]]
    assert "decoder promotes" in browser.text("article.a")


def test_the_map_shows_a_features_partner(browser: Browser, page: Path) -> None:
    browser.open(page, "view=map&cell=0-0")
    for by in ("verdict", "Animals", "correlation"):
        browser.choose("Colour by", by)
    browser.js(
        """const m = document.querySelector('svg.map'); const b = m.getBoundingClientRect();
           for (let x = 20; x < b.width; x += 6) for (let y = 40; y < b.height; y += 6) {
             m.dispatchEvent(new PointerEvent('pointermove',
               {bubbles: true, clientX: b.left + x, clientY: b.top + y}));
           }"""
    )
    browser.js(
        """const m = document.querySelector('svg.map'); const b = m.getBoundingClientRect();
           m.dispatchEvent(new PointerEvent('pointermove', {bubbles: true,
             clientX: b.left + b.width / 2, clientY: b.top + 24 + b.width / 2}));"""
    )
    browser.until("return !!document.querySelector('.spot')")
    assert browser.errors() == []


def test_concepts_are_shown_layer_by_layer(browser: Browser, tmp_path: Path) -> None:
    page = write_report(run_with_concepts(tmp_path))
    browser.open(page, "view=concepts")
    text = browser.text()
    for told in ("Concepts: calibrated", "Unions of concepts", "Phrases", "Words alone", "1,234"):
        assert told in text
    cells = "return [...document.querySelectorAll('main svg text.ink')].map(t => t.textContent)"
    before = browser.js(cells)
    browser.choose("Show", "score")
    browser.choose("Measure", "cka")
    assert browser.js(cells) != before
    browser.choose("Comparison", "untrained")
    browser.choose("Null", "shuffle")
    browser.open(page, "view=grid&subspace=Emotions&value=score")
    assert "features of Emotions" in browser.text()
    assert browser.errors() == []


def test_figures_are_saved_as_csv_svg_and_png(browser: Browser, page: Path) -> None:
    browser.open(page, "view=cell&cell=1-10")
    browser.js(
        """window.saved = []; window.URL.createObjectURL = (blob) => {
             window.saved.push(blob); return 'data:,'; };
           window.names = []; HTMLAnchorElement.prototype.click = function () {
             window.names.push(this.download); };"""
    )
    n = browser.js(
        """const all = [...document.querySelectorAll('.downloads button')];
           all.forEach(b => b.click()); return all.length;"""
    )
    assert n == 12  # four figures
    browser.until(f"return window.saved.length === {n}")
    kinds = browser.js("return window.saved.map(b => b.type)")
    assert kinds.count("text/csv") == kinds.count("image/svg+xml") == kinds.count("image/png") == 4
    csv, svg = browser.driver.execute_async_script(
        """const done = arguments[0]; const of = (t) => window.saved.find(b => b.type === t).text();
           Promise.all([of('text/csv'), of('image/svg+xml')]).then(done);"""
    )
    assert csv.startswith("step,n\n")
    assert svg.startswith("<svg xmlns")
    assert browser.js("return new DOMParser().parseFromString(arguments[0], 'image/svg+xml')"
                      ".querySelector('parsererror') === null", svg)  # fmt: skip
    assert all(browser.js("return window.names"))
    assert browser.errors() == []


def test_colours_are_switched_and_follow_the_system(browser: Browser, page: Path) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    media = "Emulation.setEmulatedMedia"
    found = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.driver.execute_cdp_cmd(media, {"features": [feature]})
        browser.open(page)
        found[scheme] = browser.js(ground)
    assert found["light"] != found["dark"]
    for expected in (found["light"], found["dark"], found["dark"]):  # light, dark, automatic again
        browser.js("document.querySelector('.theme').click()")
        browser.settle()
        assert browser.js(ground) == expected
    browser.driver.execute_cdp_cmd(media, {"features": []})


def test_a_phone_shows_every_view_without_scrolling_sideways(browser: Browser, page: Path) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for view in VIEWS:
            browser.open(page, f"view={view}")
            assert browser.js("return document.documentElement.scrollWidth") <= 390, view
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_text_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    tokens = (*HOSTILE, "x" * 10_000)
    run = whole_run(
        tmp_path, tokens=tokens, names=(HOSTILE[0], HOSTILE[1]), name=HOSTILE[0],
        warnings=[*HOSTILE], matchings=("one_to_one",),
    )  # fmt: skip
    page = write_report(run)
    for view in VIEWS:
        browser.open(page, f"view={view}&cell=0-0")
        assert browser.js("return window.hit === undefined"), view
        assert browser.js("return document.querySelectorAll('main img, main script').length") == 0
        width = "return document.documentElement.scrollWidth - innerWidth"
        assert browser.js(width) <= 0, view
    browser.go("view=overview")
    assert HOSTILE[0].split("/")[-1] in browser.text()
    browser.go("view=features&cell=0-0")
    assert "<script>window.hit=1</script>" in browser.text()
    assert browser.errors() == []


def test_a_page_that_was_cut_short_says_so(browser: Browser, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    at = text.index('data-block="core">') + len('data-block="core">')
    cut = tmp_path / "cut.html"
    cut.write_text(text[: at + 40] + text[text.index("</script>", at) :], encoding="utf-8")
    browser.driver.get(cut.as_uri())
    browser.until("return document.body.innerText.includes('cannot be opened')")
    browser.errors()


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not there: `npm ci` in report/page")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_accessibility_checker_finds_nothing_serious(
    browser: Browser, page: Path, scheme: str
) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    found = []
    for view in VIEWS:
        browser.open(page, f"view={view}&cell=0-0")
        browser.driver.execute_cdp_cmd(
            "Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")}
        )
        result = browser.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(done);"
        )
        found += [
            (view, v["id"], v["impact"], v["nodes"][0]["html"][:120])
            for v in result["violations"]
            if v["impact"] in ("serious", "critical")
        ]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found == []
