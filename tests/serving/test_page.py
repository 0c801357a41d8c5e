"""The page in a real browser: headless Chromium with its driver; skipped where there is none.

With MP2_SCREENSHOTS naming a folder, pictures of every state are left there to be looked at.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mp2.model.checkpoint import Base
from mp2.serving.keys import add_key
from mp2.serving.service import Settings
from tests.serving.kit import folder
from tests.serving.live import Client, in_thread

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

PATIENCE = 300  # seconds: a busy machine tunes slowly
PHONE = 360
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver here")
Page = Any


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    profile = tmp_path_factory.mktemp("profile")
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield page
    finally:
        page.quit()


@pytest.fixture
def call(base: Base, tmp_path: Path) -> Iterator[Client]:
    settings = Settings(folder(base, tmp_path / "tasks"), str(base.path))
    with in_thread(settings, base) as (client, _):
        yield client


def until(page: Page, condition: Callable[[], Any]) -> Any:
    """Wait; a failure shows what the page says."""
    try:
        return WebDriverWait(page, PATIENCE, 0.1).until(lambda _: condition())
    except Exception:
        print(page.find_element(By.TAG_NAME, "body").text)
        raise


def at(page: Page, id_: str) -> Any:
    return page.find_element(By.ID, id_)


def size(page: Page, width: int, height: int, *, mobile: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def shoot(page: Page, name: str) -> None:
    where = os.environ.get("MP2_SCREENSHOTS")
    if where:
        Path(where).mkdir(parents=True, exist_ok=True)
        whole = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (Path(where) / f"{name}.png").write_bytes(base64.b64decode(whole["data"]))


def type_and_ask(page: Page, text: str) -> Any:
    """Type a text, press Control and Enter, and wait for its answer on top."""
    area = page.find_element(By.CSS_SELECTOR, "#fields textarea")
    page.execute_script("arguments[0].value = arguments[1]", area, text)  # send_keys knows no rare characters
    before = len(page.find_elements(By.CLASS_NAME, "answer"))
    area.send_keys(Keys.CONTROL, Keys.ENTER)
    until(page, lambda: len(page.find_elements(By.CLASS_NAME, "answer")) > before)
    return page.find_element(By.CLASS_NAME, "answer")


def no_overflow(page: Page) -> None:
    """Nothing is wider than the phone; a browser that zooms out to show it all says so by its width."""
    wide = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert max(wide) <= PHONE, wide


def no_complaints(page: Page) -> None:
    said = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not said, said


def test_examples_become_a_task_and_the_task_answers(page_open: Page) -> None:
    page = page_open
    until(page, lambda: len(Select(at(page, "sample")).options) > 1)
    Select(at(page, "sample")).select_by_value("gym-reviews")
    assert at(page, "name").get_attribute("value") == "gym-reviews"
    at(page, "check").send_keys(Keys.ENTER)
    until(page, lambda: at(page, "understood").is_displayed())
    assert "Classification" in at(page, "understood-line").text
    assert len(page.find_elements(By.CSS_SELECTOR, "#labels .track")) == 2
    shoot(page, "1-understood-en")
    at(page, "adapt").send_keys(Keys.ENTER)
    until(page, lambda: at(page, "result").is_displayed() and at(page, "card").is_displayed())
    assert re.fullmatch(r"\d+\.\d %", page.find_element(By.CLASS_NAME, "score").text)
    assert len(page.find_elements(By.CSS_SELECTOR, "#curve .dev-dot")) > 3
    assert len(page.find_elements(By.CSS_SELECTOR, "#curve rect")) == 2  # the stages
    assert Select(at(page, "task")).first_selected_option.text == "gym-reviews"
    assert len(page.find_elements(By.CSS_SELECTOR, "#heat tbody tr")) == 3
    assert len(page.find_elements(By.CSS_SELECTOR, "#similar .track")) == 2
    answer = type_and_ask(page, "教练很耐心，下次还来")
    assert len(answer.find_elements(By.CLASS_NAME, "track")) == 2
    page.find_element(By.CSS_SELECTOR, "#result summary").click()
    assert page.find_element(By.CSS_SELECTOR, "#result table").is_displayed()
    shoot(page, "2-done-en")
    at(page, "language").click()
    assert page.find_element(By.TAG_NAME, "html").get_attribute("lang") == "zh-CN"
    assert at(page, "make-title").text == "新建任务"
    shoot(page, "3-done-zh")
    size(page, PHONE, 740, mobile=True)
    no_overflow(page)
    shoot(page, "4-done-phone-zh")
    at(page, "language").click()
    no_overflow(page)
    shoot(page, "5-done-phone-en")
    no_complaints(page)


def test_an_answer_is_marked_in_its_text_and_a_wrong_file_explained(page_open: Page) -> None:
    page = page_open
    until(page, lambda: at(page, "card").is_displayed())
    Select(at(page, "task")).select_by_value("targets")
    until(page, lambda: at(page, "facts").text.count("Extraction"))
    text = "𠮷上海的咖啡店很好"  # the first character is two UTF-16 units: offsets count characters
    answer = type_and_ask(page, text)
    assert answer.find_element(By.TAG_NAME, "p").text == text
    mark = answer.find_element(By.TAG_NAME, "mark").text
    assert mark and mark == answer.find_element(By.TAG_NAME, "strong").text
    shoot(page, "6-extraction-en")
    at(page, "examples").send_keys("text,label\n好,好评\n坏\n")
    at(page, "check").click()
    until(page, lambda: at(page, "problems").is_displayed())
    assert "line 3" in at(page, "problems").text and not at(page, "adapt-form").is_displayed()
    shoot(page, "7-wrong-en")
    size(page, PHONE, 740, mobile=True)
    no_overflow(page)
    shoot(page, "8-wrong-phone-en")
    no_complaints(page)


def test_a_file_is_opened_and_a_task_downloaded_and_deleted(page_open: Page, tmp_path: Path) -> None:
    page = page_open
    until(page, lambda: at(page, "card").is_displayed())
    file = tmp_path / "Shop reviews.tsv"
    rows = "好吃，\t好评\n难吃,\t差评\n真香\t好评\n太咸\t差评\n"
    file.write_text(f"text\tlabel\n{rows * 4}", encoding="utf-8")
    at(page, "file").send_keys(str(file))
    until(page, lambda: at(page, "examples").get_attribute("value").startswith("text\tlabel"))
    assert at(page, "name").get_attribute("value") == "shop-reviews"
    at(page, "check").click()
    until(page, lambda: at(page, "adapt-form").is_displayed())
    assert "repeat" in at(page, "warnings").text
    file.write_bytes(f"text\tlabel\n{rows}".encode("gb18030"))
    at(page, "file").send_keys(str(file))
    until(page, lambda: "is not UTF-8" in at(page, "message").text)
    assert at(page, "examples").get_attribute("value").startswith("text\tlabel\n好吃")
    at(page, "examples").send_keys("x")  # what was understood is of what stood there before
    assert not at(page, "adapt-form").is_displayed() and not at(page, "understood").is_displayed()

    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    Select(at(page, "task")).select_by_value("reviews")
    until(page, lambda: at(page, "facts").text.count("made-router"))
    at(page, "download").click()
    until(page, (tmp_path / "reviews.zip").exists)
    assert "reviews/adapter.safetensors" in zipfile.ZipFile(tmp_path / "reviews.zip").namelist()

    at(page, "delete").click()
    page.switch_to.alert.accept()
    until(page, lambda: len(Select(at(page, "task")).options) == 2)
    no_complaints(page)


def test_everything_is_reached_by_keyboard(page_open: Page) -> None:
    page = page_open
    until(page, lambda: at(page, "card").is_displayed())
    reached = []
    for _ in range(20):
        ActionChains(page).send_keys(Keys.TAB).perform()
        element = page.switch_to.active_element
        reached.append(element.get_attribute("id") or element.get_attribute("class") or element.tag_name)
    assert reached[0] == "skip"
    for wanted in ("language", "examples", "file", "sample", "check", "task", "download", "answer"):
        assert wanted in reached, reached


def test_a_key_is_asked_for_and_kept_for_the_session(driver: Page, base: Base, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "anna")
    with in_thread(Settings(folder(base, tmp_path / "tasks"), str(base.path), keys=file), base) as (call, _):
        size(driver, 1100, 800)
        driver.get(f"http://127.0.0.1:{call.port}/")
        until(driver, lambda: at(driver, "key").is_displayed())
        assert not at(driver, "card").is_displayed()
        at(driver, "key").send_keys("mp2-anna-wrong", Keys.TAB)
        until(driver, lambda: at(driver, "message").is_displayed())
        at(driver, "key").clear()
        at(driver, "key").send_keys(secret, Keys.TAB)
        until(driver, lambda: at(driver, "card").is_displayed())
        driver.refresh()
        until(driver, lambda: at(driver, "card").is_displayed())
        driver.get("about:blank")


@pytest.fixture
def page_open(driver: Page, call: Client) -> Iterator[Page]:
    """The page in English on a desktop, freshly opened."""
    size(driver, 1100, 900)
    driver.get(f"http://127.0.0.1:{call.port}/")
    driver.execute_script("localStorage.setItem('mp2-language', 'en')")
    driver.get_log("browser")
    driver.refresh()
    yield driver
    driver.get("about:blank")
