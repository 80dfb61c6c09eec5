"""The checks of extracted values: numbers as their standards publish them, and each slip in one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qvl.tasks.checks import (
    Rule,
    checked,
    is_date,
    is_ean13,
    is_iban,
    is_inn,
    is_luhn,
    mrz_faults,
)

# the specimen of ICAO 9303-4, appendix B
MRZ = (
    "P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<<",
    "L898902C36UTO7408122F1204159ZE184226B<<<<<10",
)
VALID: list[tuple[Callable[[str], bool], str]] = [
    (is_inn, "7707083893"),  # Sberbank, in the state register
    (is_inn, "7736207543"),  # Yandex, in the state register
    (is_inn, "500100732259"),  # the tax service's example of a person's
    (is_ean13, "4006381333931"),  # Wikipedia, "International Article Number"
    (is_ean13, "590-1234-12345 7"),  # GS1's example
    (is_iban, "GB82 WEST 1234 5698 7654 32"),  # ISO 13616's registry
    (is_iban, "DE89 3704 0044 0532 0130 00"),  # ISO 13616's registry
    (is_iban, "NO93 8601 1117 947"),  # the shortest of it
    (is_luhn, "79927398713"),  # Wikipedia, "Luhn algorithm"
    (is_luhn, "4111 1111 1111 1111"),  # Visa's test card
    (is_date, "2024-02-29"),
]


@pytest.mark.parametrize(("is_valid", "number"), VALID)
def test_a_published_number_is_valid(is_valid: Callable[[str], bool], number: str) -> None:
    assert is_valid(number)


@pytest.mark.parametrize(("is_valid", "number"), VALID[:-1])
def test_any_one_digit_read_wrong_is_found(is_valid: Callable[[str], bool], number: str) -> None:
    wrong = [
        number[:at] + other + number[at + 1 :]
        for at, digit in enumerate(number)
        if digit.isdigit()
        for other in "0123456789"
        if other != digit
    ]
    passed = [one for one in wrong if is_valid(one)]
    # the tax number's formula takes a remainder of ten for nought: it is blind to a few slips
    assert len(passed) <= (len(wrong) * 0.03 if is_valid is is_inn else 0), passed


@pytest.mark.parametrize("is_valid", [is_inn, is_ean13, is_iban, is_luhn, is_date])
@pytest.mark.parametrize(
    "text", ["", " ", "0", "12", "x", "１２３", "400638133393١", "-", "9" * 500]
)
def test_what_is_no_number_is_not_valid(is_valid: Callable[[str], bool], text: str) -> None:
    assert not is_valid(text)


@pytest.mark.parametrize("text", ["2023-02-29", "12.03.2024", "0001-01-01", "20240312", "2024-3-1"])
def test_what_is_no_day_is_not_valid(text: str) -> None:
    assert not is_date(text)


def test_the_lines_of_a_passport() -> None:
    assert mrz_faults(*MRZ) == ()
    first, second = MRZ
    assert mrz_faults(first, second.replace("898", "698")) == ("number", "composite")
    assert mrz_faults(first, second.replace("7408122", "7408123")) == ("birth", "composite")
    assert mrz_faults(first, second[:-1] + "1") == ("composite",)
    assert mrz_faults(first[:-1], second) == ("lines",)
    assert mrz_faults(first, second.lower()) == ("lines",)


def row(count: float | None, price: float | None, total: float | None) -> dict[str, float | None]:
    return {"count": count, "price": price, "sum": total}


RECEIPT = {"lines": [row(2, 10.5, 21.0), row(1, 4.99, 4.99)], "off": None, "total": 25.99}
SUM = Rule("sum", "total", of=("lines.sum",), less=("off",))
PRODUCT = Rule("product", "lines.sum", of=("lines.count", "lines.price"))


def test_sums_and_products() -> None:
    assert [c.ok for c in checked(RECEIPT, [SUM, PRODUCT])] == [True, True, True]
    (wrong,) = checked({**RECEIPT, "total": 25.98}, [SUM])
    assert (wrong.field, wrong.rule, wrong.ok) == ("total", "sum", False)
    assert "25.98" in wrong.message
    assert "25.99" in wrong.message
    (less,) = checked({**RECEIPT, "off": 5.0, "total": 20.99}, [SUM])
    assert less.ok
    lines = [row(2, 10.5, 21.0), row(3, 4.99, 4.99)]
    first, second = checked({"lines": lines}, [PRODUCT])
    assert (first.ok, second.ok, second.field) == (True, False, "lines[1].sum")
    (tax,) = checked(
        {"net": 99.99, "rate": 20, "tax": 20.0}, [Rule("percent", "tax", ("net", "rate"))]
    )
    assert tax.ok


@pytest.mark.parametrize(
    "data",
    [
        {"lines": None, "total": 5.0, "off": None},
        {"lines": [], "total": 5.0, "off": None},
        {"lines": [row(1, None, None)], "total": 5.0, "off": None},
        {"lines": [row(None, 5.0, 5.0)], "total": None, "off": None},
    ],
)
def test_what_is_absent_is_not_checked(data: dict[str, object]) -> None:
    assert checked(data, [SUM, PRODUCT]) == ()


def test_days_in_order() -> None:
    rule = Rule("order", "due", ("issued",))
    assert checked({"issued": "2024-01-31", "due": "2024-02-01"}, [rule])[0].ok
    assert not checked({"issued": "2024-02-01", "due": "2024-01-31"}, [rule])[0].ok
    assert checked({"issued": None, "due": "2024-01-31"}, [rule]) == ()


def test_a_passport_says_the_same_twice() -> None:
    rule = Rule("mrz", "second", ("first", "number", "born", "until"))
    printed = {"number": "L898902C3", "born": "1974-08-12", "until": "2012-04-15"}
    data = {"first": MRZ[0], "second": MRZ[1], **printed}
    assert [c.ok for c in checked(data, [rule])] == [True] * 4
    other = checked({**data, "born": "1974-08-13"}, [rule])
    assert [c.field for c in other if not c.ok] == ["born"]
    (broken,) = checked({**data, "second": MRZ[1][:-1] + "9"}, [rule])
    assert (broken.field, broken.ok) == ("second", False)
