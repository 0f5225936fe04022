"""API keys: how they are made and kept, what they open, and that nothing else does."""

import asyncio
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from fraudlib.api import access, keys
from fraudlib.api.access import require_safe_address
from fraudlib.api.app import create_app
from fraudlib.api.keys import Keys, make_key, read_clients
from fraudlib.cli import cli
from fraudlib.errors import DataError, ParameterError, ServiceError
from fraudlib.settings import Settings
from tests.test_api import JSON, TRIP, Broker, ask, is_problem, sent

PATHS = ("/transaction", "/transactions", "/labels", "/session")


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Key of the client alice, whose hash lies in `hashes`."""
    made, _ = make_key("alice", tmp_path / "hashes")
    assert made is not None
    return made


@pytest.fixture
def client(tmp_path: Path, key: str) -> TestClient:
    """The app that asks for a key, with a broker that takes everything."""
    return connected(Settings(api_keys_file=tmp_path / "hashes"))


def connected(settings: Settings) -> TestClient:
    """The app with a broker that takes everything."""
    app = create_app(settings)
    app.state.services.link.publisher, app.state.services.link.is_up = Broker(), True
    return TestClient(app, raise_server_exceptions=False)


def bearer(key: str) -> dict[str, str]:
    """Header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_key_is_kept_as_its_hash_for_its_owner_only(tmp_path: Path, key: str) -> None:
    """The file does not hold the key, and nobody else may read it."""
    path = tmp_path / "hashes"
    assert key not in path.read_text()
    assert keys.digest_of(key).hex() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) > 43


def test_two_keys_are_never_the_same(tmp_path: Path) -> None:
    """Keys are random, also those of one name."""
    made = {make_key("alice", tmp_path / "hashes")[0] for _ in range(50)}
    assert len(made) == len(read_clients(tmp_path / "hashes")) == 50


def test_the_command_may_run_again(tmp_path: Path) -> None:
    """With a file that holds the key already, it is taken as it is and stands in the hashes once."""
    hashes, own = tmp_path / "k" / "hashes", tmp_path / "k" / "own"
    command = [sys.executable, "-m", "fraudlib.cli", "api-key", "stack", "--add", str(hashes), "--write", str(own)]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert own.read_text().strip() not in outputs[0]
    assert len(hashes.read_text().splitlines()) == 1
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    assert Keys(hashes).find(own.read_text().strip()) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# nobody\n",
        b"alice\n",
        b"alice sha256:12\n",
        b"alice md5:" + b"0" * 64,
        b"alice sha256:" + b"0" * 64 + b" root",
        b"\xff\xfe",
        None,
    ],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Rather than opening to everyone, the API does not start; the message does not repeat the line."""
    path = tmp_path / "hashes"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="fraudlib api-key") as err:
        create_app(Settings(api_keys_file=path))
    assert "0" * 64 not in str(err.value)


def test_a_name_is_a_name(tmp_path: Path) -> None:
    """What would break the file's lines is refused, and nothing is written."""
    for name in ("", "a b", "a\nb", "é", "x" * 65):
        with pytest.raises(ParameterError, match="client's name"):
            make_key(name, tmp_path / "hashes", tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_key_is_not_sent(tmp_path: Path) -> None:
    """A wrong file in FRAUDLIB_API_KEY_FILE is an error here, and does not travel."""
    path = tmp_path / "key"
    path.write_text("root:x:0:0")
    with pytest.raises(DataError, match="expected an API key"):
        keys.authorization(Settings(api_key_file=path))
    with pytest.raises(DataError, match="cannot be read"):
        keys.authorization(Settings(api_key_file=tmp_path / "missing"))
    assert keys.authorization(Settings()) == {}


def test_a_key_that_is_taken_out_opens_nothing_any_more(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of the file counts at the next look, for sessions too; a broken file changes nothing."""
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    path = tmp_path / "hashes"
    opened = Keys(path)
    alice = opened.find(key)
    assert alice is not None
    session = opened.open_session(alice)
    path.write_text("not a line\n")
    assert opened.find(key) == opened.find_session(session) == alice
    path.unlink()
    other, _ = make_key("bob", path)
    assert opened.find(key) is None
    assert opened.find_session(session) is None
    assert opened.find(other or "").name == "bob"  # type: ignore[union-attr]


# -- what a key opens -------------------------------------------------------------------------------------------------


def test_without_a_key_everything_but_the_door_is_closed(client: TestClient) -> None:
    """A new route is closed unless it is opened on purpose; what is open tells nothing of transactions."""
    routes = {(method.upper(), path) for path, ops in client.app.openapi()["paths"].items() for method in ops}  # type: ignore[attr-defined]
    routes |= {("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nothing"), ("PUT", "/transaction")}
    for method, path in sorted(routes):
        response = client.request(method, path, json=TRIP)
        if (method, path) in access.OPEN:
            assert response.status_code == 200, path
        else:
            assert is_problem(response, 401, "no-key"), path
            assert response.headers["www-authenticate"].startswith("Bearer")
    assert sent(client.app.state.services.link.publisher) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "Bearer fraudlib_canary",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} {key}",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 30_000,
    ],
)
def test_what_is_not_the_key_opens_nothing(client: TestClient, key: str, value: str) -> None:
    """401 that does not repeat what came, whatever it was."""
    header = value.replace("{key}", key).encode("latin-1")
    response = client.post("/transaction", json=TRIP, headers={b"authorization": header})  # type: ignore[dict-item]
    assert is_problem(response, 401, "no-key")
    assert "canary" not in response.text
    assert key not in response.text


def test_a_key_opens_every_route(client: TestClient, key: str) -> None:
    """With it the API is as it is without keys."""
    assert client.post("/transaction", json=TRIP, headers=bearer(key)).status_code == 202
    assert client.post("/transactions", json=[TRIP], headers={"authorization": f"bearer  {key}"}).status_code == 202
    label = {"transaction_id": "a", "verdict": "fraud"}
    assert client.post("/labels", json=label, headers=bearer(key)).status_code == 202
    assert client.get("/metrics", headers=bearer(key)).status_code == 200


ROUTES = {
    "send": [("POST", "/transaction", TRIP), ("POST", "/transactions", [TRIP])],
    "label": [("POST", "/labels", {"transaction_id": "a", "verdict": "fraud"})],
    "read": [("GET", "/pulse", None), ("HEAD", "/alerts", None), ("GET", "/alerts?recent=x", None)],
}


@pytest.mark.parametrize("right", ROUTES)
def test_a_key_opens_what_it_was_made_for(tmp_path: Path, key: str, right: str) -> None:
    """And nothing else, also by the session that it opens; the page's own addresses and the state stay open."""
    limited, kept = make_key("meters", tmp_path / "hashes", rights=[right])
    assert limited is not None
    assert kept.line.endswith(f" {right}")
    client = connected(Settings(api_keys_file=tmp_path / "hashes"))
    browser = connected(Settings(api_keys_file=tmp_path / "hashes"))
    assert browser.post("/session", headers=bearer(limited)).status_code == 204
    for needed, requests in ROUTES.items():
        for method, path, body in requests:
            answers = [
                client.request(method, path, json=body, headers=bearer(limited)),
                browser.request(method, path, json=body),
            ]
            if needed == right:
                assert all(answer.status_code in (200, 202, 405, 422) for answer in answers), (path, answers)
            else:
                assert [answer.status_code for answer in answers] == [403, 403], path
                assert method == "HEAD" or is_problem(answers[0], 403, "not-allowed")
    assert client.get("/session", headers=bearer(limited)).json()["client"] == "meters"
    assert client.get("/readyz").status_code == 200


def test_rights_are_those_that_there_are(tmp_path: Path) -> None:
    """An unknown right, or none, makes no key; the command knows them too."""
    for rights in (["root"], []):
        with pytest.raises(ParameterError, match="expected rights out of label, read, send"):
            make_key("alice", tmp_path / "hashes", rights=rights)
    assert not (tmp_path / "hashes").exists()
    options = ["api-key", "meters", "--add", str(tmp_path / "hashes"), "--may", "send", "--may", "label"]
    assert CliRunner().invoke(cli, options).exit_code == 0
    (made,) = read_clients(tmp_path / "hashes").values()
    assert (made.name, made.rights) == ("meters", {"send", "label"})
    assert CliRunner().invoke(cli, ["api-key", "a", "--may", "root"]).exit_code == 2


async def _nobody_may_read() -> Any:
    raise AssertionError("the body was asked for")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.anyio
def test_a_body_is_not_read_without_a_key(tmp_path: Path, key: str, path: str) -> None:
    """The answer comes from the head alone."""
    app = create_app(Settings(api_keys_file=tmp_path / "hashes"))
    status, problem = asyncio.run(ask(app, _nobody_may_read, path, JSON))
    assert (status, problem["type"]) == (401, "urn:fraudlib:problem:no-key")


def test_an_idempotency_key_is_of_its_client(tmp_path: Path, key: str) -> None:
    """Nobody gets another's answer by guessing his Idempotency-Key."""
    other, _ = make_key("bob", tmp_path / "hashes")
    client = connected(Settings(api_keys_file=tmp_path / "hashes"))
    first = client.post("/transaction", json=TRIP, headers=bearer(key) | {"Idempotency-Key": "a"})
    again = client.post("/transaction", json=TRIP, headers=bearer(key) | {"Idempotency-Key": "a"})
    others = client.post("/transaction", json=TRIP, headers=bearer(other or "") | {"Idempotency-Key": "a"})
    assert first.status_code == again.status_code == others.status_code == 202
    assert "idempotency-replayed" in again.headers
    assert "idempotency-replayed" not in others.headers


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_browser_gets_a_cookie_that_scripts_and_other_sites_do_not(client: TestClient, key: str) -> None:
    """The cookie opens what the key opens, does not hold the key, and is taken back."""
    assert client.get("/session").json() == {"is_needed": True, "client": None}
    response = client.post("/session", headers=bearer(key))
    assert response.status_code == 204
    cookie = response.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert key not in cookie
    assert client.get("/session").json() == {"is_needed": True, "client": "alice"}
    assert client.post("/transaction", json=TRIP).status_code == 202
    client.delete("/session")
    assert client.post("/transaction", json=TRIP).status_code == 401


def test_behind_tls_the_cookie_stays_there(client: TestClient, key: str) -> None:
    """A proxy that ends TLS says so, and the cookie is not sent without it."""
    response = client.post("/session", headers=bearer(key) | {"X-Forwarded-Proto": "https"})
    assert "Secure" in response.headers["set-cookie"]


def test_a_session_cannot_be_made_up_or_prolonged(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed token, another process's token and one past its time open nothing."""
    opened, elsewhere = Keys(tmp_path / "hashes"), Keys(tmp_path / "hashes")
    alice = opened.find(key)
    assert alice is not None
    token = opened.open_session(alice)
    expires, short, mac = token.split(".")
    assert opened.find_session(token) == alice
    assert elsewhere.find_session(token) is None
    for forged in (
        f"{int(expires) + 1}.{short}.{mac}",
        f"{expires}.{'0' * 16}.{mac}",
        f"{expires}.{short}.{'0' * 64}",
        "",
    ):
        assert opened.find_session(forged) is None
    now = time.monotonic()
    monkeypatch.setattr(keys.time, "monotonic", lambda: now + keys.SESSION_SECONDS + 1)
    assert opened.find_session(token) is None


# -- addresses and ports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    """A loopback address starts as it always did."""
    require_safe_address(Settings(api_host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "api.example"])
def test_other_machines_are_not_served_by_accident(host: str, tmp_path: Path) -> None:
    """Without keys the API does not start there, unless everyone is allowed explicitly."""
    with pytest.raises(ServiceError, match=r"fraudlib api-key.*FRAUDLIB_API_ALLOW_ANONYMOUS"):
        require_safe_address(Settings(api_host=host))
    require_safe_address(Settings(api_host=host, api_allow_anonymous=True))
    require_safe_address(Settings(api_host=host, api_keys_file=tmp_path / "hashes"))


def test_the_command_says_why_it_does_not_start() -> None:
    """`fraudlib api` on all addresses without keys: exit code 1 and one sentence."""
    env = os.environ | {"FRAUDLIB_API_HOST": "0.0.0.0"}
    command = [sys.executable, "-m", "fraudlib.cli", "api"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("fraudlib: FRAUDLIB_API_HOST=0.0.0.0 lets other machines in")


def test_metrics_and_documentation_may_have_a_port_of_their_own(tmp_path: Path, key: str) -> None:
    """There they need no key; on the public port they are not, whatever Host and key the client sends."""
    public = connected(Settings(api_keys_file=tmp_path / "hashes", api_internal_port=9109))
    inside = TestClient(public.app, base_url="http://testserver:9109", raise_server_exceptions=False)
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert inside.get(path).status_code == 200
        assert is_problem(public.get(path, headers=bearer(key) | {"Host": "testserver:9109"}), 404, "not-found")
    assert is_problem(inside.post("/transaction", json=TRIP), 401, "no-key")


# -- rates ------------------------------------------------------------------------------------------------------------


def test_a_client_beyond_its_rate_waits_and_others_do_not(tmp_path: Path, key: str) -> None:
    """429 with Retry-After for the one that sends too much, by its key and not by its address."""
    other, _ = make_key("bob", tmp_path / "hashes")
    client = connected(Settings(api_keys_file=tmp_path / "hashes", client_rate=2))
    statuses = [client.post("/transaction", json=TRIP, headers=bearer(key)).status_code for _ in range(6)]
    assert statuses == [202] * 4 + [429] * 2
    refused = client.post("/transaction", json=TRIP, headers=bearer(key))
    assert is_problem(refused, 429, "rate-limited")
    assert int(refused.headers["retry-after"]) == 1
    assert client.post("/transaction", json=TRIP, headers=bearer(other or "")).status_code == 202
    assert client.get("/metrics", headers=bearer(key)).status_code == 200


def test_a_bulk_counts_by_its_items() -> None:
    """It passes whole, and its client pays for it afterwards."""
    client = connected(Settings(client_rate=5))
    assert client.post("/transactions", json=[TRIP] * 50).json()["accepted"] == 50
    refused = client.post("/transactions", json=[TRIP])
    assert is_problem(refused, 429, "rate-limited")
    assert 7 <= int(refused.headers["retry-after"]) <= 9


def test_a_rate_below_one_a_second_still_lets_one_pass() -> None:
    """A bucket holds one at least, and fills again."""
    client = connected(Settings(client_rate=0.25))
    assert client.post("/transaction", json=TRIP).status_code == 202
    assert client.post("/transaction", json=TRIP).headers["retry-after"] == "4"


def test_many_addresses_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients longest unseen are forgotten."""
    monkeypatch.setattr("fraudlib.api.rates.REMEMBERED", 10)
    rates = access.Rates(1)
    for number in range(100):
        rates.bucket(str(number))
    assert len(rates._buckets) == 10
    assert rates.bucket("99").take() == 0
