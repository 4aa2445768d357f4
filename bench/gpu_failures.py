"""A plugin of pytest for bench.gpu: a line of JSON for each test that failed, as soon as it did."""

from __future__ import annotations

import json

_config = None


def pytest_configure(config) -> None:
    global _config
    _config = config


def pytest_runtest_logreport(report) -> None:
    terminal = _config and _config.pluginmanager.get_plugin("terminalreporter")
    # Workers of xdist report to the process that started them, which has the terminal.
    if report.failed and terminal and not hasattr(_config, "workerinput"):
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash else str(report.longrepr)
        # Behind the dots that stand on the line so far.
        terminal.write_line("\n" + json.dumps({"test": report.nodeid, "why": why[:300]}))
