"""Groups: G9 for patients, places and bursts; how near splits come to their fractions; the groups' way through a data set."""

import csv
import dataclasses
import random
import shutil
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
from conftest import make_image, write
from inspection_fixtures import copied, forge, replaced
from test_build import files_of, records, stop_before

import tfpipe
from tfpipe.building import groups
from tfpipe.building.inputs.items import Source
from tfpipe.building.state import State
from tfpipe.common import text
from tfpipe.records import catalog, manifest
from tfpipe.verification.verification import verify

THIRDS = {"train": 0.6, "val": 0.25, "test": 0.15}


def build(source, output, **options):
    return tfpipe.build_tfrecords(source, output, **{"workers": 1, "progress": False, **options})


def cut(rows, fractions, *, seed=0, shuffled=None):
    """Cuts rows of (key, group, label, sha256) as a build does; {key: split}."""
    state = State(":memory:")
    rows = list(rows)
    if shuffled is not None:
        random.Random(shuffled).shuffle(rows)
    state.list_inputs(Source(key, key, None, f"c{label}", "file", key, group=group) for key, group, label, _ in rows)
    updates = [(label, sha256, key) for key, _, label, sha256 in rows]
    state.execute("CREATE INDEX by_key ON inputs (key)")
    state.executemany("UPDATE inputs SET label = ?, sha256 = ? WHERE key = ?", updates)
    state.register("group_order", seed, "split")
    groups.cut(state, {split: Fraction(str(fraction)) for split, fraction in fractions.items()})
    found = dict(state.execute("SELECT key, split FROM inputs"))
    facts = groups.summary(state, [f"c{label}" for label in range(50)], fractions)
    state.close()
    return found, facts


def drawn(seed, *, num_groups=60, largest=30, num_classes=3, copies=0.0):
    """Random groups, some with images of several classes and some bytes that others have, too."""
    random_ = random.Random(seed)
    rows = []
    for group in range(num_groups):
        usual = random_.randrange(num_classes)
        for index in range(random_.randint(1, largest)):
            label = usual if random_.random() < 0.7 else random_.randrange(num_classes)
            sha256 = random_.choice(rows)[3] if rows and random_.random() < copies else f"{group}/{index}"
            rows.append((f"{group}/{index}", f"g{group}", label, sha256))
    return rows


def imbalance(rows, split_of, fractions):
    """Squared differences from the fractions over sizes of classes, and the bound that `groups.cut` promises."""
    totals = Counter(label for _, _, label, _ in rows) | Counter({None: len(rows)})
    weights = {label: 1 / total for label, total in totals.items()} | {None: (len(totals) - 1) / len(rows)}
    by_split, by_group = defaultdict(Counter), defaultdict(Counter)
    for key, group, label, _ in rows:
        for name in (label, None):
            by_split[split_of[key]][name] += 1
            by_group[group][name] += 1
    found = sum(
        weights[label] * (by_split[split][label] - fraction * total) ** 2
        for split, fraction in fractions.items()
        for label, total in totals.items()
    )
    squares = sum(weights[label] * count**2 for counts in by_group.values() for label, count in counts.items())
    return found, (1 - sum(fraction**2 for fraction in fractions.values())) * squares


@pytest.mark.parametrize("fractions", [THIRDS, {"train": 0.9, "test": 0.1}, {f"fold{index}": 0.2 for index in range(5)}])
def test_g9_no_group_is_in_two_splits_and_classes_stay_near_their_fractions(fractions):
    for seed in range(20):
        rows = drawn(seed, num_groups=random.Random(seed).randint(12, 120))
        split_of, facts = cut(rows, fractions, seed=seed)
        assert set(split_of.values()) == set(fractions)
        splits = defaultdict(set)
        for key, group, _, _ in rows:
            splits[group].add(split_of[key])
        assert all(len(of_group) == 1 for of_group in splits.values())
        found, bound = imbalance(rows, split_of, fractions)
        assert found <= bound
        assert facts["torn"] == []
        assert facts["num_groups"] == len(splits) == sum(split["num_groups"] for split in facts["splits"].values())


def test_many_groups_reach_the_fractions_nearly_and_a_random_cut_does_not():
    worst = 0.0
    for seed in range(5):
        rows = drawn(seed, num_groups=400, largest=8)
        _, facts = cut(rows, THIRDS, seed=seed)
        totals = Counter(f"c{label}" for _, _, label, _ in rows)
        for split in facts["splits"].values():
            farthest = split["farthest"]
            worst = max(worst, abs(farthest["num_records"] - farthest["wanted"]) / totals[farthest["class_name"]])
    assert worst < 0.01
    names, shares = list(THIRDS), list(THIRDS.values())
    picked = {group: random.Random(group).choices(names, shares)[0] for group in {row[1] for row in rows}}
    by_chance, _ = imbalance(rows, {row[0]: picked[row[1]] for row in rows}, THIRDS)
    assert by_chance > 20 * imbalance(rows, cut(rows, THIRDS)[0], THIRDS)[0]


def test_g9_a_giant_group_goes_where_it_fits_best_and_no_split_stays_empty():
    rows = [(f"big/{index}", "big", index % 2, f"b{index}") for index in range(900)] + drawn(3, num_groups=20, largest=10)
    split_of, facts = cut(rows, THIRDS)
    assert {split_of[row[0]] for row in rows[:900]} == {"train"}
    counts = Counter(split_of.values())
    assert counts["train"] == 900
    assert counts["val"] > counts["test"] > 0
    assert facts["splits"]["train"]["farthest"]["num_records"] != facts["splits"]["train"]["farthest"]["wanted"]
    few, _ = cut([("a", "a", 0, "a"), ("b", "b", 0, "b"), ("c", "c", 0, "c")], THIRDS)
    assert set(few.values()) == set(THIRDS)


def test_small_classes_do_not_all_miss_the_small_split():
    rows = [(f"{label}-{index}", f"{label}-{index}", label, f"{label}-{index}") for label in range(50) for index in range(5)]
    split_of, _ = cut(rows, {"train": 0.9, "test": 0.1})
    assert Counter(split_of.values())["test"] == 25


def test_g2_a_cut_by_groups_is_a_function_of_seed_and_content():
    rows = drawn(7, copies=0.02)
    one, _ = cut(rows, THIRDS, seed=1)
    assert all(cut(rows, THIRDS, seed=1, shuffled=order)[0] == one for order in range(5))
    assert cut(rows, THIRDS, seed=2)[0] != one


def test_g9_equal_bytes_join_groups_through_any_chain():
    for seed in range(20):
        rows = drawn(seed, num_groups=80, largest=6, copies=0.1)
        split_of, facts = cut(rows, THIRDS, seed=seed)
        chains = Chains(rows)
        for name in (1, 3):  # group, bytes
            splits = defaultdict(set)
            for row in rows:
                splits[row[name]].add(split_of[row[0]])
            assert all(len(found) == 1 for found in splits.values())
        assert facts["num_joined"] == sum(len(chain) for chain in chains.chains if len(chain) > 1) > 0


class Chains:
    """Groups that share bytes, found in another way: by joining sets until nothing changes."""

    def __init__(self, rows):
        by_bytes = defaultdict(set)
        for _, group, _, sha256 in rows:
            by_bytes[sha256].add(group)
        self.chains = []
        for some in by_bytes.values():
            apart = [chain for chain in self.chains if not chain & some]
            self.chains = [*apart, some.union(*(chain for chain in self.chains if chain & some))]


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """30 patients of two classes with 1 to 6 images; patients 1 and 2, and 2 and 3, share an image."""
    root = tmp_path_factory.mktemp("patients")
    random_ = random.Random(0)
    for patient in range(30):
        for index in range(random_.randint(1, 6)):
            name = "ill" if random_.random() < 0.3 else "well"
            write(root / name / f"patient_{patient}" / f"{index}.jpg", make_image(100 * patient + index))
    for one, other in ((1, 2), (2, 3)):
        write(root / f"well/patient_{one}/copy.jpg", make_image(100 * one + 50))
        write(root / f"well/patient_{other}/copy of {one}.jpg", make_image(100 * one + 50))
    return root


@pytest.fixture(scope="module")
def grouped(patients, tmp_path_factory):
    output = tmp_path_factory.mktemp("grouped") / "out"
    build(patients, output, layout="folders", splits=THIRDS, group_pattern=r"patient_(\d+)", num_shards=2, seed=5)
    return output


def table_of(patients, path, columns=("path", "label", "patient")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for image in sorted(patients.rglob("*.jpg")):
            name = image.relative_to(patients)
            writer.writerow([name, name.parts[0], name.parts[1].removeprefix("patient_")])
    return path


def test_groups_travel_in_record_catalog_and_manifest(grouped):
    rows = {row.key: row for row in catalog.read_catalog(grouped)}
    assert (grouped / "catalog.csv").read_text("utf-8").splitlines()[0].endswith(",crc32c,sha256,group")
    assert all(row.group and f"patient_{row.group}/" in row.key for row in rows.values())
    assert {record.key: record.group for record in records(grouped)} == {key: row.group for key, row in rows.items()}
    found = manifest.load(grouped)
    assert found.groups.num_groups == 30
    assert found.groups.num_joined == 3
    assert found.options["group_pattern"] == r"patient_(\d+)"
    assert {row.split for row in rows.values() if row.group in {"1", "2", "3"}} == {rows["well/patient_2/copy of 1.jpg"].split}
    report = verify(grouped, progress=False)
    assert not report.findings


def test_g2_g9_any_number_of_workers_and_any_layout_give_equal_groups(patients, grouped, tmp_path):
    options = {"splits": THIRDS, "num_shards": 2, "seed": 5}
    build(patients, tmp_path / "two", layout="folders", group_pattern=r"patient_(\d+)", workers=2, **options)
    assert files_of(tmp_path / "two") == files_of(grouped)
    table = table_of(patients, tmp_path / "table.csv")
    options |= {"images": patients, "group": "patient"}
    build(table, tmp_path / "csv", **options)
    assert (tmp_path / "csv/catalog.csv").read_bytes() == (grouped / "catalog.csv").read_bytes()
    build(table, tmp_path / "csv", **options)  # complete: nothing to do
    table.write_text(table.read_text("utf-8").replace(",29\n", ",28\n"), "utf-8")
    with pytest.raises(ValueError, match="regrouped: "):
        build(table, tmp_path / "csv", **options)
    with pytest.raises(ValueError, match="group was 'patient' and is None"):
        build(table, tmp_path / "csv", **{**options, "group": None})


def test_a_path_without_a_group_is_named(patients, tmp_path):
    shutil.copytree(patients, tmp_path / "in")
    write(tmp_path / "in/ill/unknown.jpg", make_image(7))
    options = {"layout": "folders", "splits": THIRDS, "group_pattern": r"patient_(\d+)"}
    with pytest.raises(tfpipe.DataError, match=r"no_group: .*'ill/unknown.jpg' does not match the group_pattern 'patient_"):
        build(tmp_path / "in", tmp_path / "out", **options)
    content = build(tmp_path / "in", tmp_path / "out", on_error="skip", **options)
    assert content.rejected == {"no_group": 1}
    table = tmp_path / "table.csv"
    table.write_text("path,label,patient\nwell/patient_1/copy.jpg,well,1\nwell/patient_2/copy of 1.jpg,well,\n", "utf-8")
    with pytest.raises(tfpipe.DataError, match=r"line 3: .*names no group in column 'patient'"):
        build(table, tmp_path / "other", images=patients, group="patient")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_pattern": "patient"}, "must have a group"),
        ({"group_pattern": "(?P<a>.)(?P<b>.)"}, "one named group"),
        ({"group_pattern": "("}, "must be a regular expression"),
        ({"group": "patient"}, "a column of layout=csv"),
        ({"group": "", "layout": "csv"}, "group must be a text"),
    ],
)
def test_groups_that_cannot_be_are_refused(patients, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(patients, tmp_path / "out", **{"layout": "folders", **options})


def test_one_named_group_counts_before_the_first():
    source = Source("a/p7_x3.jpg", "a/p7_x3.jpg", None, "a", "file", "a")
    assert groups.by_pattern(r"p(\d)_x(?P<who>\d)")(source).group == "3"
    assert groups.by_pattern(r"p(\d)_x(\d)")(source).group == "7"
    assert groups.by_pattern(r"p(\d*)Z?")(source._replace(filename="", key="p.h5")).reason == "no_group"


def test_groups_that_differ_in_case_or_spaces_only_are_warned_of_at_build_and_verify(patients, tmp_path, caplog):
    lines, names = (
        table_of(patients, tmp_path / "table.csv").read_text("utf-8").splitlines(),
        ("p17", "P17", "Ärztin", "ärztin"),
    )
    lines[1:5] = [f"{line.rpartition(',')[0]},{name}" for line, name in zip(lines[1:5], names, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(lines), "utf-8")
    build(tmp_path / "table.csv", tmp_path / "out", images=patients, splits=THIRDS, group="patient")
    warning = "groups that differ in case or spaces only count as two each: 'P17' and 'p17', 'Ärztin' and 'ärztin'; give them"
    assert [line[: len(warning)] for line in caplog.messages] == [warning]
    assert [note[: len(warning)] for note in verify(tmp_path / "out", progress=False).notes] == [warning]
    assert len({text.folded(name) for name in (" p17", "P17\u3000", "\uff5017")}) == 1


def test_g9_groups_across_given_splits_are_refused_or_noted(tmp_path):
    for index, name in enumerate(["train/a/p1-1", "train/a/p1-2", "train/b/p2-1", "test/a/p1-3", "test/b/p3-1"]):
        write(tmp_path / f"in/{name}.jpg", make_image(index))
    options = {"layout": "folders", "group_pattern": r"p(\d)"}
    with pytest.raises(tfpipe.DataError, match=r"1 group is in more than.*\n  1: 1 in test \(as test/a/p1-3.jpg\), 2 in"):
        build(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    content = build(tmp_path / "in", tmp_path / "out", allow_leaks=True, **options)
    assert list(content.groups.torn) == ["1"]
    assert content.groups.splits["test"] == manifest.GroupsOfSplit(2)
    assert not verify(tmp_path / "out", progress=False).findings


def test_g9_verify_finds_a_group_in_two_splits(grouped, tmp_path):
    out = copied(grouped, tmp_path / "out")
    elsewhere = next(row.group for row in catalog.read_catalog(out) if row.split == "test" and row.group not in {"1", "2", "3"})
    forge(out, replaced(0, group=elsewhere))
    findings = "\n".join(map(str, verify(out, progress=False).findings))
    assert "1 group is in more than one split, the manifest notes 0" in findings
    out = copied(grouped, tmp_path / "out")
    forge(out, lambda found: [dataclasses.replace(record, group=None) for record in found])
    assert "a record without a group" in "\n".join(map(str, verify(out, progress=False).findings))


def test_unlabelled_images_have_no_group(patients, tmp_path):
    write(tmp_path / "bare/patient_77.jpg", make_image(9999))
    options = {"layout": "folders", "splits": THIRDS, "group_pattern": r"patient_(\d+)"}
    content = build(patients, tmp_path / "out", unlabelled={"test1": tmp_path / "bare"}, **options)
    assert content.groups.splits["test1"].num_groups == 0
    assert [record.group for record in records(tmp_path / "out", "test1")] == [""]
    assert not verify(tmp_path / "out", progress=False).findings
    plain = build(patients, tmp_path / "plain", layout="folders", splits=THIRDS)
    assert plain.groups is None
    assert all(record.group is None for record in records(tmp_path / "plain"))
    assert '"groups"' not in (tmp_path / "plain/manifest.json").read_text("utf-8")


@pytest.mark.parametrize("step", ["decide", "write", "finish"])
def test_g2_g9_stopped_anywhere_a_build_by_groups_goes_on_and_refuses_others(patients, grouped, tmp_path, monkeypatch, step):
    table = table_of(patients, tmp_path / "table.csv")
    options = {"images": patients, "splits": THIRDS, "num_shards": 2, "seed": 5, "group": "patient"}
    stop_before(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        build(table, tmp_path / "out", **options)
    monkeypatch.undo()
    content = table.read_text("utf-8")
    table.write_text(content.replace(",29\n", ",28\n"), "utf-8")
    with pytest.raises(ValueError, match=r"have changed:\n  changed: (ill|well)/patient_29/"):
        build(table, tmp_path / "out", **options)
    table.write_text(content, "utf-8")
    build(table, tmp_path / "out", **options)
    assert (tmp_path / "out/catalog.csv").read_bytes() == (grouped / "catalog.csv").read_bytes()


def test_g2_g9_machines_that_build_together_keep_groups(patients, grouped, tmp_path):
    options = {"layout": "folders", "splits": THIRDS, "group_pattern": r"patient_(\d+)", "num_shards": 2, "seed": 5}
    build(patients, tmp_path / "out", workers_folder=tmp_path / "tasks", **options)
    assert files_of(tmp_path / "out") == files_of(grouped)


def test_the_command_prints_how_far_splits_are_from_their_fractions(patients, tmp_path, run_tool):
    done = run_tool(
        "build_tfrecords",
        *(f"--input={patients}", "--layout=folders", f"--output={tmp_path / 'out'}", "--splits=train=0.6,test=0.4"),
        r"--group_pattern=patient_(?P<who>\d+)",
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["split", "groups", "farthest", "class", "wanted", "records", "difference"] in lines
    assert ["groups", "30", "(3", "joined", "with", "others", "by", "equal", "bytes)"] in lines
    assert ["groups", "across", "splits", "0"] in lines
