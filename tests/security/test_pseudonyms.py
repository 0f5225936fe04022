"""Keyed hashes in place of clients' ids: what they are, and that the API lets no id past them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from fraudlib.api.app import create_app
from fraudlib.api.pseudonyms import Pseudonyms, write_key
from fraudlib.cli import cli
from fraudlib.errors import DataError, ServiceError
from fraudlib.settings import Settings
from fraudlib.wire.records import is_id
from tests.test_api import JSON, NDJSON, TRIP, Broker

SECRET, FORMER = "k" * 43, "f" * 43
ID = "medallion-5X55"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with a key in use and a former one."""
    path = tmp_path / "ids"
    path.write_text(f"# in use\n{SECRET}\n\n# until March\n{FORMER}\n")
    return path


def api(broker: Broker, **settings: Any) -> TestClient:
    """The app with that broker, without its background tasks."""
    app = create_app(Settings(**settings))
    app.state.services.link.publisher, app.state.services.link.is_up = broker, True
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def broker() -> Broker:
    """A broker that takes everything."""
    return Broker()


@pytest.fixture
def client(broker: Broker, key_file: Path) -> TestClient:
    """An API that hides ids."""
    return api(broker, id_hash_key_file=key_file)


def name_of(given: str) -> str:
    """Pseudonym by the key in use."""
    return Pseudonyms(SECRET).of(given)


# -- pseudonyms -------------------------------------------------------------------------------------------------------


def test_a_pseudonym_is_an_id_that_tells_nothing() -> None:
    """The same for the same id and key, another for every other; it passes wherever an id does."""
    name = name_of(ID)
    assert is_id(name)
    assert name == name_of(ID)
    assert ID not in name
    assert len({name, name_of("medallion-5X56"), Pseudonyms(FORMER).of(ID), name_of(f"{ID} ".strip() + "0")}) == 4
    assert name.split("-")[1] == name_of("another").split("-")[1] != Pseudonyms(FORMER).of(ID).split("-")[1]


def test_a_pseudonym_that_comes_back_stays_and_a_forged_one_does_not() -> None:
    """Who writes an id of that shape without the key has it hashed like any other."""
    name = name_of(ID)
    assert name_of(name) == name
    for place in (4, 13, -9, -1):
        forged = f"{name[:place]}{'0' if name[place] != '0' else '1'}{name[place:][1:]}"
        assert len(forged) == len(name)
        assert name_of(forged) != forged
        assert is_id(name_of(forged))
    assert name_of("hid-") != "hid-"


def test_after_a_change_of_keys_the_former_ones_are_recognised() -> None:
    """A pseudonym of a former key stays as it is; ids get that of the new one; a key that is gone is unknown."""
    old = Pseudonyms(FORMER).of(ID)
    assert Pseudonyms(SECRET, FORMER).of(old) == old
    assert Pseudonyms(SECRET, FORMER).of(ID) == name_of(ID)
    assert name_of(old) != old


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "tooshort-and-secret\n", f"{SECRET}\ntooshort-and-secret\n", None, b"\xff" * 50]
)
def test_a_file_without_a_good_key_is_refused(tmp_path: Path, text: str | bytes | None) -> None:
    """With its name and what to do, and nothing of what it holds."""
    path = tmp_path / "ids"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match="fraudlib id-key") as caught:
        create_app(Settings(id_hash_key_file=path))
    assert str(path) in str(caught.value)
    assert "tooshort" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_new_key_is_for_its_owner_and_is_never_overwritten(tmp_path: Path) -> None:
    """Mode 0600, another each time; where a file is, it stays."""
    one, other = tmp_path / "keys" / "one", tmp_path / "other"
    write_key(one)
    write_key(other)
    assert one.stat().st_mode & 0o777 == 0o600
    assert Pseudonyms.read(one).of(ID) != Pseudonyms.read(other).of(ID)
    before = one.read_text()
    with pytest.raises(ServiceError, match="never overwritten"):
        write_key(one)
    assert one.read_text() == before


# -- the API ----------------------------------------------------------------------------------------------------------


def test_one_transaction_goes_on_under_its_pseudonym(client: TestClient, broker: Broker) -> None:
    """Key, message and answer have it, whether the id came as a field, as Idempotency-Key or as a pseudonym."""
    name = name_of(ID)
    for body, headers in (
        ({"transaction_id": ID}, {}),
        ({}, {"Idempotency-Key": f'"{ID}"'}),
        ({"transaction_id": name}, {}),
    ):
        broker.messages.clear()
        answer = client.post("/transaction", json=TRIP | body, headers=headers)
        assert (answer.status_code, answer.json()["transaction_id"]) == (202, name)
        ((_, key, value),) = broker.messages
        assert (key, json.loads(value or b"")["transaction_id"]) == (name.encode(), name)
        assert ID not in f"{value!r}{answer.text}"


def test_a_retry_gets_the_first_answer_and_what_is_remembered_has_no_id(client: TestClient, broker: Broker) -> None:
    """Idempotency-Key works as ever; the memory that it needs holds the pseudonym."""
    tries = [client.post("/transaction", json=TRIP, headers={"Idempotency-Key": ID}) for _ in range(2)]
    assert len(broker.messages) == 1
    assert tries[0].json() == tries[1].json()
    assert tries[1].headers["idempotency-replayed"] == "true"
    entries = client.app.state.services.answers._entries  # type: ignore[attr-defined]
    assert [key.strip() for key in entries] == [name_of(ID)]
    assert ID not in repr(entries)
    other = client.post("/transaction", json=TRIP | {"tip_amount": 1}, headers={"Idempotency-Key": ID})
    assert other.status_code == 422
    assert ID not in other.text


def test_two_identities_of_one_transaction_are_compared(client: TestClient, broker: Broker) -> None:
    """Field and header may be the id and its pseudonym; two ids are refused as ever."""
    name = name_of(ID)
    both = client.post("/transaction", json=TRIP | {"transaction_id": ID}, headers={"Idempotency-Key": name})
    assert both.json()["transaction_id"] == name
    wrong = client.post("/transaction", json=TRIP | {"transaction_id": ID}, headers={"Idempotency-Key": "b"})
    assert wrong.status_code == 422
    assert len(broker.messages) == 1


def lines_and_array() -> list[tuple[bytes, dict[str, str]]]:
    """The same items as NDJSON and as an array: ids, none, null, a pseudonym, another spelling, and wrong ones."""
    items: list[Any] = [
        TRIP | {"transaction_id": ID},
        TRIP,
        TRIP | {"transaction_id": None},
        TRIP | {"transaction_id": name_of(ID)},
        TRIP | {"TransactionID": "b", "unknown": 1},
        TRIP | {"transaction_id": "an id with blanks"},
        {"transaction_id": ID},
    ]
    return [("\n".join(map(json.dumps, items)).encode(), NDJSON), (json.dumps(items).encode(), JSON)]


@pytest.mark.parametrize(("body", "media"), lines_and_array(), ids=["lines", "array"])
def test_many_transactions_go_on_under_their_pseudonyms(
    client: TestClient, broker: Broker, body: bytes, media: dict[str, str]
) -> None:
    """Every result and message has one, made-up ids too; what was wrong stays wrong, and nothing else changes."""
    answer = client.post("/transactions", content=body, headers=media)
    results = answer.json()["results"]
    assert [item["status"] for item in results] == ["accepted"] * 5 + ["invalid"] * 2
    names = [item["transaction_id"] for item in results[:5]]
    assert names[0] == names[3] == name_of(ID)
    assert names[4] == name_of("b")
    assert all(name_of(name) == name for name in names)
    values = [json.loads(value or b"") for _, _, value in broker.messages]
    assert sorted(value["transaction_id"] for value in values) == sorted(names)
    assert {key for _, key, _ in broker.messages} == {name.encode() for name in names}
    assert ID not in f"{broker.messages}{answer.text}"

    def rest(messages: list[tuple[str, bytes | None, bytes | None]]) -> list[dict[str, Any]]:
        kept = [json.loads(value or b"") for _, _, value in messages]
        return sorted(({**v, "transaction_id": 0, "accepted_at": 0} for v in kept), key=repr)

    hidden, plain = rest(broker.messages), Broker()
    api(plain).post("/transactions", content=body, headers=media)
    assert [sorted(value.items()) for value in rest(plain.messages)] == [sorted(value.items()) for value in hidden]


def test_a_label_joins_whichever_name_it_comes_under(client: TestClient, broker: Broker) -> None:
    """The client's own id, the pseudonym of an alert and one of a former key; the answer says which it is."""
    old = Pseudonyms(FORMER).of(ID)
    made = client.post("/transaction", json=TRIP).json()["transaction_id"]
    for given, name in ((ID, name_of(ID)), (name_of(ID), name_of(ID)), (old, old), (made, made)):
        broker.messages.clear()
        answer = client.post("/labels", json={"transaction_id": given, "verdict": "fraud"})
        assert (answer.status_code, answer.json()["transaction_id"]) == (202, name)
        ((topic, key, value),) = broker.messages
        assert (topic, key) == ("labels", name.encode())
        assert json.loads(value or b"")["transaction_id"] == name


def test_without_a_key_ids_go_on_as_they_are(broker: Broker) -> None:
    """Off is the default: also what looks like a pseudonym is an id like any other."""
    client, name = api(broker), name_of(ID)
    for given in (ID, name):
        assert client.post("/transaction", json=TRIP | {"transaction_id": given}).json()["transaction_id"] == given
        assert client.post("/labels", json={"transaction_id": given, "verdict": "honest"}).status_code == 202
    assert [key for _, key, _ in broker.messages] == [ID.encode()] * 2 + [name.encode()] * 2


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_operator_finds_what_a_client_asks_about(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fraudlib hash-id` prints what the API made of an id, from arguments or stdin."""
    monkeypatch.setenv("FRAUDLIB_ID_HASH_KEY_FILE", str(key_file))
    for arguments, text in ([ID, "b"], ""), ([], f"{ID}\nb\n"):
        done = CliRunner().invoke(cli, ["hash-id", *arguments], input=text)
        assert done.output.split() == [name_of(ID), name_of("b")]
    wrong = CliRunner().invoke(cli, ["hash-id", "two words"])
    assert wrong.exit_code != 0
    monkeypatch.delenv("FRAUDLIB_ID_HASH_KEY_FILE")
    missing = CliRunner().invoke(cli, ["hash-id", ID])
    assert isinstance(missing.exception, ServiceError)
    assert "FRAUDLIB_ID_HASH_KEY_FILE" in str(missing.exception)


def test_the_command_makes_a_key_that_the_api_takes(tmp_path: Path) -> None:
    """And does not show it."""
    path = tmp_path / "ids"
    done = CliRunner().invoke(cli, ["id-key", str(path)])
    assert done.exit_code == 0
    assert path.read_text().strip() not in done.output
    assert is_id(Pseudonyms.read(path).of(ID))
