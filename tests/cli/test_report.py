from click.testing import CliRunner

from hushgrad.cli.main import main


def command(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_a_report_is_written_checked_and_found_wrong_when_changed(tmp_path):
    folder = str(tmp_path / "run")
    trained = command("train", "--noise-multiplier", "3", "--batch-size", "400", "--epochs", "1", "--out", folder)
    assert trained.exit_code == 0, trained.output
    assert command("report", folder, "--title", "<b>mine</b>").exit_code == 0
    assert "<h1>&lt;b&gt;mine&lt;/b&gt;</h1>" in (tmp_path / "run" / "report.html").read_text()
    checked = command("report", "--check", folder)
    assert checked.exit_code == 0, checked.output
    assert "checks hold." in checked.output
    page = tmp_path / "run" / "report.html"
    nowhere = command("report", folder, "--out", str(page / "out"))
    assert nowhere.exit_code == 1
    assert "DP101 --out: the output folder cannot be created" in nowhere.output
    page.write_text(page.read_text().replace("ε = ", "ε = 0.0", 1))
    wrong = command("report", "--check", folder)
    assert wrong.exit_code == 1
    assert "WRONG  report.html" in wrong.output


def test_a_folder_without_a_run_is_one_line_with_a_code(tmp_path):
    result = command("report", str(tmp_path))
    assert result.exit_code == 1
    assert "DP101 summary.json: the file is missing, so the folder holds no run" in result.output
