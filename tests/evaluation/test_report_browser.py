"""The report in a real browser: nothing in its console, nothing asked of a network, every figure drawn, a player that
moves by buttons and by keys, on a laptop and on a phone, light and dark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from example_report import BASELINES, CONTEXT, HORIZONS, evaluation, example_report, player
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from flcache.evaluation.report import Report, write_report

STEPS = CONTEXT + HORIZONS
LAPTOP, PHONE = (1440, 900), (390, 844)
CANVAS_COLOURS = """
    const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    return Object.fromEntries([...document.querySelectorAll("canvas")].map((canvas, index) => {
        const { width, height } = Object.assign(scratch.canvas, { width: canvas.width, height: canvas.height });
        scratch.drawImage(canvas, 0, 0);
        const pixels = scratch.getImageData(0, 0, width, height).data;
        return [canvas.id || `thumbnail-${index}`, new Set(new Uint32Array(pixels.buffer)).size];
    }));
"""
COUNT_TIMERS = """
    const { setInterval: start, clearInterval: stop } = window;
    window.timers = new Set();
    window.setInterval = (...given) => { const timer = start(...given); timers.add(timer); return timer; };
    window.clearInterval = (timer) => { timers.delete(timer); stop(timer); };
"""
COVERED_BY_ZERO_LABELS = """
    const touch = (one, other) => one.left < other.right && other.left < one.right && one.top < other.bottom
        && other.top < one.bottom;
    return [...document.querySelectorAll(".zero-label")].flatMap((label) => {
        const box = label.getBoundingClientRect(), chart = label.closest(".chart");
        const others = [...chart.querySelectorAll(".x-tick, .y-tick, .end-label, .zero, .grid")];
        return others.filter((other) => touch(box, other.getBoundingClientRect())).map((other) => other.outerHTML);
    });
"""
Open = Callable[..., Chrome]


@pytest.fixture
def open_page(browser: Chrome, tmp_path: Path) -> Open:
    def open_report(report: Report, size: tuple[int, int] = LAPTOP, theme: str = "light") -> Chrome:
        path = tmp_path / "report.html"
        write_report(report, path)
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        browser.get_log("performance")
        browser.get(path.as_uri())
        return browser

    return open_report


def console(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def requested(browser: Chrome) -> set[str]:
    """Schemes of everything the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return {params["request"]["url"].partition(":")[0] for params in sent}


def colours(browser: Chrome) -> dict[str, int]:
    """How many colours each canvas shows."""
    found: dict[str, int] = browser.execute_script(CANVAS_COLOURS)
    return found


def status(browser: Chrome) -> str:
    return browser.find_element(By.ID, "status").text


def shown_step(browser: Chrome) -> int:
    """From 1, as the page counts. Slider and words are read in one go: they may be playing."""
    read = "return ['step', 'status'].map((id) => document.getElementById(id).value)"
    index, words = browser.execute_script(read)
    assert words.startswith(f"Step {int(index) + 1} of {STEPS}")
    return int(index) + 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_every_figure_is_drawn_and_nothing_goes_wrong(open_page: Open, size: tuple[int, int], theme: str) -> None:
    page = open_page(example_report(), size, theme)
    WebDriverWait(page, 20).until(lambda page: min(colours(page).values()) > 3)
    painted = colours(page)
    assert {f"tile-{name}" for name in ("video", "truth", "prediction", "error", "copy", "copy_error")} <= set(painted)
    assert len(painted) == 6 + 3
    lines = page.find_elements(By.CSS_SELECTOR, "svg .line")
    assert len(lines) == 5 + 5 + 2 + 5
    assert all(line.size["width"] > 100 for line in lines)
    assert all(table.size["height"] > 50 for table in page.find_elements(By.TAG_NAME, "table"))
    overflow = page.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, "only tables scroll sideways"
    assert console(page) == []
    assert requested(page) <= {"file", "data"}


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("lowest", [0.3, 0.0, -0.01, -0.3, -20])
def test_the_name_of_no_skill_covers_no_axis(open_page: Open, size: tuple[int, int], lowest: float) -> None:
    skills = [dict.fromkeys(BASELINES, 0.7 - (0.7 - lowest) * step / 4) for step in range(HORIZONS)]
    page = open_page(example_report(evaluation=evaluation(skills)), size)
    assert len(page.find_elements(By.CLASS_NAME, "zero-label")) == 3
    assert page.execute_script(COVERED_BY_ZERO_LABELS) == []


def test_light_and_dark_differ_and_can_both_be_read(open_page: Open) -> None:
    brightness = {}
    for theme in ("light", "dark"):
        page = open_page(example_report(), theme=theme)
        body = page.find_element(By.TAG_NAME, "body")
        rgb = [body.value_of_css_property(name) for name in ("background-color", "color")]
        brightness[theme] = [sum(map(float, value[value.index("(") + 1 : -1].split(",")[:3])) / 3 for value in rgb]
    assert brightness["light"][0] > 240 and brightness["light"][1] < 60
    assert brightness["dark"][0] < 40 and brightness["dark"][1] > 200


def test_the_player_moves_with_its_buttons(open_page: Open) -> None:
    page = open_page(example_report())
    start = shown_step(page)
    assert start == CONTEXT + 4, "it opens in the future, where there is something to see"
    page.find_element(By.ID, "next").click()
    assert shown_step(page) == start + 1
    for _ in range(2):
        page.find_element(By.ID, "previous").click()
    assert shown_step(page) == start - 1
    page.find_elements(By.CSS_SELECTOR, "#bars div")[0].click()
    assert shown_step(page) == 1 and status(page).endswith("context")
    assert colours(page)["tile-error"] == 1, "there is no error in the context"


def test_the_player_moves_with_keys(open_page: Open) -> None:
    page = open_page(example_report())
    box = page.find_element(By.ID, "player")
    start = shown_step(page)
    box.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert shown_step(page) == start - 1
    box.send_keys(Keys.HOME)
    assert shown_step(page) == 1
    box.send_keys(Keys.ARROW_LEFT, Keys.END, Keys.ARROW_RIGHT)
    assert shown_step(page) == STEPS
    slider = page.find_element(By.ID, "step")
    slider.send_keys(Keys.ARROW_LEFT)
    assert shown_step(page) == STEPS - 1 and slider.get_attribute("aria-valuetext") == status(page)


def test_space_plays_and_stops(open_page: Open) -> None:
    """It stops for good: no timer is left that could move it."""
    page = open_page(example_report())
    page.execute_script(COUNT_TIMERS)
    box, button = page.find_element(By.ID, "player"), page.find_element(By.ID, "play")
    box.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-label") == "Pause" and page.execute_script("return timers.size") == 1
    seen: set[int] = set()
    WebDriverWait(page, 20).until(lambda page: seen.add(shown_step(page)) or len(seen) == 3)
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-label") == "Play" and page.execute_script("return timers.size") == 0


def test_another_clip_has_other_pictures(open_page: Open) -> None:
    page = open_page(example_report())
    pixels = "return document.getElementById('tile-prediction').toDataURL()"
    before = page.execute_script(pixels)
    radios = page.find_elements(By.NAME, "clip")
    radios[0].send_keys(Keys.ARROW_RIGHT)
    assert radios[1].is_selected() and page.execute_script(pixels) != before
    radios[1].send_keys(Keys.ARROW_RIGHT)
    page.find_element(By.ID, "player").send_keys(Keys.END)
    assert status(page).endswith("padding, the video has ended")


def test_what_can_be_focused_has_a_name_and_shows_it(open_page: Open) -> None:
    page = open_page(example_report())
    reached = []
    for _ in range(20):
        page.find_element(By.TAG_NAME, "body").send_keys(
            Keys.TAB
        ) if not reached else page.switch_to.active_element.send_keys(Keys.TAB)
        focused = page.switch_to.active_element
        if focused.tag_name == "body":
            break
        reached.append(focused.get_attribute("id") or focused.tag_name)
        if focused.tag_name != "pre":
            assert focused.accessible_name, reached[-1]
        ring = "const shown = document.activeElement.type === 'radio' ? document.activeElement.nextElementSibling : "
        ring += "document.activeElement; return parseFloat(getComputedStyle(shown).outlineWidth)"
        assert page.execute_script(ring) >= 2, reached[-1]
    assert {"player", "step", "previous", "play", "next", "summary"} <= set(reached)


def test_a_page_with_less_is_whole_too(open_page: Open) -> None:
    for report in (
        example_report(player=player(frames=False)),
        example_report(player=None, evaluation=None, losses=[], cache=None, leak=True),
    ):
        page = open_page(report)
        assert console(page) == []
    assert page.find_element(By.CLASS_NAME, "leak").is_displayed()
