# SPDX-License-Identifier: Apache-2.0
import pytest

from deltarec.progress import Progress


def test_a_log_has_each_note_and_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = 100.0
    monkeypatch.setattr("deltarec.progress.time.monotonic", lambda: now)
    progress = Progress("evaluate test", 1000)
    for second, note in [(10, ""), (30, "loss 0.5"), (80, ""), (91, ""), (100, "")]:
        now = 100.0 + second
        progress.update(100, note)
    assert capsys.readouterr().out.splitlines() == [
        "evaluate test:  20.0 % · 200 samples · 7/s · 120 s left · loss 0.5",
        "evaluate test:  40.0 % · 400 samples · 4/s · 136 s left",
    ]
