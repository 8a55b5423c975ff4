"""Make the picture of docs/page.md: the newest result of a session's folder as the page shows it in Chromium.

python docs/page_picture.py demo_output
"""

import base64
import contextlib
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from bluesky_cdi.catalog import open_catalog, serve
from bluesky_cdi.config import load_config
from bluesky_cdi.web import Page

KEY, FRAME = "Key1", "20"
SIZE, HEIGHT, SHOWN = (1280, 1000), 2172, 900
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}")
CHOOSE = (
    "const e = document.querySelector('input[type=number]'); e.value = arguments[0];"
    "e.dispatchEvent(new Event('change'))"
)
LOADED = (
    "const all = [...document.querySelectorAll(arguments[0])];"
    "return all.length > 0 && all.every((each) => each.naturalWidth > 0)"
)


def photograph(address: str, uid: str) -> bytes:
    """Look at a result, choose a frame, and take a picture when all images are there."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(f"{address}/page/?api_key={KEY}#/run/{uid}")
        for css, after in ((".frame img", CHOOSE), (".pattern img", "")):
            WebDriverWait(driver, 240).until(lambda seen, css=css: seen.execute_script(LOADED, css))
            driver.execute_script(after, FRAME)
        clip = {"x": 0, "y": 0, "width": SIZE[0], "height": HEIGHT, "scale": 1}
        wanted = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"])
    finally:
        driver.quit()


def main(folder: Path) -> None:
    """Serve a folder with its page, and photograph its newest result."""
    with contextlib.ExitStack() as stack:

        def page(uri: str) -> Page:
            made = Page(lambda: open_catalog(uri), KEY, public=False, config=load_config())
            return stack.enter_context(contextlib.closing(made))

        uri = stack.enter_context(serve(folder, api_key=KEY, read_only=True, page=page))
        with open_catalog(uri) as catalog:
            uid = catalog.latest().uid
        png = photograph(uri.partition("/api/v1")[0], uid)
    with Image.open(io.BytesIO(png)) as shown:
        small = shown.convert("RGB").resize((SHOWN, HEIGHT * SHOWN // SIZE[0]), Image.Resampling.LANCZOS)
    small.save(Path(__file__).parent / "page.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
