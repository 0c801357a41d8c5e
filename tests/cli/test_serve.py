"""``mp2 serve``: what its options become."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mp2.cli.main import app
from mp2.serving.service import LOOPBACK, Settings


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ([], LOOPBACK),
        (["--allow-host", "my.example"], (*LOOPBACK, "my.example")),
        (["--host", "0.0.0.0"], ("*",)),
        (["--host", "0.0.0.0", "--allow-host", "my.example"], (*LOOPBACK, "my.example")),
    ],
)
def test_hosts_that_are_allowed_are_so_beside_the_local_ones(
    options: list[str], hosts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Settings] = []
    monkeypatch.setattr("mp2.serving.server.serve", lambda settings, *_, **__: found.append(settings))
    done = CliRunner().invoke(app, ["serve", str(tmp_path), *options])
    assert done.exit_code == 0 and [settings.hosts for settings in found] == [hosts]
