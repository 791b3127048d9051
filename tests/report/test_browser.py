"""The report in a real browser, from disk: no error, no overflow on a phone, and what moves does move.

Skipped where there is no Chromium with its driver, or no selenium (the extra `browser`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import as_reid, complete, write_run

from dcal.report.html.document import document
from dcal.report.html.run_files import read_folder

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install -e '.[browser]'"
    )
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in two configurations and a Re-ID run in one page."""
    root = tmp_path_factory.mktemp("runs ü")
    for seed in (0, 1):
        complete(write_run(root, seed, 8, "none"))
        complete(write_run(root, seed, 4 + seed))
    as_reid(write_run(root, 0, 4, name="reid/people"))
    file = root / "report.html"
    file.write_text(document(read_folder(root)), encoding="utf-8")
    return file


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Any:
    width = request.param
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report.as_uri())
    return browser


def errors(page: Any) -> list[Any]:
    """What the console says is wrong; that a canvas is read often is the tests' own doing."""
    return [entry for entry in page.get_log("browser") if entry["level"] != "WARNING"]


def test_it_opens_without_errors_and_fits_the_screen(page: Any) -> None:
    assert errors(page) == []
    wide = """return [document.documentElement.scrollWidth - innerWidth,
        ...[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
            && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))]"""
    assert page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true);" + wide) in (
        [0],
        [-15],
    )  # the scroll bar
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
    assert page.execute_script(broken) == 0 < page.execute_script("return document.images.length")
    unnamed = "return [...document.querySelectorAll('input')].filter(i => !i.labels.length).length"
    assert page.execute_script(unnamed) == 0
    assert page.execute_script("return document.querySelectorAll('.chart svg path.line').length") > 1


def test_the_slider_moves_the_patches_by_keyboard(page: Any) -> None:
    gallery = page.find_element("css selector", "details[open] .looks.attention")
    slider = gallery.find_element("css selector", "input[type=range]")
    shown = """const c = arguments[0].querySelector('canvas'), d = c.getContext('2d').getImageData(0, 0, 6, 4).data;
        return d.filter((v, i) => i % 4 === 3 && v === 0).length"""  # patches that are not darkened
    assert page.execute_script(shown, gallery) == 2, "a tenth of 24 patches"
    slider.send_keys("\ue010")  # End
    assert slider.get_attribute("value") == "100" and page.execute_script(shown, gallery) == 24
    slider.send_keys("\ue011")  # Home: one patch at least
    assert page.execute_script(shown, gallery) == 1
    slider.send_keys("\ue014" * 49)  # right
    told = gallery.find_element("css selector", "output").text
    assert page.execute_script(shown, gallery) == 12 and told.startswith("R = 50 %: 12 of 24 patches")
    assert slider.get_attribute("aria-valuetext") == told
    gallery.find_element("css selector", "input[value=picture]").send_keys(" ")
    assert page.execute_script(shown, gallery) == 24 and not slider.is_enabled()
    assert errors(page) == []


def test_tables_sort_and_pointers_read(page: Any) -> None:
    script = """const [table] = document.querySelectorAll('.tall table'), rows = () =>
            [...table.tBodies[0].rows].map(r => +r.cells[3].dataset.value);
        const button = table.querySelectorAll('th button')[3], found = [];
        button.click(); found.push(rows()); button.click(); found.push(rows());
        return [...found, button.closest('th').getAttribute('aria-sort')]"""
    up, down, order = page.execute_script(script)
    assert up == sorted(up) and down == sorted(up, reverse=True) and up != down and order == "descending"
    point = """const [node] = document.querySelectorAll(arguments[0]), box = node.getBoundingClientRect();
        node.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + arguments[1] * box.width,
            clientY: box.top + arguments[1] * box.height}))"""
    page.execute_script(point, ".chart svg", 0.99)
    assert page.execute_script("return document.querySelector('.chart figcaption').textContent").endswith("epoch 2")
    page.execute_script(point, "details[open] .field", 0.01)
    told = page.execute_script("return document.querySelector('details[open] .confusion output').textContent")
    assert told == "Ant <b>: 8 of 8 recognised"
    assert errors(page) == []
