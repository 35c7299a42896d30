"""What is said of work that takes long."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from concerto_tf import _progress
from concerto_tf._progress import stage


def test_long_work_is_named_and_short_work_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_progress, "FIRST", 0.05)
    with caplog.at_level(logging.INFO, "concerto_tf"):
        with stage("short"):
            pass
        with stage("long"):
            time.sleep(0.4)
    said = [record.getMessage() for record in caplog.records]
    assert 2 <= len(said) <= 4 and all(line.startswith("long: at work for") for line in said)


def test_no_silence_is_longer_than_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_progress, "FIRST", 0.02)
    monkeypatch.setattr(_progress, "LONGEST", 0.02)
    with caplog.at_level(logging.INFO, "concerto_tf"), stage("work"):
        time.sleep(0.5)
    assert len(caplog.records) > 6


def test_how_far_it_is_is_asked_when_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_progress, "FIRST", 0.05)
    done = 0
    with caplog.at_level(logging.INFO, "concerto_tf"), stage(lambda: f"{done} of 7"):
        done = 3
        time.sleep(0.1)
    assert caplog.records[0].getMessage().startswith("3 of 7: at work for")


def test_nothing_is_left_behind_by_an_error() -> None:
    with pytest.raises(ValueError, match="mine"), stage("work"):
        raise ValueError("mine")
    assert not [of for of in threading.enumerate() if of.name == "concerto-stage"]
