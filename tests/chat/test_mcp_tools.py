"""The tools of an MCP server, here of `qvl mcp` itself: listed, called, and refused where it is not."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from qvl.chat.mcp_tools import mcp_functions
from qvl.errors import OfflineError, RemoteError, UsageError
from qvl.tasks import TASKS
from qvl.tasks.describe import Describe
from qvl.types import Image, Sampling
from qvl.vlm.local import LocalModel

PICTURE = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[0]


def test_a_server_that_is_started_here() -> None:
    path = "PYTHONPATH=" + os.pathsep.join(sys.path)
    command = shlex.join(["env", path, sys.executable, "-m", "qvl", "-q", "mcp", "--offline"])
    sampling = {"max_new_tokens": 8, "temperature": 0.0}
    with mcp_functions(command, offline=True) as functions:
        tools = {function.tool.name: function for function in functions}
        assert list(tools) == list(TASKS)
        said = tools["describe"].run({"images": [str(PICTURE)], "sampling": sampling})
        refused = tools["describe"].run({"images": ["gone.png"]})
    task = Describe(sampling=Sampling(**sampling))
    assert said == task.run(LocalModel(), [Image.of(PICTURE)]).text
    assert refused.startswith("error: ")
    assert "gone.png" in refused


@pytest.mark.parametrize("where", ["no-such-command-here", "false", "http://127.0.0.1:9/mcp"])
def test_no_server_is_one_error(where: str) -> None:
    with (
        pytest.raises(RemoteError, match=f"'{where}' does not answer"),
        mcp_functions(where, offline=False),
    ):
        pass


def test_an_address_is_not_used_offline() -> None:
    with pytest.raises(OfflineError), mcp_functions("http://example.com/mcp", offline=True):
        pass


@pytest.mark.parametrize("where", ["", "  ", "'open"])
def test_a_command_has_words(where: str) -> None:
    with pytest.raises(UsageError, match="neither"), mcp_functions(where, offline=False):
        pass
