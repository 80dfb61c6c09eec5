"""The names that `import qvl` offers: few, frozen here, and all of them real."""

from __future__ import annotations

import pytest

import qvl

PUBLIC = [
    "Box",
    "Completion",
    "Delta",
    "Image",
    "Message",
    "QvlError",
    "Request",
    "ResponseFormat",
    "Sampling",
    "Text",
    "VLM",
    "__version__",
]


def test_the_public_names_are_these():
    assert sorted(qvl.__all__) == sorted(PUBLIC)
    assert len(qvl.__all__) <= 12
    assert sorted(dir(qvl)) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_the_thing_it_names(name: str):
    value = getattr(qvl, name)
    assert name == "__version__" or value.__name__ == name
    assert getattr(qvl, name) is value


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Qwen'"):
        qvl.Qwen  # noqa: B018 - looking it up is the test
