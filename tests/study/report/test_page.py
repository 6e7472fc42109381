"""The page as markup, and the page in a browser."""

import base64
import html.parser
import json
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from xml.etree import ElementTree

import pytest

from hushgrad.study.report.document import PRIVATE, Document, Section, TextTable
from hushgrad.study.report.files import CARD, PAGE, write_report
from hushgrad.study.report.render import html as html_page
from hushgrad.study.report.render import markdown

HOSTILE = "<script>document.title='hacked'</script>\"><img src=x onerror=alert(1)> {{7*7}} [x](javascript:1) `|\x1b]0;x"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Elements(html.parser.HTMLParser):
    """Counts elements and keeps attributes and text."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text.append(data)


def hostile_document(text):
    table = TextTable((text, text), ((text, text),))
    section = Section(text, (text,), ((text, text),), table, (text,), (("hushgrad report", text),))
    return Document(text, PRIVATE, ((text, text),), (section,))


def parsed(page):
    elements = Elements()
    elements.feed(page)
    return elements


def test_no_name_label_or_sentence_of_a_report_can_become_markup_or_script_of_its_page():
    """Guarantee: no name, label or sentence of a report can become markup or script of its page."""
    tame, hostile = parsed(html_page(hostile_document("name"))), parsed(html_page(hostile_document(HOSTILE)))
    assert hostile.names == tame.names
    assert [(tag, name) for tag, name, _ in hostile.attributes] == [(tag, name) for tag, name, _ in tame.attributes]
    assert not {"script", "iframe", "object", "link rel=stylesheet"} & set(hostile.names)
    assert HOSTILE in "".join(hostile.text)


def test_the_policy_allows_the_pages_own_style_and_inner_pictures_and_nothing_else():
    page = html_page(hostile_document("name"))
    said = next(value for tag, name, value in parsed(page).attributes if name == "content" and "default-src" in value)
    rules = dict(rule.strip().split(" ", 1) for rule in said.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert set(rules) == {"default-src", "style-src", "img-src", "base-uri", "form-action"}
    assert "unsafe" not in said


def test_the_card_keeps_hostile_text_text():
    card = markdown(hostile_document(HOSTILE))
    assert "\x1b" not in card
    assert "<script>" not in card
    own = card.replace("`hushgrad report`", "")
    assert re.search(r"(?<!\\)[<`|\[]", re.sub(r"^\|.*\|$", "", own, flags=re.MULTILINE)) is None
    for line in card.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_the_card_shows_commands_and_numbers_as_they_are_typed():
    text = "(1, 2)-private at δ = 1e-05 (see --no-baseline), 1e+06 a_b -- c\n- d | `--x` --`a`"
    section = Section("S", (text,), commands=(("hushgrad report --check FOLDER", "recomputes `all`"),))
    lines = markdown(Document("t", PRIVATE, (), (section,))).splitlines()
    assert lines[5:] == [
        r"(1, 2)-private at δ = 1e-05 (see `--no-baseline`), 1e+06 a\_b \-\- c \- d \| \`\-\-x\` \-\-\`a\`",
        "",
        r"`hushgrad report --check FOLDER` recomputes \`all\`",
    ]


def test_pictures_of_a_hostile_label_hold_no_script(sweep_folder, tmp_path):
    write_report(sweep_folder, tmp_path)
    page = (tmp_path / PAGE).read_text()
    pictures = [base64.b64decode(found) for found in re.findall(r"svg\+xml;base64,([A-Za-z0-9+/=]+)", page)]
    assert len(pictures) == 2
    for picture in pictures:
        elements = list(ElementTree.fromstring(picture).iter())
        assert len(elements) > 100
        assert not any(element.tag.rpartition("}")[2] in ("script", "foreignObject", "image") for element in elements)
        assert not any(name.startswith("on") for element in elements for name in element.attrib)
    assert "<script" not in page
    assert "<script" not in (tmp_path / CARD).read_text()


class Recorder(BaseHTTPRequestHandler):
    """Serves one page and records every request."""

    def do_GET(self):
        self.server.asked.append(self.path)
        found = self.path == "/report"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.server.page if found else b"")

    def log_message(self, *arguments):
        """Say nothing."""


def in_browser(page, tmp_path, *arguments):
    """Open a page served from this machine; return (output, what the browser logged, paths requested)."""
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    server.page, server.asked = page.encode(), []
    Thread(target=server.serve_forever, daemon=True).start()
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}",
        *arguments,
        f"http://127.0.0.1:{server.server_port}/report",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, server.asked


@pytest.fixture(scope="module")
def _browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page was not opened in a browser")


@pytest.mark.usefixtures("_browser")
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_browser_renders_the_page_without_errors_requests_or_scripts(kind, run_folder, sweep_folder, tmp_path):
    folder = run_folder if kind == "run" else sweep_folder
    write_report(folder, tmp_path / "out")
    page = (tmp_path / "out" / PAGE).read_text()
    shown, console, asked = in_browser(page, tmp_path, "--dump-dom")
    assert console == []
    assert asked == ["/report"]
    assert "<title>&lt;script&gt;" in shown or "<title>sweep &lt;script&gt;" in shown
    assert "hacked</title>" not in shown
    assert "<h2>" in shown


@pytest.mark.usefixtures("_browser")
def test_the_browser_test_would_notice_an_error_and_a_request(tmp_path):
    page = "<!doctype html><script>console.error('x')</script><img src=/missing.png>"
    _, console, asked = in_browser(page, tmp_path, "--dump-dom")
    assert console
    assert "/missing.png" in asked


@pytest.mark.usefixtures("_browser")
def test_the_policy_stops_a_script_that_got_in(run_folder, tmp_path):
    write_report(run_folder, tmp_path / "out")
    page = (tmp_path / "out" / PAGE).read_text().replace("</main>", "<script>document.title='hacked'</script></main>")
    shown, console, _ = in_browser(page, tmp_path, "--dump-dom")
    assert "hacked</title>" not in shown
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.usefixtures("_browser")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_fits_wide_and_narrow_screens(width, run_folder, tmp_path):
    """Nothing but tables and pictures, which scroll by themselves, is wider than the screen."""
    write_report(run_folder, tmp_path / "out")
    page = (tmp_path / "out" / PAGE).read_text()
    probe = (
        "<script>addEventListener('load',()=>{document.title=JSON.stringify([document.documentElement.scrollWidth,"
        "innerWidth,[...document.images].every(i=>i.complete&&i.naturalWidth>0),"
        "performance.getEntriesByType('resource').filter(e=>!e.name.startsWith('data:')).length])})</script></main>"
    )
    # The probe may run only without the policy, which the other tests look at.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</main>", probe)
    shown, *_ = in_browser(page, tmp_path, "--dump-dom", f"--window-size={width},900")
    scroll, inner, drawn, requests = json.loads(re.search(r"<title>(.*?)</title>", shown).group(1))
    assert scroll <= inner
    assert drawn
    assert requests == 0
