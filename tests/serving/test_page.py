"""The page in a real browser: found items, a history, two lists, by mouse and by keyboard alone.

Needs Chromium and its driver, as Debian's packages chromium and chromium-driver bring them.
DIFFUSEREC_SCREENSHOTS=DIR writes pictures at 1280 and 390 pixels, light and dark.
"""

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffuserec.serving.settings import Keys

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="it needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window, which never asks the network."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a person does with the page.

    Args:
        browser: shows it.
        url: of the service.
    """

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def all(self, selector: str) -> list[Any]:
        """Elements of the page."""
        return self.browser.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """What elements say; read at once, for they may be replaced meanwhile."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def until(self, is_so: Callable[[], Any]) -> Any:
        """Waits for something to become true; what it gave."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = is_so()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(self.texts("body"))

    def press(self, *keys: str) -> None:
        """Presses keys wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def focused(self) -> str:
        """Label or id of what has the focus."""
        return self.browser.execute_script(
            "const e = document.activeElement; return e.getAttribute('aria-label') || e.id"
        )

    def history(self) -> list[str]:
        """Ids of the history."""
        return self.texts("#history .id")

    def list(self, number: int) -> list[str]:
        """Ids of a list."""
        return self.texts(f"#lists > :nth-child({number}) li .id")


@pytest.fixture
def page(browser: Any, ask: Any) -> Page:
    """The page of a service of three models, with its first lists shown."""
    found = Page(browser, f"http://127.0.0.1:{ask.port}/")
    found.until(lambda: len(found.list(2)) == 10)
    return found


def test_by_keyboard_alone(page: Page, ask: Any) -> None:
    from selenium.webdriver.common.keys import Keys as K

    page.press(K.TAB)
    assert page.focused() == "search"
    page.press("i1")
    page.until(lambda: page.texts("#found .id")[:1] == ["i1"])
    page.press(K.ENTER)
    page.until(lambda: page.history() == ["i1"])
    assert page.texts("#history .name") == [
        '<img src=x onerror="document.title=1"> �&amp; "quoted"'
    ]
    assert page.browser.title == "diffuserec: try a model"
    page.press("lamp")
    page.until(lambda: len(page.texts("#found li")) == 20)
    second = page.texts("#found .id")[1]
    page.press(K.ARROW_DOWN, K.ENTER)
    page.until(lambda: page.history() == ["i1", second])

    for number, name in ((1, "sasrec"), (2, "acvae")):
        expected = ask.recommend(["i1", second], model=name).json()
        wanted = [item["item_id"] for item in expected["items"]]
        page.until(lambda number=number, wanted=wanted: page.list(number) == wanted)
    assert all("±" in text for text in page.texts("#lists > :nth-child(2) .score"))
    assert not any("±" in text for text in page.texts("#lists > :nth-child(1) .score"))

    page.press(K.TAB, K.TAB, K.ENTER)  # the first item has no way up: its two other buttons
    page.until(lambda: page.history() == ["i1"] or page.history() == [second])
    page.press(K.ENTER)
    page.until(lambda: page.history() == [])
    assert page.focused() == "search"


def test_by_mouse(page: Page, ask: Any) -> None:
    page.all("#search")[0].click()
    page.until(lambda: page.all("#found li"))[3].click()
    (chosen,) = page.until(page.history)
    plain = page.until(
        lambda: len(page.list(1)) == 10 and chosen not in page.list(1) and page.list(1)
    )
    widths = page.browser.execute_script(
        "const bars = document.querySelectorAll('#lists > :nth-child(1) .bar i');"
        "return [...bars].map(e => parseFloat(e.style.width))"
    )
    assert (widths[0], round(widths[-1], 6)) == (100, 10)
    page.browser.execute_script(
        "const s = document.getElementById('mmr');s.value = 90; s.dispatchEvent(new Event('input'))"
    )
    page.until(lambda: page.list(1) != plain)
    page.all("#seen")[0].click()
    page.browser.execute_script(
        "const s = document.getElementById('second');"
        "s.value = 'markov'; s.dispatchEvent(new Event('change'))"
    )
    page.until(lambda: len(page.texts("#written li.new")) == 2)
    assert page.texts("#written li:not(.new) .id")[:1] == [chosen]
    assert (
        "No item vectors, so no diversity: markov."
        in page.until(lambda: page.texts("#list-note"))[0]
    )
    page.all("#clear")[0].click()
    page.until(lambda: page.history() == [])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_nothing_is_blocked(page: Page, width: int, scheme: str) -> None:
    browser = page.browser
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        browser.get(browser.current_url)
        page.until(lambda: len(page.list(2)) == 10)
        for n, query in enumerate(("i1", "i17"), 1):
            page.all("#search")[0].send_keys(query)
            page.until(lambda query=query: page.texts("#found .id")[:1] == [query])
            page.all("#found li")[0].click()
            page.until(lambda n=n: len(page.history()) == n)
        page.until(lambda: len(page.list(2)) == 10 and "i17" not in page.list(2))
        script = (
            "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        scroll_width, height = browser.execute_script(script)
        assert scroll_width == width
        small = browser.execute_script(
            "return [...document.querySelectorAll('button, select, input')].filter(e => "
            "e.offsetParent && e.type !== 'checkbox' && e.offsetHeight < 44).length"
        )
        assert small == 0
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
        if folder := os.environ.get("DIFFUSEREC_SCREENSHOTS"):
            clip = {"x": 0, "y": 0, "width": width, "height": min(height, 3000), "scale": 1}
            how = {"captureBeyondViewport": True, "clip": clip}
            picture = browser.execute_cdp_cmd("Page.captureScreenshot", how)["data"]
            Path(folder, f"page-{width}-{scheme}.png").write_bytes(base64.b64decode(picture))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_key_is_asked_for(browser: Any, saved: Any, serving: Any, keys: Keys) -> None:
    with serving(saved["markov"], keys=keys) as ask:
        page = Page(browser, f"http://127.0.0.1:{ask.port}/")
        page.until(lambda: page.all("#key")[0].is_displayed())
        page.all("#key")[0].send_keys("wrong-wrong-wrong-wrong\n")
        page.until(lambda: page.texts("#problem") == ["This key is not known."])
        page.all("#key")[0].send_keys("ann-ann-ann-ann-ann\n")
        page.until(lambda: len(page.list(1)) == 10)
        assert not page.all("#key")[0].is_displayed()
        browser.execute_script("sessionStorage.clear()")
