"""Bulks made to hurt: what costs much and can be no transaction is not taken to its end."""

import json
from pathlib import Path

from fastapi.testclient import TestClient

from fraudlib.api.app import create_app
from fraudlib.api.bulk import MOST_BRACKETS, MOST_FIELDS, MOST_INVALID
from fraudlib.api.keys import make_key
from fraudlib.settings import Settings
from tests.test_api import JSON, NDJSON, TRIP, Broker, is_problem, sent

LINE = json.dumps(TRIP).encode()


def api(broker: Broker, settings: Settings) -> TestClient:
    """The app with that broker, without its background tasks."""
    app = create_app(settings)
    app.state.services.link.publisher, app.state.services.link.is_up = broker, True
    return TestClient(app, raise_server_exceptions=False)


def test_an_array_of_countless_nothings_is_refused_unread() -> None:
    """Three bytes each would become a hundred and hold everyone up; the largest that is allowed passes."""
    broker = Broker()
    client = api(broker, Settings())
    for many in (b"[" + b"[]," * MOST_BRACKETS + b"[]]", b'[{"a":[' + b"{}," * MOST_BRACKETS + b"{}]}]"):
        assert is_problem(client.post("/transactions", content=many, headers=JSON), 413, "too-large")
    assert broker.messages == []
    most = b"[" + b",".join([LINE] * 5000) + b"]"
    assert client.post("/transactions", content=most, headers=JSON).json()["accepted"] == 5000


def test_an_array_takes_items_of_the_size_of_a_single_transaction() -> None:
    """Told before it is parsed where it can be; one that hides it in its texts is told by its fields."""
    broker = Broker()
    client = api(broker, Settings())
    fields = [b'"%06d":1' % i for i in range(10_000)]
    hidden = [b'"}%05d":1' % i for i in range(MOST_FIELDS + 1)]
    for parts, why in ((fields, "65536 bytes"), (hidden, "1000 fields")):
        for body in (b"[" + LINE + b",{" + b",".join(parts) + b"}]", b"[{" + b",".join(parts) + b"}," + LINE + b"]"):
            response = client.post("/transactions", content=body, headers=JSON)
            assert is_problem(response, 413, "too-large")
            assert why in response.json()["detail"]
    assert broker.messages == []
    wide = b"[" + LINE + b",{" + b",".join([LINE[1:-1], *fields[: MOST_FIELDS - 3]]) + b"}]"
    assert client.post("/transactions", content=wide, headers=JSON).json()["accepted"] == 2


def test_a_bulk_ends_after_too_many_that_can_be_none() -> None:
    """What came before has its results, and what was good among it is taken; nothing after it is looked at."""
    broker = Broker()
    lines = b"\n".join([LINE, *[b"1"] * (3 * MOST_INVALID), LINE])
    response = api(broker, Settings()).post("/transactions", content=lines, headers=NDJSON)
    assert is_problem(response, 422, "invalid-transaction")
    answer = response.json()
    assert answer["accepted"] == len(sent(broker)) == 1
    assert MOST_INVALID < answer["failed"] <= MOST_INVALID + 1000
    assert len(answer["results"]) == answer["accepted"] + answer["failed"]


def test_a_bulk_that_ends_early_counts_against_its_client(tmp_path: Path) -> None:
    """Lines that end it do not make the thousand before them free."""
    key, _ = make_key("meters", tmp_path / "hashes")
    client = api(Broker(), Settings(api_keys_file=tmp_path / "hashes", client_rate=100))
    headers = NDJSON | {"Authorization": f"Bearer {key}"}
    body = b"\n".join([LINE] * 1000 + [b"1"] * (MOST_INVALID + 1000))
    first = client.post("/transactions", content=body, headers=headers)
    assert (first.status_code, first.json()["accepted"]) == (422, 1000)
    assert client.post("/transactions", content=LINE, headers=headers).status_code == 429
