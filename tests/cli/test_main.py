"""`hushgrad` itself: unknown commands."""

from __future__ import annotations

from click.testing import CliRunner

from hushgrad.cli.main import main


def test_a_misspelt_command_is_refused_with_the_nearest_name() -> None:
    result = CliRunner().invoke(main, ["eplison", "--delta", "1e-5"])
    assert result.exit_code == 2
    assert "No such command 'eplison'. Did you mean 'epsilon'?" in result.output


def test_a_command_that_is_like_none_gets_no_suggestion() -> None:
    result = CliRunner().invoke(main, ["xyzzy"])
    assert result.exit_code == 2
    assert "Did you mean" not in result.output
