# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from deltarec.text.template import Budget, Renderer, Template

EVENT = {"event": "{title}", "separator": "; "}


def template(text: str, **options: Any) -> Template:
    return Template(name="t", version=1, text=text, **options)


def test_columns_history_and_what_is_missing():
    renderer = Renderer(template("{user} saw {history}.", **EVENT), Budget(tokens=100))
    events = [{"title": "Heat"}, {"title": None}]
    found = renderer.render({"user": "Ann"}, events)
    assert (found.text, found.events) == ("Ann saw Heat; unknown.", 2)
    assert renderer.render({"user": None}).text == "unknown saw unknown."


def test_values_are_not_templates():
    values = {"title": "{history} {title.__class__}"}
    assert Renderer(template("{title}"), Budget()).render(values).text == values["title"]


@pytest.mark.parametrize(
    "tokens,kept", [(100, 4), (12, 4), (11, 3), (7, 2), (6, 2), (5, 1), (4, 1), (3, 0)]
)
def test_history_is_cut_from_the_oldest(tokens: int, kept: int):
    """With n events the text has 2 + 11 n bytes, so ceil((2 + 11 n) / 4) tokens."""
    events = [{"title": f"film {i:03}"} for i in range(4)]
    renderer = Renderer(
        template("saw: {history}", event="{title}", separator=" | "), Budget(tokens=tokens)
    )
    found = renderer.render({}, events)
    lines = [f"film {i:03}" for i in range(4 - kept, 4)]
    assert (found.events, found.text) == (kept, f"saw: {' | '.join(lines) if kept else 'unknown'}")
    assert len(found.text) <= 4 * tokens


def test_columns_are_cut_between_words_to_their_limits():
    made = Renderer(template("{plot}", limits={"plot": 3}), Budget()).render(
        {"plot": "one two three"}
    )
    assert made.text == "one two"
    made = Renderer(template("{plot}", limits={"plot": 1}), Budget()).render(
        {"plot": "incomparable"}
    )
    assert made.text == "unknown"


def test_what_does_not_fit_without_history_is_refused():
    renderer = Renderer(template("{plot}", system="x" * 40), Budget(tokens=19))
    assert renderer.render({"plot": "y" * 36}).text
    with pytest.raises(ValueError, match="20 tokens without history, the budget is 19"):
        renderer.render({"plot": "y" * 37})


@pytest.mark.parametrize(
    "options,message",
    [
        ({"text": "{a.b}"}, "not a column's name"),
        ({"text": "{a!r}"}, "not a column's name"),
        ({"text": "{}"}, "not a column's name"),
        ({"text": "{a"}, "write {{ for a brace"),
        ({"text": "{history}"}, "go together"),
        ({"text": "{a}", "event": "{b}"}, "go together"),
        ({"text": "{a}", "limits": {"b": 3}}, "there is no field 'b'"),
    ],
)
def test_templates_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        template(**options)


def test_identity_knows_every_change():
    first = template("{a}")
    others = [
        template("{a} "),
        template("{a}", missing=""),
        Template(name="t", version=2, text="{a}"),
    ]
    assert len({str(t.identity) for t in [first, template("{a}"), *others]}) == 4
