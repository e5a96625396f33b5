"""The page of the audit: complete, self-contained, and safe to open whatever a file or a column is called."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxfer.data.appearance import appearance
from medxfer.data.audit import NAMED, Audit, Case, Finding, Predictor
from medxfer.data.collection import Collection
from medxfer.data.decoding import Settings
from medxfer.data.duplicates import Duplicates
from medxfer.data.manifest import Manifest
from medxfer.data.store import build_store
from medxfer.evaluation.audit_page import LISTED, SHOWN, audit_page, verdict

EVIL = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(params=[1, 3])
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Collection:
    rng = np.random.default_rng(0)
    names = tuple(f"{i}{EVIL.replace('/', '')}.png" for i in range(6))
    files = tuple(tmp_path / name for name in names)
    for file in files:
        Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(file)
    settings = Settings(request.param, 80, "pad")
    store, _ = build_store(
        files, folder=tmp_path / "s", settings=settings, on_unreadable="error", workers=1, progress=False
    )  # fmt: skip
    patients = np.array(list("aabbcc"))
    manifest = Manifest(names, files, np.array([0, 1] * 3), ("benign", EVIL), "binary", patients, None)
    splits = np.array(["train", "train", "val", "val", "test", "test"])
    return Collection(manifest, store, splits, [], Duplicates([], []))


def page(data: Collection, findings: list[Finding], predictors: list[Predictor] | None = None) -> tuple[str, Reader]:
    found = Audit(findings, predictors or [], appearance(data.manifest, data.pictures))
    text = audit_page(found, data, title=EVIL, seed=0)
    return text, Reader(text)


def test_it_refers_to_nothing_outside_and_runs_nothing(data):
    findings = [Finding("leak", "fatal", f"leak {EVIL}", [Case((0, 4), f"both {EVIL}")])]
    text, read = page(data, findings, [Predictor(EVIL, 0.7, 0.6, 0.8)])
    assert read.addresses
    assert all(address.startswith("data:image/") for address in read.addresses)
    assert not {"script", "iframe", "object", "link", "form"} & set(read.tags)
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert f"leak {EVIL}" in read.text
    assert f"both {EVIL}" in read.text


def test_the_verdict_the_counts_and_every_class_are_there(data):
    _, read = page(data, [])
    words = " ".join(read.text.split())
    assert "Fit for training; 0 warnings" in words
    assert "6 images of 3 patients · binary" in words
    assert "Nothing was found." in words
    assert "train 2 33.3% 1 1 1" in words
    assert "not a medical device" in words


def test_a_case_shows_its_images(data):
    text, _ = page(data, [Finding("leak", "fatal", "leak", [Case((1, 5), "pair")])])
    section = text[text.index('<section class="card fatal"') : text.index("</section>")]
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section)
    assert len(sources) == 2
    for row, source in zip((1, 5), sources, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB")).astype(float)
        stored = np.asarray(data.pictures.content(row)).astype(float)
        assert shown.shape[:2] == stored.shape[:2]
        assert np.abs(shown.mean() - stored.mean()) < 3


def test_of_a_case_with_many_images_those_that_it_names_are_shown(data):
    for case, shown in ((Case(tuple(range(6)) * 50, "copies", named=(2, 4)), 2), (Case((0,) * 300, "copies"), NAMED)):
        text, _ = page(data, [Finding("leak", "fatal", "leak", [case])])
        section = text[text.index('<section class="card fatal"') : text.index("</section>")]
        assert section.count("data:image/jpeg") == shown


def test_many_cases_are_folded_and_do_not_bloat_the_page(data):
    cases = [Case((0, 1), f"case {number}.") for number in range(LISTED + 500)]
    text, read = page(data, [Finding("leak", "fatal", "leak", cases)])
    assert f"{LISTED - SHOWN} more" in read.text
    assert read.text.count("case 7.") == 1
    assert len(text) < 5_000_000
    assert text.count("<details>") == text.count("</details>") == 1
    assert text.count("<div") == text.count("</div>")


@pytest.mark.parametrize(
    ("severities", "expected"),
    [
        ([], "Fit for training; 0 warnings"),
        (["warning"], "Fit for training; 1 warning"),
        (["fatal"], "Not fit for training: a result would be false, for 1 finding; 0 warnings besides"),
        (
            ["fatal", "fatal", "warning"],
            "Not fit for training: a result would be false, for 2 findings; 1 warning besides",
        ),
    ],
)
def test_the_verdict_counts(severities, expected):
    findings = [Finding("x", severity, "x") for severity in severities]
    assert verdict(Audit(findings, [], None)) == expected


def test_names_that_matplotlib_would_read_are_drawn(data):
    named = replace(data, manifest=replace(data.manifest, class_names=("_hidden", "a$b$c^{")))
    page(named, [], [Predictor("cost_$_per_$_day", 0.7, 0.6, 0.8), Predictor("_x" * 40, 0.6, 0.5, 0.7)])
