"""Tables and folders: what is read, and what the user is told when it cannot be."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medxfer.data.manifest import LABEL_VALUES, Manifest, joined, read_manifest, split_faults
from medxfer.data.tables import SPLIT_NAMES
from medxfer.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with nine files named as images; a manifest opens none."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name in "abcdefghi":
        (folder / f"{name}.png").write_bytes(b"never opened")
    return folder


def _table(root: Path, *rows: str, header: str = "path,label", **options: object) -> Manifest:
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return read_manifest(root / "labels.csv", **options)


def _refusal(root: Path, *rows: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        _table(root, *rows, **options)
    return str(caught.value)


def test_a_table_of_two_classes_is_binary_and_its_classes_are_sorted(root):
    found = _table(root, "a.png,opacity", "b.png,clear", "c.png,opacity")
    assert found.task == "binary"
    assert found.class_names == ("clear", "opacity")
    assert found.num_classes == 2
    np.testing.assert_array_equal(found.targets, [1, 0, 1])
    assert found.targets.dtype == np.int64
    assert found.paths == ("a.png", "b.png", "c.png")
    assert found.files == tuple(root / name for name in found.paths)
    assert found.patients is None
    assert found.splits is None
    assert len(found) == 3
    assert [found.label_text(row) for row in range(3)] == ["opacity", "clear", "opacity"]


def test_three_classes_are_multiclass(root):
    found = _table(root, "a.png,x", "b.png,z", "c.png,y")
    assert found.task == "multiclass"
    np.testing.assert_array_equal(found.targets, [0, 2, 1])


def test_class_names_choose_the_order_and_need_not_all_occur(root):
    found = _table(root, "a.png,x", "b.png,z", class_names=["z", "y", "x"])
    assert found.class_names == ("z", "y", "x")
    np.testing.assert_array_equal(found.targets, [2, 0])


def test_several_label_columns_are_multilabel_and_blank_is_unknown(root):
    rows = ("a.png,1,0", "b.png,0,1.0", "c.png,,0.0", "d.png,1, 1 ")
    found = _table(root, *rows, header="path,nodule,edema", label_columns=["nodule", "edema"])
    assert found.task == "multilabel"
    assert found.targets.dtype == np.float32
    np.testing.assert_array_equal(found.targets, [[1, 0], [0, 1], [np.nan, 0], [1, 1]])
    assert [found.label_text(row) for row in range(4)] == ["nodule", "edema", "none", "nodule, edema"]


def test_one_column_may_be_multilabel_when_asked(root):
    found = _table(root, "a.png,1", "b.png,0", task="multilabel")
    assert found.class_names == ("label",)
    np.testing.assert_array_equal(found.targets, [[1], [0]])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_tables_as_spreadsheets_write_them(root, delimiter, mark, ending):
    lines = [delimiter.join(row) for row in (["path", "label", "patient_id"], ["a.png", "x", "1"], ["b.png", "é", "2"])]
    (root / "t.csv").write_bytes((mark + ending.join(lines)).encode())
    found = read_manifest(root / "t.csv")
    assert found.class_names == ("x", "é")
    assert found.patients is not None
    assert found.patients.tolist() == ["1", "2"]


def test_spaces_around_cells_do_not_count_and_quotes_hold_a_comma(root):
    found = _table(root, ' a.png , "x, left" , 7', "b.png,y,8", header="path , label, patient_id")
    assert found.class_names == ("x, left", "y")
    assert found.groups().tolist() == ["7", "8"]


@pytest.mark.parametrize("names", [("NA", "nan"), ("01", "1"), ("None", "null"), ("1.0", "1e0")])
def test_labels_and_patients_stay_text(root, names):
    rows = [f"a.png,{names[0]},01", f"b.png,{names[1]},1"]
    found = _table(root, *rows, header="path,label,patient_id", class_names=list(names))
    assert set(found.class_names) == set(names)
    assert found.groups().tolist() == ["01", "1"]


def test_columns_may_have_other_names(root):
    options = {"path_column": "file", "label_columns": ["dx"], "patient_column": "lesion", "split_column": "part"}
    rows = [f"{n}.png,{dx},L{n},{part}" for n, dx, part in zip("abcdef", "xyxyxy", SIX_SPLITS, strict=True)]
    found = _table(root, *rows, header="file,dx,lesion,part", **options)
    assert found.groups().tolist() == [f"L{n}" for n in "abcdef"]
    assert found.splits is not None
    assert found.splits.tolist() == SIX_SPLITS


SIX_SPLITS = ["train", "train", "val", "val", "test", "test"]


def test_without_patients_each_image_is_its_own_group(root):
    assert _table(root, "a.png,x", "b.png,y").groups().tolist() == ["a.png", "b.png"]


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "VALIDATION", "testing"),
                                   ("TRAIN", "dev", "Test")])  # fmt: skip
def test_splits_may_be_spelled_in_several_ways(root, names):
    rows = [f"{n}.png,{'xy'[i % 2]},{names[i // 2]}" for i, n in enumerate("abcdef")]
    found = _table(root, *rows, header="path,label,split")
    assert found.splits is not None
    assert found.splits.tolist() == SIX_SPLITS
    assert set(SPLIT_NAMES.values()) == {"train", "val", "test"}


def test_a_given_split_may_be_ignored(root):
    found = _table(root, "a.png,x,nonsense", "b.png,y,train", header="path,label,split", for_training=False)
    assert found.splits is None


def test_images_may_be_below_another_folder(root, tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nb.png,y\n")
    assert read_manifest(tmp_path / "t.csv", image_root=root).files == (root / "a.png", root / "b.png")


def test_class_folders(tmp_path):
    for name in ("benign/b.png", "benign/deep/a.jpg", "malignant/c.tif", ".cache/d.png", "benign/notes.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    found = read_manifest(tmp_path / "set", path_column="ignored", label_columns=["ignored"])
    assert found.paths == ("benign/b.png", "benign/deep/a.jpg", "malignant/c.tif")
    assert [found.label_text(row) for row in range(3)] == ["benign", "benign", "malignant"]
    assert found.splits is None


def test_class_folders_in_split_folders(tmp_path):
    for split in ("train", "valid", "Test"):
        for label in ("x", "y"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "a.png").write_bytes(b"x")
    found = read_manifest(tmp_path)
    assert found.class_names == ("x", "y")
    assert found.splits is not None
    assert dict(zip(found.paths, found.splits.tolist(), strict=True)) == {
        "Test/x/a.png": "test", "Test/y/a.png": "test", "train/x/a.png": "train", "train/y/a.png": "train",
        "valid/x/a.png": "val", "valid/y/a.png": "val",
    }  # fmt: skip


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=r"must hold one sub-folder per class .* found 1 sub-folders and no image"):
        read_manifest(tmp_path)


def test_a_single_class_folder_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="at least two classes are needed, found 'x'"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty; it needs a header and one row per image"),
        (b"\n \n", "is empty"),
        (b"path,label\n", "has a header but no rows"),
        (b'path,label\n"a.png,x\n', "is not a CSV"),
        (b"path,label\na.png,x\nb.png,y,z\n", "is not a CSV .*line 3 has 3 cells"),
        ("path,label\na.png,é\n".encode("latin-1"), "must be UTF-8 text; save it as CSV UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "must be UTF-8"),
    ],
    ids=["nothing", "blank", "no rows", "open quote", "a cell too many", "latin-1", "an image"],
)
def test_a_table_that_cannot_be_read_is_refused_by_name(tmp_path, content, text):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)the table .*labels\.csv {text}"):
        read_manifest(tmp_path / "labels.csv")


def test_there_is_no_such_source(tmp_path):
    with pytest.raises(DataError, match=r"must be a CSV or a folder of class folders; there is no .*nothing\.csv"):
        read_manifest(tmp_path / "nothing.csv")


def test_a_missing_column_is_named_with_the_nearest_one(root):
    text = _refusal(root, "a.png,x", header="path,labels")
    assert "there is no column 'label'; did you mean 'labels'? Its columns are 'path', 'labels'" in text
    text = _refusal(root, "a.png,x", header="file,dx", patient_column="patient")
    for name in ("path", "label", "patient"):
        assert f"there is no column {name!r}" in text


def test_all_faults_are_told_at_once_with_their_lines(root):
    rows = ("a.png,x,1,train", ",y,2,train", "zz.png,,3,nowhere", "a.png,x,,val", "../labels.csv,y,4,test")
    text = _refusal(root, *rows, header="path,label,patient_id,split")
    assert f"{root / 'labels.csv'} cannot be used:" in text
    assert "line 3: the path is empty" in text
    assert f"1 of 5 images do not exist below {root} (see data.image_root): line 4: zz.png" in text
    assert "1 of 5 rows have no label: line 4" in text
    assert "line 5: a.png is the same image as line 2" in text
    assert "1 of 5 rows have no patient_id: line 5" in text
    assert f"1 of 5 images leave the image folder {root} by .., a link or an absolute path" in text
    assert "data.allow_outside_root: line 6: ../labels.csv" in text
    assert "1 of 5 rows must hold train, val or test in split: line 4: 'nowhere'" in text


def test_only_three_of_many_faults_of_a_kind_are_shown(root):
    text = _refusal(root, *[f"no{i}.png,{'xy'[i % 2]}" for i in range(10)])
    assert "10 of 10 images do not exist" in text
    assert "line 2: no0.png; line 3: no1.png; line 4: no2.png and 7 more" in text
    assert "no3" not in text


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "sub/../../secret.png", "link.png", "folder/s.png"])
def test_nothing_outside_the_root_is_taken_unless_allowed(root, path):
    (root.parent / "secret.png").write_bytes(b"x")
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "s.png").write_bytes(b"x")
    (root / "sub").mkdir()
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent / "elsewhere")
    text = _refusal(root, "a.png,x", f"{path},y")
    assert f"1 of 2 images leave the image folder {root} by .., a link or an absolute path" in text
    assert f"data.allow_outside_root: line 3: {path}" in text
    assert _table(root, "a.png,x", f"{path},y", allow_outside_root=True).paths == ("a.png", path)


def test_a_path_inside_may_take_detours(root):
    (root / "sub").mkdir()
    assert _table(root, "sub/../a.png,x", f"{root / 'b.png'},y").files == (root / "a.png", root / "b.png")


@pytest.mark.parametrize("second", ["./a.png", "sub/../a.png", "twin.png"])
def test_the_same_image_under_another_name_is_found(root, second):
    (root / "sub").mkdir()
    os.symlink(root / "a.png", root / "twin.png")
    assert f"line 3: {second} is the same image as line 2" in _refusal(root, "a.png,x", f"{second},y")


def test_nul_and_loops_and_folders_are_no_images(root):
    (root / "loop.png").symlink_to(root / "loop.png")
    text = _refusal(root, "a\0.png,x", "loop.png,y", ".,x")
    assert "line 2: the path holds NUL" in text
    assert "line 3: loop.png; line 4: ." in text


def test_a_name_that_is_too_long_does_not_exist(root):
    assert "images do not exist" in _refusal(root, "a.png,x", f"{'z' * 300}.png,y")


def test_lines_are_those_that_an_editor_shows(root):
    assert "line 5: zz.png" in _refusal(root, "a.png,x", "", "", "zz.png,y")


def test_a_comma_at_the_end_of_each_row_does_no_harm(root):
    assert _table(root, "a.png,x,", "b.png,y,").paths == ("a.png", "b.png")


def test_a_cell_may_hold_several_lines(root):
    table = '"first\nsecond",a.png,x', "third,b.png,y", "fourth,zz.png,y"
    assert "line 5: zz.png" in _refusal(root, *table, header="note,path,label")


def test_two_columns_of_one_name_are_refused(root):
    assert "label" in _refusal(root, "a.png,x,y", "b.png,y,x", header="path,label,label")


def test_a_label_that_is_no_class_is_counted(root):
    text = _refusal(root, "a.png,x", "b.png,y", "c.png,q", "d.png,q", class_names=["x", "y"])
    assert "the classes are 'x', 'y', but label also holds 'q' (2 rows)" in text


@pytest.mark.parametrize(("task", "rows", "found"), [("binary", ["a.png,x", "b.png,y", "c.png,z"], 3),
                                                     ("multiclass", ["a.png,x", "b.png,y"], 2)])  # fmt: skip
def test_a_task_that_does_not_fit_is_refused(root, task, rows, found):
    assert f"data.task is {task}, but there are {found} classes" in _refusal(root, *rows, task=task)


def test_several_label_columns_cannot_be_one_class(root):
    options = {"header": "path,p,q", "label_columns": ["p", "q"]}
    text = _refusal(root, "a.png,1,0", "b.png,0,1", task="binary", **options)
    assert "data.task is binary, but 2 label columns mean multilabel" in text
    text = _refusal(root, "a.png,1,0", "b.png,0,1", class_names=["q", "p"], **options)
    assert "data.class_names must be the label columns ['p', 'q'], found ['q', 'p']" in text


def test_multilabel_columns_hold_1_0_or_nothing(root):
    options = {"header": "path,p,q", "label_columns": ["p", "q"]}
    text = _refusal(root, "a.png,1,yes", "b.png,0,-1", **options)
    assert "2 of 2 rows must hold 1, 0 or nothing (unknown) in q: line 2: 'yes'; line 3: '-1'" in text
    assert "q must hold both 1 and 0, found ['', '1']" in _refusal(root, "a.png,1,1", "b.png,0,", **options)
    assert set(LABEL_VALUES) == {"1", "1.0", "0", "0.0", ""}


def test_a_column_of_free_text_is_no_label(tmp_path):
    for i in range(101):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    text = _refusal(tmp_path, *[f"{i}.png,remark {i}" for i in range(101)])
    assert "label holds 101 different values: is it the column of classes?" in text


def test_a_given_split_with_a_patient_on_two_sides_is_kept_for_the_audit_to_judge(root):
    rows = [f"{n}.png,{'xy'[i % 2]},{p},{s}" for i, (n, p, s) in enumerate(zip("abcdef", "111234", SIX_SPLITS,
                                                                               strict=True))]  # fmt: skip
    assert _table(root, *rows, header="path,label,patient_id,split").splits.tolist() == list(SIX_SPLITS)


def test_other_columns_can_hold_together_what_patients_do_not(root):
    rows = ("a.png,x,1,L1,s", "b.png,y,2,L1,t", "c.png,x,3,,u", "d.png,y,4,,v", "e.png,x,4,L2,w", "f.png,y,5,nan,z")
    found = _table(root, *rows, header="path,label,patient_id,lesion,site", group_columns=["lesion"])
    assert found.groups().tolist() == ["1", "1", "3", "4", "4", "5"]
    assert found.patients.tolist() == ["1", "2", "3", "4", "4", "5"]
    assert found.more_groups["lesion"].tolist() == ["L1", "L1", "", "", "L2", ""]
    assert found.metadata.columns.tolist() == ["site"]
    assert found.subset(np.array([5, 0])).metadata["site"].tolist() == ["z", "s"]
    assert found.subset(np.array([5, 0])).more_groups["lesion"].tolist() == ["", "L1"]
    assert "there is no column 'lesio'; did you mean 'lesion'?" in _refusal(
        root, *rows, header="path,label,patient_id,lesion,site", group_columns=["lesio"]
    )


def test_groups_hang_together_through_others():
    """Against merging one pair of groups after the other until nothing changes."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        groups = rng.integers(0, 12, 30).astype(str)
        sets = [rng.choice(30, size, replace=False) for size in rng.integers(1, 4, rng.integers(0, 8))]
        expected = groups.copy()
        for _ in range(30):
            for rows in sets:
                for row in rows[1:]:
                    expected[expected == expected[row]] = expected[rows[0]]
        found = joined(groups, sets)
        assert (np.equal.outer(found, found) == np.equal.outer(expected, expected)).all()
        assert set(found) <= set(groups)


def test_a_given_split_that_lacks_a_class_or_is_empty_is_refused(root):
    rows = [f"{n}.png,{label},{s}" for n, label, s in zip("abcd", "xyxx", ("train", "train", "val", "val"),
                                                          strict=True)]  # fmt: skip
    text = _refusal(root, *rows, header="path,label,split")
    assert "the split val has no image of 'y'" in text
    assert "the split test has no images" in text


def test_faults_of_a_multilabel_split_name_the_labels():
    targets = np.array([[1, 0], [0, 1], [1, np.nan], [0, 1], [1, 0], [0, 1]])
    faults = list(split_faults(np.array(SIX_SPLITS), targets, ["p", "q"]))
    assert faults == []
    targets[3, 1] = np.nan
    assert list(split_faults(np.array(SIX_SPLITS), targets, ["p", "q"])) == ["the split val has no image of 'q'"]


def test_a_subset_keeps_what_belongs_together(root):
    rows = [f"{n}.png,{'xy'[i % 2]},P{n},{s}" for i, (n, s) in enumerate(zip("abcdef", SIX_SPLITS, strict=True))]
    whole = _table(root, *rows, header="path,label,patient_id,split")
    part = whole.subset(np.array([4, 1]))
    assert part.paths == ("e.png", "b.png")
    assert part.files == (root / "e.png", root / "b.png")
    assert part.targets.tolist() == [0, 1]
    assert part.groups().tolist() == ["Pe", "Pb"]
    assert part.splits is not None
    assert part.splits.tolist() == ["test", "train"]
    assert part.class_names == whole.class_names


def test_the_digest_depends_on_what_is_trained_on_and_on_nothing_else(root):
    header = "path,label,patient_id,age"
    rows = ["a.png,x,1,50", "b.png,y,2,60"]
    first = _table(root, *rows, header=header).digest()
    assert len(first) == 64
    assert _table(root, *[row[:-2] + "99" for row in rows], header=header).digest() == first
    changes = [["a.png,y,1,50", "b.png,x,2,60"], ["a.png,x,1,50", "b.png,y,3,60"], ["c.png,x,1,50", "b.png,y,2,60"],
               rows[::-1], ["a.png,x,1,50", "b.png,z,2,60"]]  # fmt: skip
    digests = [first, *(_table(root, *change, header=header).digest() for change in changes)]
    assert len(set(digests)) == len(digests), json.dumps(digests)


def test_what_stands_for_a_missing_value_is_no_class_and_no_patient(root):
    refusal = _refusal(root, "a.png,nan,1", "b.png,x,NaN", "c.png,y,n/a", header="path,label,patient_id")
    assert "label holds 'nan', which mostly means that a label is missing" in refusal
    assert "2 of 3 rows have no patient_id: line 3; line 4" in refusal


def test_a_class_that_is_spelled_in_two_ways_is_told(root):
    refusal = _refusal(root, "a.png,Pneumonia", "b.png,pneumonia", "c.png,clear")
    assert "label spells a class in 2 ways, 'Pneumonia', 'pneumonia'" in refusal
    named = _table(root, "a.png,X", "b.png,x", class_names=["X", "x"])
    assert named.class_names == ("X", "x")


def test_paths_of_another_system_get_a_hint(root):
    assert "paths need / instead of \\" in _refusal(root, "images\\a.png,x", "b.png,y")


def test_the_usual_patient_column_is_used_where_it_exists(root):
    rows = ["a.png,x,L1", "b.png,y,L2"]
    found = _table(root, *rows, header="path,label,lesion_id", usual_patient_column="lesion_id")
    assert found.groups().tolist() == ["L1", "L2"]
    assert _table(root, *rows, header="path,label,other", usual_patient_column="lesion_id").patients is None


def test_a_given_split_can_be_ignored(root):
    rows = [f"{n}.png,{dx},{part}" for n, dx, part in zip("abcdef", "xyxyxy", SIX_SPLITS, strict=True)]
    assert _table(root, *rows, header="path,label,split", split_column="none").splits is None
    only_train = [row.rpartition(",")[0] + ",train" for row in rows]
    assert "--data.split_column none" in _refusal(root, *only_train, header="path,label,split")


def test_a_label_without_positives_can_be_evaluated_and_not_trained_on(root):
    options = {"header": "path,p,q", "label_columns": ["p", "q"]}
    rows = ["a.png,1,0", "b.png,0,0"]
    assert "q must hold both 1 and 0" in _refusal(root, *rows, **options)
    found = _table(root, *rows, **options, for_training=False)
    np.testing.assert_array_equal(found.targets[:, 1], [0, 0])
