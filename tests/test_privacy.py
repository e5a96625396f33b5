"""Marked words in everything that could name a patient, a file or a user: where do they turn up after a full run?"""

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless

import medxfer
from medxfer.config import TrackingConfig
from medxfer.data.phantoms import write_xray_phantoms
from medxfer.data.reading import read_image
from medxfer.errors import ConfigError, DataError
from medxfer.tracking.mlflow_run import build_run
from tests.conftest import training_command

MARK = "zqmarked"
"""How every word begins."""

WORDS = {
    name: f"{MARK}{name.replace(' ', '')}qz"
    for name in (
        "file name", "image folder", "patient id", "csv folder", "csv header", "csv cell",
        "exif description", "exif artist", "exif comment", "png text", "png compressed text", "tiff artist",
        "dicom patient name", "dicom patient id", "dicom institution", "dicom study", "dicom private",
        "user", "host", "secret",
    )
}  # fmt: skip
"""What is marked → the word that stands there and nowhere else."""

# A machine and a user of our own making: libraries ask for both in many ways.
SITE = f"""
import os, platform, pwd, socket
name = {WORDS["host"]!r}
socket.gethostname = socket.getfqdn = platform.node = lambda *_: name
uname = os.uname()
os.uname = lambda: os.uname_result((uname.sysname, name, uname.release, uname.version, uname.machine))
found = pwd.getpwuid(os.getuid())
pwd.getpwuid = lambda _: pwd.struct_passwd(({WORDS["user"]!r}, *found[1:5], os.environ["HOME"], found[6]))
"""


VERBS = """
import importlib, json, sys
for verb, arguments in json.loads(sys.argv[1]).items():
    code = importlib.import_module(f"medxfer.{verb}").main(arguments)
    if code:
        sys.exit(code)
"""


def encodings(word: str) -> list[bytes]:
    """Return a word as text, and as Windows, NumPy and DICOM may keep it."""
    return [word.encode(), word.upper().encode(), word.encode("utf-16-le"), word.encode("utf-32-le")]


def words_in(content: bytes) -> set[str]:
    if not any(form in content for form in encodings(MARK)):  # most of it is hundreds of megabytes of numbers
        return set()
    return {name for name, word in WORDS.items() if any(form in content for form in encodings(word))}


@dataclass(frozen=True)
class Place:
    """The folders of one test, and the environment of its processes."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / WORDS["user"]

    @property
    def output(self) -> Path:
        return self.home / "out"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"

    def make(self) -> "Place":
        for folder in (self.home, self.work, self.temporary, self.root / "site"):
            folder.mkdir(parents=True)
        (self.root / "site" / "sitecustomize.py").write_text(SITE)
        return self

    def run(self, **verbs: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run verbs one after the other in a process of their own, as their command lines would."""
        package = Path(medxfer.__file__).parents[1]
        user, host = WORDS["user"], WORDS["host"]
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": f"{self.root / 'site'}:{package}", "OMP_NUM_THREADS": "1",
            "HOME": str(self.home), "TMPDIR": str(self.temporary), "LOGNAME": user, "USER": user, "USERNAME": user,
            "HOSTNAME": host, "HOST": host, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", VERBS, json.dumps(verbs)]
        return subprocess.run(command, cwd=self.work, env=environment, capture_output=True, timeout=300)


def mark_dicom(dataset: pydicom.Dataset) -> pydicom.Dataset:
    dataset.PatientName = WORDS["dicom patient name"]
    dataset.PatientID = WORDS["dicom patient id"]
    dataset.InstitutionName = WORDS["dicom institution"]
    dataset.StudyDescription = WORDS["dicom study"]
    block = dataset.private_block(0x0011, WORDS["dicom private"], create=True)
    block.add_new(1, "LO", WORDS["dicom private"])
    return dataset


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E], tags[0x013B] = WORDS["exif description"], WORDS["exif artist"]
    tags.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + WORDS["exif comment"].encode()
    return tags


def png_text() -> PngInfo:
    text = PngInfo()
    text.add_text("Comment", WORDS["png text"])
    text.add_itxt("Patient", WORDS["png compressed text"], zip=True)
    return text


def write_collection(folder: Path, *, patients: int, seed: int) -> Path:
    """Write phantoms as PNG, JPEG, TIFF and DICOM with a word in every place that can hold one."""
    plain = write_xray_phantoms(folder / "plain", patients=patients, size_px=96, seed=seed)
    images = folder / WORDS["csv folder"] / WORDS["image folder"]
    images.mkdir(parents=True)
    rows = []
    with plain.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            original = plain.parent / row["path"]
            name = f"{WORDS['file name']}{number}"
            if original.suffix == ".dcm":
                target = images / f"{name}.dcm"
                mark_dicom(pydicom.dcmread(original)).save_as(target)
            else:
                picture = Image.open(original)
                kind = ("png", "jpg", "tif")[number % 3]
                target = images / f"{name}.{kind}"
                if kind == "png":
                    picture.save(target, pnginfo=png_text(), exif=exif())
                elif kind == "jpg":
                    Image.fromarray((np.asarray(picture) / np.asarray(picture).max() * 255).astype(np.uint8)).save(
                        target, exif=exif(), comment=WORDS["png text"]
                    )
                else:
                    picture.save(target, tiffinfo={0x013B: WORDS["tiff artist"]})
            cells = [row["label"], f"{WORDS['patient id']}{seed}-{row['patient_id']}", WORDS["csv cell"]]
            rows.append([f"{WORDS['image folder']}/{target.name}", *cells])
    shutil.rmtree(plain.parent)
    table = folder / WORDS["csv folder"] / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "patient_id", WORDS["csv header"]], *rows])
    return table


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all below a folder: files, parts of archives, texts of pictures, columns of tables."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        yield f"the name of {name}", name.encode()
        if path.is_dir():
            continue
        if path.name.startswith("mlflow.db"):
            yield from columns(path, "mlflow.db")
            continue
        yield name, path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for part in archive.namelist():
                    yield f"{name}:{part}", part.encode() + archive.read(part)
        if path.suffix == ".png":
            with Image.open(path) as picture:
                yield f"{name}:metadata", repr((picture.info, dict(picture.getexif()))).encode()


def columns(database: Path, name: str) -> Iterator[tuple[str, bytes]]:
    with sqlite3.connect(database) as connection:
        tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            cursor = connection.execute(f'select * from "{table}"')
            rows = cursor.fetchall()
            for number, column in enumerate(cursor.description):
                yield f"{name}:{table}.{column[0]}", repr([row[number] for row in rows]).encode()
    connection.close()


# Words → where they may stand, and why. A place is a pattern for its whole name.
ALLOWED = [
    # the files that say which image is meant, of a run and of an evaluation; they stay with the user
    ({"file name", "image folder"}, r"run/split\.csv|run/(evaluations/labels/)?predictions\.csv|run/audit\.json"),
    ({"patient id"}, r"run/split\.csv"),
    # predict repeats the paths that it was given
    ({"file name", "image folder", "csv folder", "user"}, r"predictions of predict"),
    # the run's own config says where the labels are and where it writes, run.json where the store is
    ({"csv folder", "user", "secret"}, r"run/config\.yaml"),
    ({"user", "secret"}, r"run/run\.json"),
    # where MLflow keeps the files of a run
    ({"user"}, r"mlflow\.db:(experiments\.artifact_location|runs\.artifact_uri)"),
    # the commands that come next, and where all files are
    ({"user"}, r"stdout"),
    # SQLite takes the query of the store's address, in which this test has a secret, for a part of the file's name
    ({"secret"}, r"the name of \.?mlflow\.db.*"),
    # torch's own folder for compiled code, beside the temporary files of all users
    ({"user"}, r"the name of torchinductor_.*"),
]


def leaks(places: Iterable[tuple[str, bytes]]) -> list[str]:
    found = []
    for name, content in places:
        words = words_in(content)
        for allowed, where in ALLOWED:
            if re.fullmatch(where, name):
                words -= allowed
        found.extend(f"{word} in {name}" for word in sorted(words))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("privacy")).make()


@pytest.fixture(scope="module")
def outputs(place: Place, source: Path) -> dict[str, bytes]:
    """What training, evaluation and prediction say; their files are below `place.output`."""
    table = write_collection(place.root / "training", patients=20, seed=0)
    others = write_collection(place.root / "others", patients=10, seed=1)
    store = f"sqlite:///{place.output / 'mlflow.db'}?uri=true&token={WORDS['secret']}"
    training = training_command(place.output, table, source, tracking__uri=store, stages__head_epochs=0, debug="false")
    run = ["--run", str(place.output / "run"), "--accelerator=cpu"]
    done = place.run(
        train=training,
        evaluate=[*run, "--data.source", str(others), "--data.num_workers=0"],
        predict=[*run, str(others.parent), "--num_workers=0", "--output", str(place.work / "predictions.csv")],
    )
    assert done.returncode == 0, done.stderr.decode()
    assert all(text in done.stdout for text in (b"auroc", b"evaluations/labels", b"images predicted, 0 unreadable"))
    return {"stdout": done.stdout, "stderr": done.stderr}


@pytest.fixture(scope="module")
def marked(place: Place, outputs: dict[str, bytes]) -> dict[str, bytes]:
    """Everything below the output folder that holds a word."""
    return {name: content for name, content in contents(place.output) if words_in(content)}


def test_the_search_finds_a_word_wherever_it_may_hide(tmp_path):
    """Without this, all that follows could pass because nothing is found."""
    word = WORDS["patient id"]
    np.save(tmp_path / "array.npy", np.array([word]))
    Image.new("L", (4, 4)).save(
        tmp_path / "figure.png", pnginfo=(lambda i: i.add_itxt("a", word, zip=True) or i)(PngInfo())
    )
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", f"{word} " * 9)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table tags (value text)")
        connection.execute("insert into tags values (?)", (word,))
    connection.close()
    (tmp_path / f".{word}").mkdir()
    found = leaks(contents(tmp_path))
    places = ("array.npy", "figure.png:metadata", "a.ckpt:archive/data.pkl", "mlflow.db:tags.value", "the name of")
    assert all(any(f"patient id in {name}" in leak for leak in found) for name in places)


def test_the_collection_holds_every_word(place, outputs):
    found = set().union(*(words_in(content) for _, content in contents(place.root / "training")))
    assert set(WORDS) - found == {"user", "host", "secret"}  # which are in the environment and on the command line


def test_no_word_is_left_in_the_files_of_a_run(marked):
    assert leaks(marked.items()) == []


def test_no_word_is_said(outputs):
    secret = WORDS["secret"].encode()
    assert leaks((name, content.replace(secret, b"")) for name, content in outputs.items()) == []


def test_no_secret_is_said(outputs):
    assert leaks(outputs.items()) == []


def test_the_user_is_named_only_by_the_path_of_the_output_folder(place, outputs, marked):
    given = str(place.output).encode()
    for name, content in {**outputs, **marked}.items():
        assert "user" not in words_in(content.replace(given, b"")), name


def test_the_tags_of_user_and_script_are_blank(place, outputs):
    (store,) = place.output.glob("mlflow.db*")
    with sqlite3.connect(store) as connection:
        query = "select key, value from tags where key in ('mlflow.user', 'mlflow.source.name')"
        tags = connection.execute(query).fetchall()
    connection.close()
    assert sorted(tags) == 2 * [("mlflow.source.name", "medxfer")] + 2 * [("mlflow.user", "")]


def test_nothing_is_left_elsewhere(place, outputs):
    """Not in the working directory, the folder of temporary files, or what libraries keep in the user's home."""
    predictions = place.work / "predictions.csv"
    assert [path.name for path in place.work.iterdir()] == [predictions.name]
    assert leaks([("predictions of predict", predictions.read_bytes())]) == []
    assert leaks(contents(place.temporary)) == []
    assert leaks(entry for other in place.home.iterdir() if other != place.output for entry in contents(other)) == []


def broken_files(folder: Path) -> None:
    """Write files of all kinds that cannot be read, each with a word in it; their names say what is wrong."""
    original = folder / "original.dcm"
    plain = write_xray_phantoms(folder / "plain", patients=8, size_px=96)
    shutil.copy(next(plain.parent.rglob("*.dcm")), original)
    shutil.rmtree(plain.parent)

    def dicom(name: str, **tags: object) -> None:
        dataset = mark_dicom(pydicom.dcmread(original))
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{name}.dcm")

    dicom("short", PixelData=b"\0" * 100)
    dicom("empty", PixelData=b"")
    dicom("frames", NumberOfFrames=3)
    dicom("bits", BitsAllocated=7)
    dicom("samples", SamplesPerPixel=9)
    dicom("large", Rows=65535, Columns=65535)
    for syntax in (JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000, RLELossless):
        dataset = mark_dicom(pydicom.dcmread(original))
        dataset.PixelData = encapsulate([b"\xff\xd8\xff" + WORDS["dicom private"].encode() * 20])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(folder / f"{syntax.keyword}.dcm")
    whole = (folder / "frames.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[: whole.index(WORDS["dicom study"].encode()) + 5])
    (folder / "rows.dcm").write_bytes(whole.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00LO"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96), dtype=np.uint8))
    picture.save(folder / "cut.png", pnginfo=png_text(), exif=exif())
    picture.save(folder / "cut.jpg", exif=exif())
    picture.save(folder / "cut.tif", tiffinfo={0x013B: WORDS["tiff artist"]})
    picture.save(folder / "cut.webp", exif=exif())
    for path in folder.glob("cut.[pjtw]*"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text(" ".join(WORDS.values()))
    original.unlink()


def train_on(place: Place, folder: Path, source: Path) -> str:
    """Train on all files of a folder and return what went to stderr and stdout."""
    names = sorted(path.name for path in folder.iterdir())
    rows = [["path", "label"], *([name, "ab"[number % 2]] for number, name in enumerate(names))]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    done = place.run(train=training_command(place.output, folder / "labels.csv", source, debug="false"))
    text = (done.stderr + done.stdout).decode()
    assert done.returncode == 2, text
    assert "Traceback" not in text
    assert f"error: {len(names)} of {len(names)} images cannot be read" in text
    assert all(name in text for name in names)
    return text


def test_an_unreadable_file_is_named_and_nothing_of_its_content(tmp_path, source):
    place = Place(tmp_path / "place").make()
    folder = tmp_path / "broken"
    folder.mkdir()
    broken_files(folder)
    text = train_on(place, folder, source)
    assert words_in(text.replace(str(place.output), "").encode()) == set()
    assert leaks(contents(place.output)) == []
    assert leaks(contents(place.temporary)) == []


@pytest.mark.parametrize("keyword", ["PhotometricInterpretation", "PixelRepresentation"])
def test_an_unreadable_dicom_file_is_told_without_the_value_of_its_image_tags(tmp_path, keyword):
    plain = write_xray_phantoms(tmp_path / "plain", patients=6, size_px=96)
    dataset = pydicom.dcmread(next(plain.parent.rglob("*.dcm")))
    del dataset[keyword]
    dataset.add_new(keyword, "LO", WORDS["dicom private"])
    dataset.save_as(tmp_path / "film.dcm")
    with pytest.raises(DataError, match=r"film\.dcm") as caught:
        read_image(tmp_path / "film.dcm", channels=1)
    assert words_in(str(caught.value).encode()) == set()


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:{}@127.0.0.1:9", "postgresql://ann:{}@host/db?password={}", "mysql+pymysql://ann:se@{}@host/db",
        "sqlite:////proc/none/mlflow.db?token={}",
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_used_is_told_without_its_secrets(tmp_path, monkeypatch, caplog, capfd, uri):
    _assert_no_secret(uri, tmp_path, monkeypatch, caplog, capfd)


@pytest.mark.parametrize("uri", ["http://ann:se@{}@127.0.0.1:9", "http://127.0.0.1:9/?token={}", "http://a:se/{}@host"])
def test_a_store_that_cannot_be_used_is_told_without_its_unusual_secrets(tmp_path, monkeypatch, caplog, capfd, uri):
    _assert_no_secret(uri, tmp_path, monkeypatch, caplog, capfd)


def _assert_no_secret(uri, tmp_path, monkeypatch, caplog, capfd) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(uri=uri.replace("{}", WORDS["secret"]))
    with pytest.raises(ConfigError) as caught:
        build_run(config, output_dir=tmp_path, name="run")
    for text in (str(caught.value), caplog.text, *capfd.readouterr()):
        assert WORDS["secret"] not in text
