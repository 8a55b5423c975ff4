"""The page in headless Chromium: every control is used; one browser for all of these tests."""

import shutil
import warnings

import pytest

pytestmark = pytest.mark.browser

FOREVER_S = 240.0
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip
# Errors that answers of the server make a browser log, as it does for any 4xx.
TOLD = "Failed to load resource"


# For selects: choose a value of one among several.
CHOOSE = (
    "const e = document.querySelectorAll(arguments[0])[arguments[1]]; e.value = arguments[2];"
    "e.dispatchEvent(new Event('change'))"
)


class Browser:
    """Looks at the page as a person would, and waits for what should come."""

    def __init__(self, driver, address, key):
        self.driver, self.address, self.key = driver, address, key

    def go(self, view):
        # Another document, so that nothing of the view before is there.
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/page/?api_key={self.key}#{view}")

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    def find(self, css, text=""):
        found = self.driver.find_elements("css selector", css)
        return next((each for each in found if text in self.run("return arguments[0].textContent", each)), None)

    def until(self, condition, what=""):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, FOREVER_S, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), what)

    def see(self, css, text=""):
        return self.until(lambda: self.find(css, text), f"{css} with {text!r}")

    def click(self, css, text=""):
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.see(css, text))
        self.see(css, text).click()

    def shown(self, text=""):
        """Wait for an image whose alternative text holds a text, loaded."""
        css = ".frame[data-shown]"
        self.until(lambda: self.find(css) and text in self.find(css).get_attribute("data-shown"), f"image {text!r}")
        self.until(lambda: self.run(f"return document.querySelector('{css} img').naturalWidth") > 0, "a loaded image")

    def set(self, css, value, event="input"):
        self.see(css)
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2], {bubbles: true}))",
            css, value, event,
        )  # fmt: skip

    def type(self, css, *keys):
        self.see(css).send_keys(*keys)

    def rows(self):
        return self.run("return [...document.querySelectorAll('table.runs tbody tr')].map(e => e.textContent)")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install '.[browser]'")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with warnings.catch_warnings():
        # Its connections end with the process.
        warnings.simplefilter("ignore", ResourceWarning)
        made = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    made.set_script_timeout(FOREVER_S)
    yield made
    made.quit()


@pytest.fixture
def browser(driver, place, sample):
    """The browser; nothing that came from the catalog has run, and the page has made no error."""
    found = Browser(driver, place.address, sample.KEY)
    yield found
    assert found.run("return document.title") != "run"
    assert not found.find("main img[src='x'], main script")
    logged = [each["message"] for each in driver.get_log("browser") if each["level"] == "SEVERE"]
    assert [message for message in logged if TOLD not in message] == []


def test_who_has_no_key_is_asked_for_it(browser, place, sample):
    browser.driver.get(f"{place.address}/page/")
    browser.driver.delete_all_cookies()
    browser.driver.get(f"{place.address}/page/")
    browser.type("#key", sample.KEY, "\n")
    browser.see("table.runs tbody a")
    assert "api_key" not in browser.driver.current_url
    assert browser.run("return document.cookie") == ""


def test_list(browser, place, sample):
    browser.go("/runs")
    browser.until(lambda: len(browser.rows()) == 4)
    assert sample.EVIL in browser.rows()[0]  # as text
    browser.until(lambda: browser.run("return [...document.images].some(e => e.naturalWidth > 0)"), "a thumbnail")
    # Words that no date has.
    browser.set("input[type=search]", "ADAPTIVE dddd4444")
    browser.until(lambda: len(browser.rows()) == 1)
    browser.set("input[type=search]", "")
    for quality, n in (("doubtful", 2), ("running", 1), ("no result", 1), ("good", 0), ("", 4)):
        browser.set(".filters select", quality, "change")
        browser.until(lambda n=n: len([row for row in browser.rows() if row]) == n, quality)
    for head in ("Scan", "Sample", "Plan", "Date", "Frames", "Made by", "Quality"):
        for _ in range(2):
            browser.click("table.runs th button", head)
            browser.see("table.runs th[aria-sort]", head)
    assert browser.see("th[aria-sort]").get_attribute("aria-sort") == "descending"
    browser.set(".narrow-only select", "scan_id", "change")
    browser.until(lambda: browser.see("th[aria-sort]").text.startswith("Scan"))
    for _ in range(2):
        browser.run("document.querySelector('table.runs tbody input:not(:checked)').click()")
    browser.click(".button", "Compare the two")
    browser.see("h1", "Two results")


def test_keyboard_alone(browser):
    from selenium.webdriver.common.keys import Keys

    browser.go("/runs")
    browser.see("table.runs tbody a")
    browser.type("body", Keys.TAB)
    assert browser.driver.switch_to.active_element.get_attribute("class") == "skip"
    for element in browser.driver.find_elements("css selector", "button, a, input, select, [tabindex='0']"):
        named = element.accessible_name or browser.run("return arguments[0].textContent", element)
        assert named.strip(), element.get_attribute("outerHTML")
    browser.type("table.runs tbody a", Keys.ENTER)
    browser.shown("Phase")
    browser.type(".frame", "++", Keys.ARROW_LEFT, Keys.ARROW_UP)
    browser.until(lambda: "scale(1)" not in browser.see(".stage").get_attribute("style"))
    browser.type(".frame", "-0")
    browser.until(lambda: "scale(1)" in browser.see(".stage").get_attribute("style"))


def test_images_of_a_result(browser, place):
    browser.go(f"/run/{place.complete}")
    browser.shown("Phase")
    for label in (
        "Amplitude",
        "Error of phase",
        "Error of amplitude",
        "Coverage",
        "Latents",
        "Probe, amplitude",
        "Probe, phase",
        "Transmission",
        "Dark field",
        "Phase, integrated",
        "Phase",
    ):
        browser.click(".image-panel .choice label", label)
        browser.shown(label)
    for sign in ("+", "−", "⤢"):
        browser.click(".tools button", sign)
    dots = "return document.querySelectorAll('.stage .dot').length"
    assert browser.run(dots) == 2
    for label, css in (("frames", ".dot"), ("path", ".path")):
        before = browser.run(f"return document.querySelectorAll('.stage {css}').length")
        browser.click(".tick", label)
        assert browser.run(f"return document.querySelectorAll('.stage {css}').length") != before
        browser.click(".tick", label)
    browser.click(".tick", "next places")
    browser.click(".tick", "next places")


def test_the_scan_is_replayed(browser, place, sample):
    browser.go(f"/run/{place.complete}")
    browser.shown("image 3 of 3")
    browser.set("input[type=range]", "0")
    browser.shown("image 1 of 3")
    assert browser.see(".replay output").text == "image 1 of 3: 3 frames"
    assert browser.run("return document.querySelectorAll('.stage .cross').length") == 2
    browser.click(".replay button", "Play")
    browser.shown("image 3 of 3")
    browser.see(".replay button", "Play")
    browser.click("summary", "All decisions")
    browser.click("button[aria-label='show decision 2']")
    browser.see(".decision", "Decision")
    browser.click("button[aria-label='show decision 3']")
    assert sample.EVIL in browser.see(".decision").text


def test_a_frame_is_chosen_three_ways(browser, place):
    from selenium.webdriver.common.keys import Keys

    browser.go(f"/run/{place.complete}")
    browser.shown("Phase")
    told = "return document.querySelector('input[type=number]').value"
    browser.set("input[type=number]", "5", "change")
    browser.see(".pattern img[alt='Misfit of frame 5']")
    browser.until(
        lambda: browser.run("return [...document.querySelectorAll('.pattern img')].every(e => e.naturalWidth === 16)")
    )
    browser.click("button[aria-label='next frame']")
    browser.see(".pattern img[alt='Measured of frame 6']")
    browser.click("button[aria-label='frame before']")
    browser.type(".scatter", Keys.ARROW_LEFT)
    browser.see(".pattern img[alt='Fit of frame 4']")
    browser.run("document.querySelectorAll('.scatter .frame-dot')[1].scrollIntoView({block: 'center'})")
    browser.driver.find_elements("css selector", ".scatter .frame-dot")[1].click()
    browser.until(lambda: browser.run(told) == "2")
    # The image's centre is next to the last one of nine places.
    browser.run("document.querySelector('.frame').scrollIntoView({block: 'center'})")
    browser.see(".frame").click()
    browser.until(lambda: browser.run(told) == "9")
    assert browser.run("return document.querySelectorAll('.stage .ring').length") == 2
    for k in (0, 1):
        browser.run(CHOOSE, ".frame-columns select", k, "2")
    assert browser.see(".scatter").text.count("latent 3") == 2
    browser.set("input[type=number]", "77", "change")
    browser.see("[role=status]", "holds no frame 77")


def test_curves_numbers_and_files(browser, place, sample):
    browser.go(f"/run/{place.complete}")
    browser.until(lambda: len(browser.driver.find_elements("css selector", ".uplot canvas")) == 2)
    assert "90 nm" in browser.see(".frcNote").text
    browser.click("summary", "All metadata of the raw run")
    assert sample.EVIL in browser.run("return document.querySelector('details[open] .tree').textContent")
    links = browser.run("return [...document.querySelectorAll('.files a')].map(e => e.getAttribute('href'))")
    assert len([link for link in links if "/file/" in link]) == 6
    size = browser.run("return fetch(arguments[0]).then(r => r.blob()).then(b => b.size)", links[0])
    assert size > 1000
    browser.click(".files a", "compare")
    browser.see("h1", "Two results")


def test_two_results(browser, place):
    browser.go("/compare")
    browser.see("[role=status]", "Choose two results")
    browser.until(lambda: len(browser.driver.find_elements("css selector", "form select option")) == 6)
    for k, uid in enumerate((place.complete, place.again)):
        browser.run(CHOOSE, "form select", k, uid)
    browser.shown("phase")
    browser.click(".tools button", "+")
    scales = "return [...document.querySelectorAll('.stage')].slice(0, 2).map(e => e.style.transform)"
    browser.until(
        lambda: len(set(browser.run(scales))) == 1 and "scale(1)" not in browser.run(scales)[0], "both move together"
    )
    browser.click(".choice label", "Amplitude")
    browser.shown("amplitude")
    browser.click(".choice label", "In turn")
    first = browser.see("h2", "First:").text
    browser.click("button", "Show the other one")
    browser.see("h2", "Second:")
    browser.click("button", "Blink")
    browser.until(lambda: browser.find("h2", "First:"), first)
    browser.until(lambda: browser.find("h2", "Second:"))
    browser.click("button", "Stop")
    browser.click(".choice label", "Difference")
    browser.see("h2", "First less second")
    assert browser.see("section.panel dl").text


def test_a_run_that_is_measured_is_followed(browser, place):
    browser.go("/live")
    browser.shown("image 1")
    n = int(browser.see(".replay output").get_attribute("textContent").partition(" of ")[2].partition(":")[0])
    browser.see(".word", "running")
    place.publish_live(6)
    browser.shown(f"image {n + 1} of {n + 1}")


def test_a_run_that_was_looked_at_before_its_first_image_is_followed_too(browser, place):
    with place.begun() as publish:
        browser.go("/live")
        browser.until(lambda: browser.see(".replay output").get_attribute("textContent") == "no image yet")
        assert not browser.find(".frame[data-shown]")
        # Two came between two looks.
        publish(2, 4)
        browser.shown("image 2 of 2")
        publish(6)
        browser.shown("image 3 of 3")


def test_light_dark_and_a_phones_width(browser, place):
    browser.go(f"/run/{place.complete}")
    browser.shown("Phase")
    colours = set()
    for theme in ("light", "dark", "auto"):
        browser.click(".theme")
        browser.see(".theme", theme)
        colours.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        for view, css in (
            ("/runs", "table.runs tbody a"),
            (f"/run/{place.complete}", ".frame[data-shown]"),
            (f"/compare/{place.complete}/{place.again}", ".frame[data-shown]"),
        ):
            browser.go(view)
            browser.see(css)
            assert browser.run("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
