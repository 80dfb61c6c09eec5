"""Where a setting comes from, and what is said about one that cannot be used."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qvl.errors import UsageError
from qvl.settings import KEYS, explain_settings, load_settings, runs_folder, user_settings_file
from qvl.types import Usage


@pytest.fixture(autouse=True)
def _bare_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty folder, an empty home, no QVL_* variable."""
    for name in [n for n in os.environ if n.startswith("QVL_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write_here(text: str) -> None:
    Path("qvl.toml").write_text(text, "utf-8")


def write_user(text: str) -> None:
    user_settings_file().parent.mkdir(parents=True, exist_ok=True)
    user_settings_file().write_text(text, "utf-8")


def origin_of(key: str, **flags: object) -> str:
    return next(s.origin for s in explain_settings(**flags) if s.key == key)


def test_without_any_source_the_defaults_hold():
    settings = load_settings()
    assert settings.model_dump() == {
        "model": "sprout",
        "adapter": "",
        "language": "en",
        "device": "auto",
        "dtype": "auto",
        "style": "plain",
        "max_new_tokens": None,
        "runs": str(runs_folder()),
        "prices": {},
    }
    assert {origin_of(key) for key in KEYS} == {"default"}


def test_each_source_beats_the_next(monkeypatch: pytest.MonkeyPatch):
    write_user('model = "user"\n')
    assert (load_settings().model, origin_of("model")) == (
        "user",
        f"model in {user_settings_file()}",
    )
    write_here('model = "folder"\n')
    assert (load_settings().model, origin_of("model")) == ("folder", "model in qvl.toml")
    monkeypatch.setenv("QVL_MODEL", "variable")
    assert (load_settings().model, origin_of("model")) == (
        "variable",
        "QVL_MODEL in the environment",
    )
    assert load_settings(model="flag").model == "flag"
    assert origin_of("model", model="flag") == "--model on the command line"


def test_prices_are_a_table_of_models(monkeypatch: pytest.MonkeyPatch):
    write_here('[prices."Qwen/Qwen3-VL-8B"]\ninput = 2\noutput = 10.5\n')
    price = load_settings().prices["Qwen/Qwen3-VL-8B"]
    used = Usage(prompt_tokens=3_000, completion_tokens=100, image_tokens=9, cached_tokens=1_000)
    assert price.of(used) == pytest.approx((3_000 * 2 + 100 * 10.5) / 1e6)
    cheaper = price.model_copy(update={"cached_input": 0.5})
    assert cheaper.of(used) == pytest.approx((2_000 * 2 + 1_000 * 0.5 + 100 * 10.5) / 1e6)
    for wrong in ("output = -1", "output = nan", "", "output = 1\ncached = 2"):
        write_here(f"[prices.m]\ninput = 2\n{wrong}\n")
        with pytest.raises(UsageError, match=r"prices\.m\."):
            load_settings()


def test_sources_mix_key_by_key(monkeypatch: pytest.MonkeyPatch):
    write_user('dtype = "bf16"\nlanguage = "zh"\n')
    write_here('language = "ru"\n')
    monkeypatch.setenv("QVL_MAX_NEW_TOKENS", "64")
    settings = load_settings(device="cpu")
    assert (settings.dtype, settings.language) == ("bf16", "ru")
    assert (settings.max_new_tokens, settings.device) == (64, "cpu")


def test_a_flag_that_was_not_given_and_an_empty_variable_count_as_unset(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("QVL_MODEL", "")
    assert load_settings(model=None).model == "sprout"


def test_several_languages_may_be_joined():
    assert load_settings(language="ru,en,zh").language == "ru,en,zh"


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().model = "other"  # pyrefly: ignore[read-only]


def test_an_unknown_key_names_the_file_and_the_nearest_name():
    write_here("max_tokens = 5\n")
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert caught.value.message == "unknown setting 'max_tokens' in qvl.toml"
    assert "'max_new_tokens'" in (caught.value.hint or "")


def test_an_unknown_variable_names_itself_and_the_nearest_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QVL_LANGAUGE", "ru")
    with pytest.raises(
        UsageError, match="unknown setting 'QVL_LANGAUGE' in the environment"
    ) as err:
        load_settings()
    assert "'QVL_LANGUAGE'" in (err.value.hint or "")


def test_an_unknown_name_like_no_other_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown setting '--zzz'") as caught:
        load_settings(zzz=1)
    assert "--max-new-tokens" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("line", "start"),
    [
        (
            'dtype = "bf8"',
            "dtype is 'bf8' in qvl.toml: input should be 'auto', 'fp32', 'bf16', 'fp8', 'int8' or 'int4'",
        ),
        ("max_new_tokens = 0", "max_new_tokens is 0 in qvl.toml: "),
        ("max_new_tokens = -1", "max_new_tokens is -1 in qvl.toml: "),
        ('max_new_tokens = "unlimited"', "max_new_tokens is 'unlimited' in qvl.toml: "),
        ("max_new_tokens = 40961", "max_new_tokens is 40961 in qvl.toml: "),
        ("max_new_tokens = true", "max_new_tokens is True in qvl.toml: "),
        ('max_new_tokens = "64"', "max_new_tokens is '64' in qvl.toml: "),
        ('language = "Russian"', "language is 'Russian' in qvl.toml: it should be a code such as"),
        ('language = ""', "language is '' in qvl.toml: "),
        ('device = "gpu"', "device is 'gpu' in qvl.toml: it should be 'auto', 'cpu', 'cuda'"),
        ('model = ""', "model is '' in qvl.toml: "),
        ("model = 3", "model is 3 in qvl.toml: "),
    ],
)
def test_a_bad_value_names_its_place_and_what_fits(line: str, start: str):
    write_here(line + "\n")
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert caught.value.message.startswith(start)
    assert caught.value.hint


def test_a_bad_value_in_a_variable_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QVL_MAX_NEW_TOKENS", "many")
    with pytest.raises(UsageError, match="QVL_MAX_NEW_TOKENS is 'many' in the environment: "):
        load_settings()


def test_a_bad_value_is_named_even_where_a_stronger_source_hides_it():
    write_user('dtype = "int3"\n')
    with pytest.raises(UsageError, match="dtype is 'int3'"):
        load_settings(dtype="fp32")


def test_malformed_toml_names_file_and_line():
    write_here('model = "sprout"\nlanguage ru\n')
    with pytest.raises(UsageError, match=r"qvl\.toml is not valid TOML: .*line 2"):
        load_settings()


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch was-run']\n",
        "max_new_tokens = null\n",
        "a = &a [lol]\nb = [*a, *a]\n",
        "<model>sprout</model>",
    ],
    ids=["F001", "F004", "F006 YAML", "XML"],
)
def test_only_toml_is_read(text: str):
    write_here(text)
    with pytest.raises(UsageError, match=r"qvl\.toml is not valid TOML: ") as caught:
        load_settings()
    assert caught.value.hint
    assert not Path("was-run").exists()


def test_a_file_that_is_too_large_is_not_read():
    """F006."""
    write_here("# " + "x" * (10 * 2**20))
    began_s = time.monotonic()
    with pytest.raises(UsageError, match=r"qvl\.toml has 10485762 bytes, the limit is 1048576"):
        load_settings()
    assert time.monotonic() - began_s < 1


def test_a_file_that_is_not_text_is_named():
    Path("qvl.toml").write_bytes(b'model = "\xff\xfe"\n')
    with pytest.raises(UsageError, match=r"qvl\.toml is not UTF-8 text \(byte 9\)"):
        load_settings()


def test_a_folder_in_place_of_the_file_is_named():
    Path("qvl.toml").mkdir()
    with pytest.raises(UsageError, match=r"qvl\.toml cannot be read: "):
        load_settings()


def test_a_byte_order_mark_is_not_a_key():
    Path("qvl.toml").write_text('model = "x"\n', "utf-8-sig")
    assert load_settings().model == "x"


def test_variables_of_others_are_shown_and_secrets_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = {s.key: (s.value, s.origin) for s in explain_settings()}
    assert rows["HF_TOKEN"] == ("(hidden)", "HF_TOKEN in the environment")
    assert rows["HF_HOME"] == ("/models", "HF_HOME in the environment")
    assert rows["NO_COLOR"] == (None, "not set")
