from qvl.loading.catalogue import CATALOGUE, find


def test_each_hub_id_is_listed_once_and_found_in_any_case() -> None:
    ids = [entry.hub_id for entry in CATALOGUE]
    assert len(set(ids)) == len(ids)
    for entry in CATALOGUE:
        assert find(entry.hub_id) is entry
        assert find(entry.hub_id.lower()) is entry
        assert find(entry.hub_id.removeprefix("Qwen/")) is entry


def test_every_form_of_every_generation_is_listed() -> None:
    assert {entry.hub_id for entry in CATALOGUE} >= {
        "Qwen/Qwen-VL",
        "Qwen/Qwen-VL-Chat-Int4",
        "Qwen/Qwen2-VL-72B-Instruct-GPTQ-Int8",
        "Qwen/Qwen2.5-VL-3B-Instruct-AWQ",
        "Qwen/Qwen3-VL-8B-Thinking-FP8",
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
    }


def test_bf16_sizes_are_two_bytes_a_parameter() -> None:
    for entry in CATALOGUE:
        if not any(word in entry.hub_id for word in ("AWQ", "Int4", "Int8", "FP8")):
            assert abs(entry.weights_gib - 2 * entry.parameters / 2**30) < 0.1


def test_licences_that_restrict_commercial_use_are_marked() -> None:
    commercial = {entry.hub_id: entry.commercial for entry in CATALOGUE}
    assert commercial["Qwen/Qwen2.5-VL-3B-Instruct"] == "no"
    assert commercial["Qwen/Qwen2-VL-72B-Instruct"] == "conditional"
    assert commercial["Qwen/Qwen3-VL-235B-A22B-Thinking"] == "yes"


def test_the_8b_that_people_type_is_the_7b() -> None:
    assert find("Qwen/Qwen2-VL-8B-Instruct") is find("Qwen/Qwen2-VL-7B-Instruct")


def test_an_unknown_name_is_not_found() -> None:
    assert find("Qwen/Qwen9-VL") is None
    assert find("other/Qwen2-VL-7B-Instruct") is None
