"""The page in a real browser: it asks for nothing, fits, can be read, and its controls do what they say."""

import base64
import re

import pytest
from browser import CHROMIUM, Browser
from measured_plans import as_large, prefills, with_curve

from indexcache.search.plan.file import read_plan
from indexcache.search.report.pages import render

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

# Of each text on the page the contrast with what is behind it, by the formula of WCAG 2.
CONTRAST = """(() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (colour) => parse(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (parse(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const seen = walker.currentNode.data.trim() && element.getClientRects().length;
    if (!seen || element.closest("script, style, title, desc, :disabled")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) faint.add(`${walker.currentNode.data.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return Array.from(faint);
})()"""
OUTSIDE = """Array.from(document.querySelectorAll("body *"))
  .filter((element) => !element.closest(".wide, pre, .heard, .skip, script") && element.getClientRects().length)
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
  .map((element) => element.tagName + "." + element.getAttribute("class"))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(searched, tmp_path_factory):
    plan = read_plan(searched / "plan.json")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(plan, prefills=prefills(plan), checks=with_curve(plan))["report.html"], "utf-8")
    return path


def unexpected(browser, page):
    """What the page said on the console, and what it asked for beside itself."""
    said = browser.of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    return said, [url for url in asked if url != page.as_uri()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1440])
def test_it_fits_says_nothing_and_can_be_read(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert unexpected(browser, page) == ([], [])
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(OUTSIDE) == []
    assert browser.value(CONTRAST) == []
    # The plan's marker lies within the picture that is shown.
    marker, picture = browser.value(
        """[".marker text", ""].map((inside) => {
          const pictures = Array.from(document.querySelectorAll("#loss svg"));
          const svg = pictures.find((one) => one.getClientRects().length);
          const box = (inside ? svg.querySelector(inside) : svg).getBoundingClientRect();
          return [box.left, box.right];
        })"""
    )
    assert picture[0] <= marker[0] < marker[1] <= picture[1]
    smallest = browser.value(
        """Math.min(...Array.from(document.querySelectorAll("#loss svg text"))
          .filter((text) => text.getClientRects().length).map((text) => text.getBoundingClientRect())
          .map((box) => Math.min(box.width, box.height)))"""
    )
    assert smallest >= 5, "the picture's text is too small to be read"


def test_both_themes_differ(browser, page):
    shades = []
    for dark in (False, True):
        browser.open(page, 1440, dark=dark)
        shades.append(browser.value("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(set(shades)) == 2, f"both are {shades[0]}"


def test_the_slider_moves_verdict_settings_strip_and_marker(browser, page, searched):
    plan = read_plan(searched / "plan.json")
    browser.open(page)
    before = browser.value("[...document.querySelectorAll('.engine code')].map((code) => code.textContent)")
    browser.value(
        """(() => {
          const slider = document.getElementById("budget");
          slider.value = 0;
          slider.dispatchEvent(new Event("input"));
        })()"""
    )
    seen = browser.value(
        """({
          sentence: document.getElementById("sentence").textContent,
          strip: [...document.querySelectorAll(".strip li b")].map((letter) => letter.textContent).join(""),
          marker: document.querySelector(".marker text").textContent,
          valued: document.getElementById("budget").getAttribute("aria-valuetext"),
          letters: document.getElementById("letters").textContent,
          settings: [...document.querySelectorAll(".engine code")].map((code) => code.textContent),
        })"""
    )
    assert seen["sentence"] == "Keeps 8 of 8 indexers."
    assert (seen["strip"], seen["letters"]) == ("F" * 8, "F" * 8)
    assert (seen["marker"], seen["valued"]) == ("8 of 8 kept", "8 of 8 indexers kept")
    assert all(old != new for old, new in zip(before, seen["settings"], strict=True))
    browser.value("document.getElementById('back').click()")
    assert browser.value("document.getElementById('letters').textContent") == plan.result.layer_pattern
    after = browser.value("[...document.querySelectorAll('.engine code')].map((code) => code.textContent)")
    assert after == before, "the way back does not end where it began"


def test_tabs_are_tabs_and_the_copy_button_says_what_it_did(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('.engine')].filter((panel) => !panel.hidden).map((panel) => panel.id)"
    assert len(browser.value(shown)) == 1
    browser.value("document.querySelector('[role=tab][aria-selected=true]').focus()")
    first = browser.value(shown)
    browser.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    assert browser.value(shown) != first, "an arrow key does not go to the next tab"
    assert browser.value("document.activeElement.getAttribute('aria-selected')") == "true"
    said = browser.value(
        """new Promise((done) => {
          const panel = document.querySelector(".engine:not([hidden])");
          const words = panel.querySelector(".copied");
          new MutationObserver(() => done(words.textContent)).observe(words, { childList: true });
          panel.querySelector(".copy").click();
        })"""
    )
    assert said == "Copied" or said.startswith("Could not copy")


def test_without_its_script_everything_stands_there(browser, page):
    browser.open(page, script=False)
    tree = browser.send("Accessibility.getFullAXTree")["nodes"]
    names = [(node.get("role", {}).get("value"), node.get("name", {}).get("value")) for node in tree]
    headings = [name for role, name in names if role == "heading"]
    assert {"Verdict", "vLLM", "SGLang", "Removal order"} <= set(headings), "without a script parts are missing"
    assert not [name for role, name in names if role == "slider"], "a slider that does nothing is shown"
    assert not [name for role, name in names if role in ("image", "img", "figure", "button") and name == ""]
    assert any(role in ("image", "img") and "Loss increase" in name for role, name in names)


def test_pictures_are_taken(browser, page):
    """What is seen is no empty page: many colours, in both themes and at both widths."""
    for width, dark in ((390, False), (1440, True)):
        browser.open(page, width, dark=dark)
        data = browser.send("Page.captureScreenshot", format="png")["data"]
        assert len(base64.b64decode(data)) > 20_000, f"at {width} pixels hardly anything is seen"


def test_hostile_names_do_nothing(browser, searched, tmp_path):
    evil = "</script><img src=x onerror=\"document.title='owned'\"><!--"
    plan = read_plan(searched / "plan.json")
    named = plan.model_copy(update={"model": plan.model.model_copy(update={"id": evil})})
    path = tmp_path / "report.html"
    path.write_text(render(named)["report.html"], "utf-8")
    browser.open(path)
    assert unexpected(browser, path) == ([], [])
    assert browser.value("document.title") == f"indexcache plan for {evil}"
    assert browser.value("document.querySelectorAll('img').length") == 0


def test_a_tap_on_a_mark_says_its_values_on_a_phone_too(browser, page):
    browser.open(page, 390)
    said = browser.value(
        """(() => {
          const svg = document.querySelector("#loss svg.narrow");
          svg.querySelector(".searched .marks > *").dispatchEvent(new MouseEvent("click", { bubbles: true }));
          return document.querySelector("#loss .readout").textContent;
        })()"""
    )
    assert re.fullmatch(r"searched.*, \d of 8 kept: [+-]\d\.\d{4} \(.+ to .+\)", said), said


@pytest.mark.parametrize(("sites", "most"), [(8, 100_000), (47, 150_000)])
def test_pages_stay_small(searched, sites, most):
    plan = read_plan(searched / "plan.json")
    page = render(plan if sites == 8 else as_large(plan, sites))["report.html"]
    assert len(page.encode()) < most
    assert not re.search(r"https?://(?!localhost)", page), "the page names a place elsewhere"
