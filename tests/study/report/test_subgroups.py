import json
from dataclasses import replace

from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.progress import MOST_GROUPS, result_lines, subgroup_lines
from hushgrad.study.report.files import CARD, PAGE, check_report, write_report
from hushgrad.study.run import run
from hushgrad.study.tasks import TaskOptions

HOSTILE = "group<script>alert(1)</script>"


def test_accuracy_by_a_named_column_is_reported_and_a_hostile_column_name_stays_text(tmp_path):
    rows = [f"{'<b>a</b>' if n % 3 else 'b'},{n % 7},{'yes' if n % 2 else 'no'}" for n in range(100)]
    (tmp_path / "data.csv").write_text("\n".join([f"{HOSTILE},size,y", *rows]))
    options = TaskOptions(data=tmp_path / "data.csv", target="y", subgroup=HOSTILE)
    privacy = Privacy(noise_multiplier=1.0, max_grad_norm=1.0)
    config = replace(suggested_run("csv", privacy=privacy, options=options), batch_size=40, epochs=2)
    finished = run(config, tmp_path / "run")
    groups = finished.summary["subgroups"]["groups"]
    assert sum(group["count"] for group in groups) == finished.summary["test_examples"] == 20
    right = sum(group["right"] for group in groups) / 20
    assert right == finished.summary["test_accuracy"]
    worst = min(group["right"] / group["count"] for group in groups)
    (line,) = [line for line in result_lines(finished) if line.startswith("Accuracy by 'group<script>")]
    assert f"{worst:.1%}" in line.partition(", ")[0]
    facts = write_report(tmp_path / "run", tmp_path / "out")["facts"]
    assert facts["subgroups"]["gap"] >= 0
    page, card = (tmp_path / "out" / PAGE).read_text(), (tmp_path / "out" / CARD).read_text()
    for text in (page, card):
        assert "<script" not in text
        assert "<b>" not in text
    assert "Accuracy by group&lt;script&gt;" in page
    assert all(check.held for check in check_report(tmp_path / "run", tmp_path / "out"))
    # A count that was changed is found.
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    summary["subgroups"]["groups"][0]["right"] += 1
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    assert not all(check.held for check in check_report(tmp_path / "run", tmp_path / "out"))


def test_the_screen_names_the_subgroups_with_the_lowest_accuracy_and_says_how_many_more_there_are():
    groups = [{"name": f"g{n}", "count": 100, "right": 99 - n} for n in range(MOST_GROUPS + 2)]
    (line,) = subgroup_lines({"column": "ward", "groups": [*groups, {"name": "empty", "count": 0, "right": 0}]})
    assert line.startswith("Accuracy by 'ward': 'g9' 90.0% of 100, 'g8' 91.0% of 100")
    assert line.endswith("'g2' 97.0% of 100, and 2 groups with more.")
    assert subgroup_lines(None) == subgroup_lines({"column": "ward", "groups": []}) == []
