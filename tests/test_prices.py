"""What models cost: the table, which names it prices, and prices that the user gives."""

import datetime
from dataclasses import FrozenInstanceError
from importlib import resources

import pytest
import yaml

from whet.annotate import prices
from whet.annotate.prices import Price, batch_discount, known_price, parse_price
from whet.errors import WhetError

TABLE = yaml.safe_load((resources.files("whet.annotate") / "prices.yaml").read_text("utf-8"))


def test_table_is_dated_and_holds_prices_and_nothing_else():
    assert set(TABLE) == {"checked", "batch_discount", "models"}
    assert 0 < batch_discount() < 1
    days = [
        TABLE["checked"],
        *(m.get("checked", TABLE["checked"]) for m in TABLE["models"].values()),
    ]
    assert all(type(day) is datetime.date for day in days)
    for name, entry in TABLE["models"].items():
        assert set(entry) - {"checked"} == {"input", "output"}
        assert 0 < entry["input"] < entry["output"] < 1000, name
        assert name == name.strip().lower()


@pytest.mark.parametrize("name", TABLE["models"])
def test_each_name_has_its_own_price_and_day(name):
    entry = TABLE["models"][name]
    price = known_price(name)
    assert price == Price(
        entry["input"], entry["output"], str(entry.get("checked", TABLE["checked"]))
    )
    for snapshot in (f"{name}-2026-01-31", f"{name}-20260131", f"{name}@20260131", f"{name}-0613"):
        assert known_price(snapshot) == price
    for alias in (f"{name}-latest", f"{name}:latest", f"openai/{name}", f"a.b/c-d/{name}-latest"):
        assert known_price(alias) == price


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpt",
        "gpt-4",
        "gpt-4oo",
        "gpt-4o-",
        "gpt-4o-audio-preview",
        "gpt-4o-mini-audio-preview",
        "gpt-4o-2024-05",
        "gpt-5-pro",
        "gpt-5-5",
        "gpt-5.5",
        "gpt-5-chat-latest",
        "gpt-5-nano:free",
        "GPT-4o",
        " gpt-4o",
        "gpt-4o\n",
        "gpt-4o-2024-08-06\n",
        "gpt-4o-２０２４",
        "ft:gpt-4o-mini-2024-07-18:me::id",
        "claude-opus-5-9",
        "claude-sonnet-5-50",
        "claude-haiku",
        "openai/",
        "/gpt-4o",
        "./gpt-4o",
        "gpt-4o/",
        "my-gpt-4o",
    ],
)
def test_other_names_have_no_price(name):
    assert known_price(name) is None


def test_small_model_never_takes_the_price_of_a_larger_one(monkeypatch):
    table = {
        "checked": "2026-01-01",
        "models": {
            "gpt-4o": {"input": 2.5, "output": 10},
            "claude-opus-5": {"input": 5, "output": 25},
        },
    }
    monkeypatch.setattr(prices, "_table", lambda: table)
    assert known_price("gpt-4o-2024-08-06") == Price(2.5, 10.0, "2026-01-01")
    assert known_price("gpt-4o-mini") is None
    assert known_price("gpt-4o-mini-2024-07-18") is None
    assert known_price("claude-opus-5-5") is None


def test_longest_name_wins_whatever_the_order(monkeypatch):
    entries = [("m", 1), ("m-001", 2), ("m-001-002", 3)]
    for order in (entries, entries[::-1]):
        table = {"checked": "d", "models": {n: {"input": p, "output": p} for n, p in order}}
        monkeypatch.setattr(prices, "_table", lambda table=table: table)
        assert [
            known_price(n).input for n in ("m", "m-001", "m-001-002", "m-001-003", "m-9999")
        ] == [
            1,
            2,
            3,
            2,
            1,
        ]


def test_cost_is_in_dollars_for_tokens():
    price = Price(0.15, 0.6)
    assert price.cost(0, 0) == 0
    assert price.cost(1_000_000, 0) == pytest.approx(0.15)
    assert price.cost(0, 1_000_000) == pytest.approx(0.6)
    assert price.cost(123_456, 7_890) == pytest.approx((0.15 * 123_456 + 0.6 * 7_890) / 1e6)
    assert price.checked is None
    with pytest.raises(FrozenInstanceError):
        price.input = 1.0


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("0.15,0.60", (0.15, 0.6)),
        (" 1 , 2 ", (1.0, 2.0)),
        ("0,0", (0.0, 0.0)),
        ("1e-1,.5", (0.1, 0.5)),
    ],
)
def test_given_price_is_read(text, price):
    assert parse_price(text) == Price(*price)


@pytest.mark.parametrize(
    "text",
    [
        *["", ",", "1", "1,", ",1", "1,2,3", "0,15,0,60", "a,b", "1;2", "1 2", "$1,$2", "1\n,2x"],
        *["-1,2", "1,-0.1", "nan,1", "1,nan", "inf,1", "1,1e999"],
    ],
)
def test_bad_price_is_refused_with_value_rule_and_remedy(text):
    with pytest.raises(WhetError) as raised:
        parse_price(text)
    message = str(raised.value)
    assert message == (
        f"the price {text!r} is not two numbers of at least 0 with a comma between them: give US "
        "dollars per million tokens of input and of output, such as 0.15,0.60"
    )


def test_bad_price_of_any_length_is_one_short_sentence():
    with pytest.raises(WhetError) as raised:
        parse_price("9" * 5000 + ",x")
    assert len(str(raised.value)) < 250
    assert "'" + "9" * 40 + "...'" in str(raised.value)
