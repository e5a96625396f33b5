"""The commands and the tree of the README, and the recipes of data/README.md."""

import hashlib
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medxfer import train
from medxfer.data.dicom_files import write_dicom
from medxfer.data.manifest import read_manifest
from medxfer.data.phantoms import write_xray_phantoms
from medxfer.models import weights as sources
from medxfer.models.inception import InceptionBackbone

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
DATA_README = (PROJECT / "data" / "README.md").read_text()

QUICK = (
    "--data.image_size_px=75", "--data.batch_size=16", "--stages.head_epochs=0", "--stages.finetune_epochs=1",
    "--model.freeze_until=Mixed_7b", "--trainer.accelerator=cpu",
)  # fmt: skip


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


MEDXFER = [line for line in dict.fromkeys(commands(README)) if line.startswith("python -m medxfer.")]


@pytest.fixture
def project(tmp_path, monkeypatch, finished, source):
    """A working directory like a user's: the configs, two collections, a finished run, and a server of weights."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    shutil.copytree(finished, tmp_path / "runs/NAME")
    for folder, table in ((".", "labels.csv"), ("others", "other_hospital.csv")):
        written = write_xray_phantoms(tmp_path / "new" / folder, patients=24, size_px=80, seed=len(table))
        shutil.move(written.parent / "images", tmp_path / folder / "images" if folder == "." else tmp_path / folder)
        rows = pd.read_csv(written)
        rows["path"] = rows["path"] if folder == "." else rows["path"].str.replace("images/", "others/")
        rows.assign(lesion_id=rows["path"]).to_csv(tmp_path / table, index=False)
    (tmp_path / "dicom_folder").mkdir()
    write_dicom(tmp_path / "dicom_folder" / "film", np.zeros((8, 8), np.uint16), patient_id="1")
    published = tmp_path / "published.pth"
    torch.save(InceptionBackbone().state_dict(), published)
    digest = hashlib.sha256(published.read_bytes()).hexdigest()

    def download(url: str, place: str, **_: object) -> None:
        shutil.copy(published, place)

    monkeypatch.setattr(sources, "IMAGENET_URL", f"https://example.invalid/inception_v3_google-{digest[:8]}.pth")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", MEDXFER)
def test_the_commands_run(project, source, command):
    if "weights show" in command:
        sources.fetch_imagenet()
    verb, *arguments = shlex.split(command.removeprefix("python -m medxfer."))
    arguments = ["images" if argument.startswith("IMAGE_OR_FOLDER") else argument for argument in arguments]
    if "--resume" in arguments:  # a run of its own: it goes on in the MLflow run too
        shutil.rmtree("runs/NAME")
        begun = ["--data.source=labels.csv", "--tracking.run_name=NAME", f"--model.weights={source}", *QUICK]
        assert train.main(begun) == 0
        arguments += ["--stages.finetune_epochs=2"]
    elif verb == "train":
        arguments += [*QUICK, f"--model.weights={source}"]
    assert importlib.import_module(f"medxfer.{verb}").main(arguments) == 0


def test_every_verb_has_a_command():
    assert {re.match(r"python -m medxfer\.(\w+)", line).group(1) for line in MEDXFER} == {
        "train", "evaluate", "predict", "check", "weights",
    }  # fmt: skip


def test_make_targets_exist_and_the_first_command_comes_early():
    makefile = (PROJECT / "Makefile").read_text()
    targets = [line.split()[1] for line in commands(README) if line.startswith("make ")]
    assert targets[0] == "demo"
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert next(i for i, line in enumerate(README.splitlines(), 1) if line == "make demo") < 25


def test_the_tree_names_every_module():
    tree = README[README.index("medxfer/\n") :]
    modules = [path for path in (PROJECT / "medxfer").rglob("*.py") if path.name != "__init__.py"]
    for module in modules:
        name = module.stem if module.parent.name == "callbacks" else module.name
        assert re.search(rf"\b{re.escape(name)}\b", tree), module


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)


def _nih() -> None:
    pd.DataFrame(
        {
            "Image Index": ["00000001_000.png", "00000001_001.png", "00000002_000.png", "absent.png"],
            "Finding Labels": ["Cardiomegaly|Effusion", "Pneumonia", "No Finding", "Effusion"],
            "Patient ID": [1, 1, 2, 3],
        }
    ).to_csv("Data_Entry_2017.csv", index=False)
    for number, name in enumerate(("00000001_000", "00000001_001", "00000002_000"), 1):
        _picture(Path(f"images_00{number}/images/{name}.png"))


def _kermany() -> None:
    for name in (
        "train/NORMAL/IM-0115-0001.jpeg", "test/NORMAL/NORMAL2-IM-0115-0002.jpeg",
        "train/PNEUMONIA/person7_bacteria_24.jpeg", "test/PNEUMONIA/person7_virus_25.jpeg",
    ):  # fmt: skip
        _picture(Path("chest_xray") / name)


def _isic() -> None:
    rows = {"image_name": ["A", "B"], "patient_id": ["p", "q"], "benign_malignant": ["benign", "malignant"]}
    pd.DataFrame(rows).to_csv("ISIC_2020_Training_GroundTruth.csv", index=False)
    for name in ("A", "B"):
        _picture(Path(f"train/{name}.jpg"))


def _ham() -> None:
    rows = {"lesion_id": ["l", "l", "m"], "image_id": ["I1", "I2", "I3"], "dx": ["nv", "nv", "mel"]}
    pd.DataFrame(rows).to_csv("HAM10000_metadata.csv", index=False)
    for part, name in ((1, "I1"), (1, "I2"), (2, "I3")):
        _picture(Path(f"HAM10000_images_part_{part}/{name}.jpg"))


def _ph2() -> None:
    rows = ["|| IMD003 ||  || 0 || 0 ||", "|| IMD035 || || 1 || 1 ||", "|| IMD058 || melanoma || 2 || 0 ||"]
    header = "|| Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry ||"
    Path("PH2_dataset.txt").write_text("\n".join([header, *rows]))
    for name in ("IMD003", "IMD035", "IMD058"):
        _picture(Path(f"PH2 Dataset images/{name}/{name}_Dermoscopic_Image/{name}.bmp"))


RECIPES = re.findall(r"### ([^\n]+)\n.*?```python\n(.*?)```(.*?)(?=\n### |\Z)", DATA_README, re.DOTALL)
LAYOUTS = {
    "NIH ChestX-ray14": (_nih, 3, {"1", "2"}),
    "Kermany: paediatric pneumonia": (_kermany, 4, {"IM-0115", "NORMAL2-IM-0115", "person7"}),
    "ISIC 2020": (_isic, 2, {"p", "q"}),
    "HAM10000": (_ham, 3, {"l", "m"}),
    "PH²": (_ph2, 3, None),
}


@pytest.mark.parametrize(("name", "recipe", "rest"), RECIPES, ids=[name for name, _, _ in RECIPES])
def test_the_recipes_of_the_public_collections_give_a_table(tmp_path, monkeypatch, name, recipe, rest):
    lay_out, images, patients = LAYOUTS[name]
    monkeypatch.chdir(tmp_path)
    lay_out()
    exec(compile(recipe, name, "exec"), {})
    columns = re.search(r"label_columns '\[(.*?)\]'", rest)
    patient_column = re.search(r"patient_column (\w+)", rest)
    found = read_manifest(
        Path("labels.csv"),
        label_columns=columns.group(1).split(", ") if columns else ["label"],
        patient_column=patient_column.group(1) if patient_column else None,
    )
    assert len(found) == images
    assert (set(found.patients) if found.patients is not None else None) == patients


def test_every_collection_is_tested():
    assert [name for name, _, _ in RECIPES] == list(LAYOUTS)
