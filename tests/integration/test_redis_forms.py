"""Redis in all its forms: each way to name one, each trouble that one can make, and what beat does then."""

from __future__ import annotations

import logging
import re
import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from celery import Celery
from redis.crc import key_slot

from celery_misfire.beat import MisfireScheduler
from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import MisfireConfigError, StoreRefused, StoreUnavailable
from celery_misfire.store.port import Change, Held, LeaseValue, Taken
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.registers import Merged, Missed, Started, StartRequest
from example_project.child_process import free_port
from tests.support.processes import NAMESPACE, Project, wait_for
from tests.support.redis_server import ClusterNode, RedisServer, SentinelServer

pytestmark = pytest.mark.takes(16)

#: Every character that means something in a URL, and some that mean something elsewhere.
PASSWORD = "p@ss:w/rd#?&%41[ö]\"' +;,"
QUOTED = quote(PASSWORD, safe="")


def store_of(call_timeout: float = 1, **config: Any) -> RedisStore:
    """Return the store that an app with these settings uses."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(config)
    return RedisStore.of(read_settings(app), call_timeout)


def use_all_of(store: RedisStore) -> None:
    """Do everything that beat, workers and the command line ever ask of a store."""
    store.advice()
    taken = store.acquire("token", 60)
    assert isinstance(taken, Taken), taken
    assert store.acquire("other", 60) == Held(taken.lease)
    renewed = LeaseValue("token", 1, 2, "here")
    store.renew(renewed, 60, sign="a sign of life")
    store.request({"1": "please"})
    assert store.write_hold("token", "", "a hold")
    sight = store.sight()
    assert (sight.hold, sight.requests) == ("a hold", {"1": "please"})
    assert sight.beats[store.owner][1] == "a sign of life"
    assert sight.lease_left is not None
    store.drop_requests(["1"])
    assert store.write_hold("token", "a hold", "")
    assert store.claim_by_hand("1", "ann") == "ann"
    assert store.claim_by_hand("1", "bob") == "ann"
    store.unclaim_by_hand("1", "ann")
    store.write_meta("token", "shop")
    store.describe("token", "settings", "entries")
    assert store.description()[1] == "entries"
    store.tell_leader("a note")
    store.renew(renewed, 60)
    store.describe("token", "beat", "entries")
    assert store.description()[1] == "entries"
    store.tell_leader("a line")
    assert store.renew(renewed, 60) == ("a line", False)
    assert (
        store.commit("token", [Change("a", "", "1"), Change("b", "", "1")], [{"event": "1"}]).conflicts == ()
    )
    assert (
        store.commit("token", [Change("a", "1", "2"), Change("b", "1", "")], [{"event": "2"}]).conflicts == ()
    )
    assert store.load() == {"a": "2"}
    capped, x, y = Missed("capped"), Started("x", "h"), Started("y", "h")
    assert store.settle(["1", "2"], capped) == [capped] * 2
    assert store.start("3", StartRequest(x, "a")) == (x, True)
    assert store.start("3", StartRequest(y, "a")) == (x, False)
    late = StartRequest(x, "a", sent_at=5, late_start=10, line={"event": "3"})
    assert store.start("4", late) == (x, True)
    merged = StartRequest(x, "a", sent_at=5, merged_line={"event": "4"})
    assert store.start("5", merged) == (Merged("4"), 2)
    assert store.register("3") == x
    assert store.close("6", capped, "a", "2") == capped
    assert store.close("7", capped, "a", "1") is None
    assert [line["event"] for line in store.log()] == ["1", "2", "3", "4"]
    assert [line["event"] for _, line in store.log_after("0-0", 10)] == ["1", "2", "3", "4"]
    assert store.last_log_id() > "0-0"
    assert store.watch("watcher", 60, 60, alarm="x").led
    assert store.is_guarded()
    assert not store.commit("token", [Change("a", "2", "")], counts={("a", "fired"): 1}).conflicts
    assert store.counts_since(time.time() - 3600)[("a", "fired")] >= 1
    store.release("token")
    assert isinstance(store.acquire("other", 60), Taken)
    store.release("other")


# -- every way to name one ---------------------------------------------------------------------------------


def test_a_password_may_hold_any_character(redis_server: RedisServer):
    with redis_server.client() as client:
        client.config_set("requirepass", PASSWORD)
    url = f"redis://:{QUOTED}@127.0.0.1:{redis_server.port}/1"
    use_all_of(store_of(misfire_redis_url=url))
    use_all_of(store_of(broker_url=url, misfire_namespace="broker"))
    options = {"password": PASSWORD, "db": 2}
    use_all_of(store_of(misfire_redis_url=redis_server.url[:-2], misfire_redis_options=options))
    with redis.Redis(port=redis_server.port, password=PASSWORD) as client:
        assert set(client.info("keyspace")) == {"db1", "db2"}


def test_a_unix_socket(redis_binary: Path, tmp_path: Path):
    path = tmp_path / "redis.sock"
    with RedisServer(redis_binary, "--unixsocket", str(path)) as server, server.client() as client:
        use_all_of(store_of(misfire_redis_url=f"unix://{path}?db=3"))
        use_all_of(store_of(broker_url=f"redis+socket://{path}?virtual_host=4"))
        assert set(client.info("keyspace")) == {"db3", "db4"}
        client.config_set("requirepass", PASSWORD)
        use_all_of(store_of(misfire_redis_url=f"unix://:{QUOTED}@{path}?db=5"))


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_versions_of_the_protocol(redis_server: RedisServer, protocol: int):
    use_all_of(store_of(misfire_redis_url=redis_server.url, misfire_redis_options={"protocol": protocol}))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority, ``ca.crt``, and what it has signed for ``server`` and ``client``."""
    place = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    try:
        for ca in ("ca", "strange-ca"):
            named = ("-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", f"/CN={ca}")
            # Without its use, Python 3.13 takes no authority.
            openssl("req", "-x509", *key, *named, "-days", "2", "-addext", "keyUsage=critical,keyCertSign")
    except FileNotFoundError:
        pytest.skip("no openssl program")
    (place / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
    return place


def tls(certificates: Path, port: int) -> dict[str, str]:
    """Return the options of a server that speaks TLS on a port and asks its clients for certificates."""
    return {
        "tls-port": str(port),
        "tls-cert-file": str(certificates / "server.crt"),
        "tls-key-file": str(certificates / "server.key"),
        "tls-ca-cert-file": str(certificates / "ca.crt"),
    }


def client_tls(certificates: Path, ca: str = "ca") -> dict[str, str]:
    return {
        "ssl_ca_certs": str(certificates / f"{ca}.crt"),
        "ssl_certfile": str(certificates / "client.crt"),
        "ssl_keyfile": str(certificates / "client.key"),
    }


@contextmanager
def tls_server(program: Path, certificates: Path) -> Iterator[tuple[RedisServer, int]]:
    """Run a server; yields it with its port for TLS."""
    port = free_port()
    flags = [text for name, value in tls(certificates, port).items() for text in (f"--{name}", value)]
    try:
        with RedisServer(program, *flags) as server:
            yield server, port
    except RuntimeError as exc:
        # Redis says the one, Valkey the other.
        if "tls-port" in str(exc) or "Failed finding TLS support" in str(exc):
            pytest.skip(f"{program} was built without TLS")
        raise


def test_tls_with_certificates_on_both_sides(redis_binary: Path, certificates: Path):
    ours = client_tls(certificates)
    with tls_server(redis_binary, certificates) as (_, port):
        url = f"rediss://localhost:{port}/0"
        query = "&".join(f"{key}={quote(path)}" for key, path in ours.items())
        for config in (
            {"misfire_redis_url": url, "misfire_redis_options": ours},
            {"misfire_redis_url": f"{url}?{query}&ssl_cert_reqs=CERT_REQUIRED"},
            {"broker_url": f"{url}?{query}&ssl_cert_reqs=required"},
            {"broker_url": url, "broker_use_ssl": ours | {"ssl_cert_reqs": ssl.CERT_REQUIRED}},
            {
                "broker_url": url.replace("rediss", "redis"),
                "broker_use_ssl": ours | {"ssl_cert_reqs": "none"},
            },
        ):
            use_all_of(store_of(misfire_namespace=f"n{len(str(config))}", **config))


def test_a_server_whose_certificate_is_not_trusted_is_refused_and_one_that_asks_for_ours_is_told_of(
    redis_binary: Path, certificates: Path
):
    with tls_server(redis_binary, certificates) as (_, port):
        url = f"rediss://localhost:{port}/0"
        for strange in ({}, client_tls(certificates, "strange-ca")):
            with pytest.raises(StoreRefused, match=r"self.signed certificate .*\. Check ssl_ca_certs"):
                store_of(misfire_redis_url=url, misfire_redis_options=strange).advice()
        without = {"ssl_ca_certs": str(certificates / "ca.crt")}
        with pytest.raises(StoreUnavailable, match=rf"Redis at localhost:{port}: ConnectionError \(\w+\)$"):
            store_of(misfire_redis_url=url, misfire_redis_options=without).advice()


def test_sentinels_with_passwords_and_tls_of_their_own(redis_binary: Path, certificates: Path):
    ours = client_tls(certificates)
    with ExitStack() as stack:
        server, port = stack.enter_context(tls_server(redis_binary, certificates))
        named = server.client()
        named.acl_setuser("shop", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys=["*"])
        sentinel_port = free_port()
        config = [f"{name} {value}" for name, value in tls(certificates, sentinel_port).items()]
        config += ["tls-replication yes"]
        sentinel = stack.enter_context(SentinelServer(server, 1, *config, port=port))
        password = "another: p@ss/word"
        sentinel.client().execute_command("ACL", "SETUSER", "default", "resetpass", f">{password}")
        # The first is away; it is the second that knows.
        places = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{sentinel_port}")
        login = f"shop:{QUOTED}@"
        to_sentinels = {"password": password, "ssl": True, **ours}
        transport = {"master_name": "mymaster", "sentinel_kwargs": to_sentinels}
        celerys = ";".join(f"sentinel://{login}{place}/2" for place in places)
        for namespace, config in {
            "named": {
                "misfire_redis_url": f"sentinel://{login}{','.join(places)}/2?master_name=mymaster",
                "misfire_redis_options": {"sentinel_kwargs": to_sentinels, "ssl": True, **ours},
            },
            "broker": {
                "broker_url": celerys,
                "broker_transport_options": transport,
                "broker_use_ssl": ours | {"ssl_cert_reqs": "required"},
            },
            "results": {
                "broker_url": "memory://",
                "result_backend": celerys,
                "result_backend_transport_options": transport,
                "redis_backend_use_ssl": ours | {"ssl_cert_reqs": "required"},
            },
        }.items():
            use_all_of(store_of(misfire_namespace=namespace, **config))
        assert set(named.info("keyspace")) == {"db2"}

        wrong = to_sentinels | {"password": "wrong-secret"}
        options = {"sentinel_kwargs": wrong, "ssl": True, **ours}
        url = f"sentinel://{login}{places[1]}/2?master_name=mymaster"
        with pytest.raises(StoreUnavailable) as caught:
            store_of(misfire_redis_url=url, misfire_redis_options=options).advice()
        assert str(caught.value).endswith("MasterNotFoundError (AuthenticationError)")
        with pytest.raises(
            StoreUnavailable,
            match=r"MasterNotFoundError \('other' is unknown, or down; its name is 'master_name'",
        ):
            store_of(
                misfire_redis_url=url.replace("mymaster", "other"),
                misfire_redis_options=options | {"sentinel_kwargs": to_sentinels},
            ).advice()


# -- bounded waits -----------------------------------------------------------------------------------------


def test_no_option_makes_a_call_wait_longer_than_beat_can_afford(redis_server: RedisServer):
    here, limit = f"127.0.0.1:{redis_server.port}", 0.4
    stores = [
        store_of(limit, misfire_redis_url=redis_server.url, misfire_redis_options={"socket_timeout": 25}),
        store_of(limit, misfire_redis_url=f"redis://{here}?socket_timeout=25&socket_connect_timeout=25"),
        store_of(
            limit,
            broker_url="memory://",
            result_backend=f"{redis_server.url}?socket_timeout=25&retry_on_timeout=true",
        ),
        store_of(
            limit,
            misfire_redis_url=f"sentinel://{here},{here}?master_name=m",
            misfire_redis_options={"sentinel_kwargs": {"socket_timeout": 25}},
        ),
    ]
    redis_server.freeze()
    begin = time.monotonic()
    for store in stores:
        with pytest.raises(StoreUnavailable):
            store.load()
    took = time.monotonic() - begin
    redis_server.thaw()
    assert took < 15


def test_a_shorter_time_limit_is_kept(redis_server: RedisServer):
    store = RedisStore(redis_server.url, "shop", {"socket_timeout": 0.2}, call_timeout=60)
    redis_server.freeze()
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable, match="TimeoutError"):
        store.load()
    took = time.monotonic() - begin
    redis_server.thaw()
    assert took < 20


# -- trouble -----------------------------------------------------------------------------------------------


class Beat:
    """A beat in this process, whose loop the test turns. Its broker is in memory."""

    def __init__(self, url: str, caplog: pytest.LogCaptureFixture, **settings: Any) -> None:
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.update(
            misfire_redis_url=url,
            beat_schedule={"tick": {"task": "tick", "schedule": 0.05, "misfire": {"threshold": 3600}}},
            misfire_lease_ttl=4,
            misfire_standby_poll=0.1,
            **settings,
        )
        caplog.set_level(logging.INFO, "celery_misfire")
        self.scheduler = MisfireScheduler(self.app)
        self._caplog = caplog
        # What is said of the threshold: here all is to be sent at once.
        caplog.clear()

    def tick(self) -> None:
        time.sleep(min(0.05, self.scheduler.tick()))

    def run_until(self, true: Callable[[], Any], what: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, f"no {what}: {self.said()}"
            self.tick()

    def run_until_sent(self, count: int = 3) -> None:
        wanted = self.sent() + count
        self.run_until(lambda: self.sent() >= wanted, "runs sent")

    def sent(self) -> int:
        with self.app.connection_for_read() as connection:
            return connection.default_channel._size("celery")

    def said(self, text: str = "") -> list[str]:
        """Return the warnings that have a text."""
        return [r.message for r in self._caplog.records if r.levelno >= logging.WARNING and text in r.message]

    def close(self) -> None:
        self.scheduler.close()


@pytest.fixture
def server(redis_binary: Path) -> Iterator[RedisServer]:
    """A server about which there is nothing to say."""
    with RedisServer(redis_binary, append_only="everysec") as server:
        yield server


def out_of_memory(client: redis.Redis, wrong: bool) -> None:
    client.config_set("maxmemory", 1 if wrong else 0)


def disk_full(client: redis.Redis, wrong: bool) -> None:
    """As after a snapshot that failed, here for want of a name that is free."""
    client.config_set("stop-writes-on-bgsave-error", "yes" if wrong else "no")
    client.config_set("save", "3600 1" if wrong else "")
    if wrong:
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="the failure")


def demoted(client: redis.Redis, wrong: bool) -> None:
    client.replicaof(*(("127.0.0.1", "1") if wrong else ("NO", "ONE")))


def no_replicas(client: redis.Redis, wrong: bool) -> None:
    client.config_set("min-replicas-to-write", 1 if wrong else 0)


def fewer_rights(client: redis.Redis, wrong: bool) -> None:
    client.execute_command("ACL", "SETUSER", "beat", "-evalsha" if wrong else "+evalsha")


def fewer_rights_in_scripts(client: redis.Redis, wrong: bool) -> None:
    client.execute_command("ACL", "SETUSER", "beat", "-hset" if wrong else "+hset")


def other_password(client: redis.Redis, wrong: bool) -> None:
    password = "changed" if wrong else PASSWORD
    client.acl_setuser("beat", reset_passwords=True, passwords=[f"+{password}"], enabled=True)
    client.client_kill_filter(user="beat") if wrong else None


def endless_script(client: redis.Redis, wrong: bool) -> None:
    if wrong:
        client.config_set("lua-time-limit", 50)
        other = client.connection_pool.make_connection()
        other.connect()
        other.send_command("EVAL", "while true do end", 0)
        wait_for(lambda: is_busy(client), what="the script to take long")
    else:
        client.script_kill()


def is_busy(client: redis.Redis) -> bool:
    try:
        client.get("x")
    except redis.ResponseError as exc:
        return str(exc).startswith("BUSY")
    return False


def forgotten_scripts(client: redis.Redis, wrong: bool) -> None:
    client.script_flush()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (out_of_memory, r"command not allowed when used memory > 'maxmemory'"),
        (disk_full, r"MISCONF (Redis|Valkey) is configured to save RDB snapshots, but it"),
        (demoted, r"You can't write against a read only replica"),
        pytest.param(no_replicas, r"NOREPLICAS Not enough good replicas", marks=pytest.mark.long),
        (fewer_rights, r"no permissions to run the 'evalsha' command( or its subcommand)?\. Give"),
        (
            fewer_rights_in_scripts,
            r"(can't|to) run (this|the 'hset') command( or subcommand)?\. Give the user",
        ),
        (other_password, r"invalid username-password pair or user is disabled\. Check user and password"),
        (endless_script, r"BUSY (Redis|Valkey) is busy running a script"),
    ],
)
def test_beat_stands_by_through_a_trouble_says_so_once_and_goes_on(
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[redis.Redis, bool], None],
    words: str,
):
    with server.client() as client:
        client.acl_setuser("beat", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys=["*"])
        beat = Beat(f"redis://beat:{QUOTED}@127.0.0.1:{server.port}/0", caplog)
        try:
            beat.run_until_sent()
            if trouble is disk_full:
                (server.directory / "dump.rdb").mkdir()
            trouble(client, True)
            beat.run_until(lambda: beat.said("standing by"), "word of the trouble")
            for _ in range(10):
                beat.tick()
            trouble(client, False)
            beat.run_until_sent()
        finally:
            beat.close()
    (line,) = beat.said("beat: Redis at")
    assert re.search(rf"^beat: Redis at 127\.0\.0\.1:{server.port}: .*{words}.*; standing by$", line)
    # Beside it, the lease may have run out in the meantime.
    assert set(beat.said()) - set(beat.said("the lease is lost")) <= {line, *beat.said("planned from now")}
    assert len([r for r in caplog.records if "answers again after" in r.message]) == 1
    assert PASSWORD not in caplog.text
    assert QUOTED not in caplog.text
    assert "script:" not in line


def test_scripts_that_redis_forgets_are_nothing_to_speak_of(
    server: RedisServer, caplog: pytest.LogCaptureFixture
):
    beat = Beat(server.url, caplog)
    try:
        with server.client() as client:
            for _ in range(5):
                client.script_flush()
                beat.run_until_sent(1)
    finally:
        beat.close()
    assert beat.said() == beat.said("planned from now")


def test_a_connection_to_a_master_that_is_none_any_more_is_given_up(
    redis_binary: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Behind one name, as with a virtual address: here a socket that is a link."""
    name = tmp_path / "master.sock"
    at_once = ("--repl-diskless-sync-delay", "0")
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(
                RedisServer(
                    redis_binary, "--unixsocket", str(tmp_path / one), *at_once, append_only="everysec"
                )
            )
            for one in ("old", "new")
        )
        name.symlink_to(tmp_path / "old")
        beat = Beat(f"unix://{name}", caplog)
        try:
            beat.run_until_sent()
            new.client().replicaof("127.0.0.1", old.port)
            wait_for(lambda: new.info()["master_link_status"] == "up", what="a replica")
            new.client().replicaof("NO", "ONE")
            old.client().replicaof("127.0.0.1", new.port)
            name.unlink()
            name.symlink_to(tmp_path / "new")
            beat.run_until_sent()
        finally:
            beat.close()
        # It did not begin anew.
        assert caplog.text.count("planned from now") == 1


def test_a_redis_that_still_loads_its_data_is_waited_for(
    redis_binary: Path, caplog: pytest.LogCaptureFixture
):
    with RedisServer(redis_binary, append_only="everysec") as server:
        beat = Beat(server.url, caplog)
        try:
            beat.run_until_sent()
            # Loading, a Redis answers after every 2 MB; so this is long enough, and not in one piece.
            with server.client() as client:
                client.config_set("rdbcompression", "no")
                for n in range(600):
                    client.set(f"key:{n}", "x" * 100_000)
                client.bgrewriteaof()
                wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the file")
            server.kill()
            # Microseconds for each key.
            server.options += ("--key-load-delay", "3000")
            server.begin_to_start()
            beat.run_until(lambda: beat.said("loading the dataset"), "word of the loading")
            beat.run_until_sent()
        finally:
            beat.close()
        assert len(beat.said("loading the dataset in memory; standing by")) == 1


class Vault(redis.CredentialProvider):
    """Has the login, except when it is sealed."""

    sealed = False

    def get_credentials(self) -> tuple[str, str]:
        if self.sealed:
            raise RuntimeError("no token for canary-4711")
        return "beat", PASSWORD


def test_a_credential_provider_that_fails_is_a_store_that_is_away_and_the_lease_is_renewed_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture
):
    vault = Vault()
    with server.client() as client:
        client.acl_setuser("beat", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys=["*"])
        beat = Beat(server.url, caplog, misfire_redis_options={"credential_provider": vault})
        try:
            beat.run_until_sent()
            vault.sealed = True
            client.client_kill_filter(user="beat")
            beat.run_until(lambda: beat.said("RuntimeError; standing by"), "word of the trouble")
            # The thread that renews the lease meets it as well.
            time.sleep(1.5)
            vault.sealed = False
            beat.run_until_sent()
            # Longer than the lease is trusted without a renewal.
            begin = time.monotonic()
            beat.run_until(lambda: time.monotonic() - begin > 4, "end of the wait")
        finally:
            beat.close()
    assert len(beat.said("the lease is lost")) <= 1
    assert "canary" not in caplog.text
    assert "Traceback" not in caplog.text


# -- wrong from the start ----------------------------------------------------------------------------------


def too_few_rights(client: redis.Redis) -> None:
    client.acl_setuser(
        "beat", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all", "-hset"], keys=["*"]
    )


def rights_for_another_namespace(client: redis.Redis) -> None:
    keys = ["celery-misfire:{bank}:*"]
    client.acl_setuser("beat", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys=keys)


def no_such_user(client: redis.Redis) -> None:
    client.config_set("requirepass", "anything")


@pytest.mark.parametrize(
    ("wrong", "url", "words"),
    [
        (no_such_user, "redis://127.0.0.1:{}/0", "Check user and password"),
        (
            no_such_user,
            f"redis://beat:{QUOTED}@127.0.0.1:{{}}/0",
            "user is disabled. Check user and password",
        ),
        (too_few_rights, f"redis://beat:{QUOTED}@127.0.0.1:{{}}/0", "Give the user the rights"),
        (rights_for_another_namespace, f"redis://beat:{QUOTED}@127.0.0.1:{{}}/0", "Give the user the rights"),
        (lambda _: None, "redis://127.0.0.1:{}/99", "out of range. Check the number of the database"),
    ],
)
def test_a_redis_that_will_never_work_with_us_ends_beat_at_its_start(
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[redis.Redis], None],
    url: str,
    words: str,
):
    with server.client() as client:
        wrong(client)
    beat = Beat(url.format(server.port), caplog)
    try:
        with pytest.raises(MisfireConfigError) as caught:
            beat.tick()
    finally:
        beat.close()
    (problem,) = caught.value.problems
    assert problem.startswith(f"celery_misfire: misfire_redis_url: Redis at 127.0.0.1:{server.port}: ")
    assert words in problem
    assert PASSWORD not in problem + caplog.text


@pytest.mark.parametrize(
    ("renamed", "options", "words"),
    [
        (
            ["HELLO"],
            {"protocol": 3},
            "Set the option 'protocol' of redis-py to 2. Redis 6.2 or newer is needed",
        ),
        (["AUTH"], {"protocol": 2}, "unknown command .AUTH.. celery_misfire cannot do without it"),
    ],
)
def test_a_redis_that_repeats_the_login_in_its_answer_does_not_bring_it_into_ours(
    redis_binary: Path,
    caplog: pytest.LogCaptureFixture,
    renamed: list[str],
    options: dict[str, Any],
    words: str,
):
    flags = [flag for command in renamed for flag in ("--rename-command", command, "")]
    with RedisServer(redis_binary, *flags) as server:
        beat = Beat(
            f"redis://default:{QUOTED}@127.0.0.1:{server.port}/0", caplog, misfire_redis_options=options
        )
        try:
            with pytest.raises(MisfireConfigError, match=words) as caught:
                beat.tick()
            with pytest.raises(StoreRefused) as refused:
                RedisStore.of(read_settings(beat.scheduler.app)).load()
        finally:
            beat.close()
    shown = f"{caught.value!r} {caught.value.__cause__} {refused.value!r} {refused.value.__cause__}"
    assert "with args" not in shown + caplog.text
    assert PASSWORD not in shown + caplog.text
    assert "p@ss" not in shown + caplog.text


@contextmanager
def altered(server: RedisServer, old: bytes, new: bytes) -> Iterator[int]:
    """Yield a port behind which the answers of a server are changed; the length must stay the same."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, change: bool) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(1 << 20):
                target.sendall(re.sub(old, new, data) if change else data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", server.port))
                for way in ((near, far, False), (far, near, True)):
                    threading.Thread(target=pump, args=way, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]


def test_a_redis_that_is_too_old_is_refused(server: RedisServer, caplog: pytest.LogCaptureFixture):
    with altered(server, rb"redis_version:\d", b"redis_version:5") as port:
        beat = Beat(f"redis://127.0.0.1:{port}/0", caplog)
        try:
            with pytest.raises(
                MisfireConfigError, match=r"is version 5\.\d+\. Redis 6\.2 or newer, or Valkey"
            ):
                beat.tick()
        finally:
            beat.close()
    with server.client() as client:
        assert client.keys() == []


def test_a_real_beat_that_redis_refuses_ends_with_one_line_about_it(tmp_path: Path, server: RedisServer):
    with Project(tmp_path, server.url) as project:
        project.configure({}, misfire_redis_url=server.url.replace("//", "//beat:top-secret@"))
        beat = project.beat()
        wait_for(lambda: not beat.alive, 60, what="the end of beat")
        assert beat.exit_code
        assert re.search(
            r"MisfireConfigError.*celery_misfire: misfire_redis_url: Redis at 127\.0\.0\.1:\d+: invalid "
            r"username-password pair or user is disabled\. Check user and password",
            project.log(),
        )
        assert "Traceback" not in project.log()
        assert "top-secret" not in project.log()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, [r"may drop the state \(maxmemory-policy is 'allkeys-lru'\)"]),
        ({"maxmemory-policy": "volatile-ttl", "appendonly": "no"}, ["volatile-ttl", "keeps nothing on disk"]),
        ({"appendonly": "no", "save": "3600 1"}, []),
        ({}, []),
    ],
)
def test_what_is_unwise_about_a_redis_is_said_once_at_the_start(
    server: RedisServer, caplog: pytest.LogCaptureFixture, settings: dict[str, str], words: list[str]
):
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name, value)
        beat = Beat(server.url, caplog)
        try:
            beat.run_until_sent()
            client.config_set("maxmemory", 1)
            beat.run_until(lambda: beat.said("used memory"), "word of the trouble")
            client.config_set("maxmemory", 0)
            beat.run_until_sent()
        finally:
            beat.close()
        client.config_set("save", "")
    advice = [
        line for line in beat.said(f"beat: Redis at 127.0.0.1:{server.port}: ") if "standing by" not in line
    ]
    assert len(advice) == len(words)
    assert all(re.search(text, line) for text, line in zip(words, advice, strict=True))


@pytest.mark.parametrize(
    "forbid",
    [
        lambda client: client.execute_command("ACL", "SETUSER", "default", "-info", "-config"),
        lambda client: client.execute_command("ACL", "SETUSER", "default", "-config"),
        None,
    ],
    ids=["no rights", "no right to CONFIG", "renamed"],
)
def test_a_server_that_tells_nothing_about_itself_is_good_enough(
    redis_binary: Path, caplog: pytest.LogCaptureFixture, forbid: Callable[[redis.Redis], None] | None
):
    renamed = () if forbid else ("--rename-command", "INFO", "", "--rename-command", "CONFIG", "")
    with RedisServer(redis_binary, *renamed) as server:
        if forbid:
            forbid(server.client())
        beat = Beat(server.url, caplog)
        try:
            beat.run_until_sent()
        finally:
            beat.close()
        assert beat.said() == beat.said("planned from now")


def test_a_replica_is_waited_for_and_one_that_was_never_the_master_is_told_as_such(
    server: RedisServer, caplog: pytest.LogCaptureFixture
):
    advice = "Name the master, or use sentinel://; standing by"
    with server.client() as client:
        demoted(client, True)
        beat = Beat(server.url, caplog)
        try:
            beat.run_until(lambda: beat.said(advice), "word of the replica")
            demoted(client, False)
            beat.run_until_sent()
            caplog.clear()
            demoted(client, True)
            beat.run_until(lambda: beat.said("read only replica"), "word of the replica")
            assert not beat.said(advice)
            demoted(client, False)
        finally:
            beat.close()


@pytest.mark.parametrize("answer", [b"ERROR\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_is_no_redis_is_told_as_such(caplog: pytest.LogCaptureFixture, answer: bytes):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    port = listener.getsockname()[1]
    with listener:
        beat = Beat(f"redis://127.0.0.1:{port}/0", caplog)
        try:
            beat.tick()
        finally:
            beat.close()
    assert beat.said() == [
        f"beat: Redis at 127.0.0.1:{port}: it did not answer as a Redis server; standing by"
    ]


# -- a user of its own -------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[2] / "docs" / "redis.md"
#: May be forbidden: beat has less to say then.
OPTIONAL = {"info", "config|get", "ping", "select"}
#: What redis-py tries at each new connection and can do without.
GREETINGS = {"auth", "hello", "client|setinfo", "client|maint_notifications"}


def documented_user(namespace: str) -> list[str]:
    """Return the words of the command that the documentation has for a user of its own."""
    text = DOCUMENT.read_text().replace("\\\n", " ").replace("{shop}", f"{{{namespace}}}")
    (line,) = re.findall(r"^\$ redis-cli (ACL SETUSER .*)", text, re.MULTILINE)
    return shlex.split(line)


def commands_used(client: redis.Redis) -> set[str]:
    return {name.removeprefix("cmdstat_") for name in client.info("commandstats")}


def whole(commands: Iterable[str]) -> set[str]:
    """Return the commands without their subcommands, which Redis 6.2 counts and logs as one."""
    return {name.split("|")[0] for name in commands}


def test_the_documented_rights_are_enough_and_none_of_them_is_too_many(redis_server: RedisServer):
    with redis_server.client() as client:
        words = documented_user("shop")
        client.execute_command(*words)
        client.config_resetstat()
        password = next(word[1:] for word in words if word.startswith(">"))
        use_all_of(store_of(misfire_redis_url=f"redis://beat:{password}@127.0.0.1:{redis_server.port}/0"))
        granted = {word[1:] for word in words if word.startswith("+")}
        used = commands_used(client) - {"config|resetstat"}
        if client.info("server")["redis_version"].startswith("6.2."):
            granted, greetings, optional = whole(granted), whole(GREETINGS), whole(OPTIONAL)
        else:
            greetings, optional = GREETINGS, OPTIONAL
        assert used <= granted | greetings
        assert granted - used <= optional
        for word in ("get foreign", "set foreign 1", "keys *", "flushall", "eval return 0"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                redis.Redis(port=redis_server.port, username="beat", password=password).execute_command(
                    *word.split(), *(["0"] if word.startswith("eval") else [])
                )


def test_a_real_beat_and_a_real_worker_work_with_the_documented_rights_alone(
    tmp_path: Path, redis_server: RedisServer, redis_binary: Path
):
    with RedisServer(redis_binary) as server, Project(tmp_path, redis_server.url) as project:
        words = documented_user("acceptance")
        password = next(word[1:] for word in words if word.startswith(">"))
        url = f"redis://beat:{password}@127.0.0.1:{server.port}/0"
        with server.client() as client:
            client.execute_command(*words)
            past = RedisStore(url, NAMESPACE)
            past.acquire("past", 60)
            past.write_meta("past", NAMESPACE)
            past.release("past")
            entries = {
                "reports": {"schedule": {"type": "interval", "seconds": 0.5}},
                "late": {"schedule": {"type": "simple", "start": time.time() - 60}, "misfire": "fire_now"},
                "missed": {
                    "schedule": {"type": "simple", "start": time.time() - 60},
                    "misfire": "do_nothing",
                },
            }
            project.configure(entries, misfire_redis_url=url)
            beat, worker = project.beat(), project.worker(wait=False)

            def ran() -> set[str]:
                return {line["misfire"]["entry"] for line in project.records()}

            wait_for(lambda: ran() >= {"reports", "late"}, 60, what="the runs")
            wait_for(lambda: project.signals("task_missed"), 60, what="the missed run")
            assert beat.alive
            assert worker.alive
            beat.stop()
            worker.stop()
            refused = {line["object"] for line in client.acl_log()}
            assert refused <= GREETINGS | OPTIONAL | whole(GREETINGS)
        assert "Give the user the rights" not in project.log() + project.log("worker")
        assert password not in project.log() + project.log("worker")


# -- Cluster and Valkey ------------------------------------------------------------------------------------


def test_all_keys_lie_in_one_slot_of_a_cluster(redis_binary: Path, caplog: pytest.LogCaptureFixture):
    with ClusterNode(redis_binary) as node, node.client() as client:
        use_all_of(store_of(misfire_redis_url=node.url))
        beat = Beat(node.url, caplog)
        try:
            beat.run_until_sent()
        finally:
            beat.close()
        keys = client.keys()
        kinds = {key.split(":")[2] for key in keys}
        assert kinds == {"state", "log", "fire", "late", "counts", "watch", "watcher", "guard", "stopped"}
        assert {key_slot(key.encode()) for key in keys} == {key_slot(b"shop")}
        assert {client.cluster("keyslot", key) for key in keys} == {key_slot(b"shop")}


@pytest.mark.long
def test_a_node_without_the_slot_of_our_keys_is_refused_at_the_start(
    redis_binary: Path, caplog: pytest.LogCaptureFixture
):
    slot = key_slot(b"shop")
    with (
        ClusterNode(redis_binary) as node,
        ClusterNode(redis_binary, "--cluster-node-timeout", "60000") as other,
    ):
        with node.client() as client, other.client() as owner:
            client.execute_command("CLUSTER", "DELSLOTS", slot)
            owner.execute_command("CLUSTER", "FLUSHSLOTS")
            owner.execute_command("CLUSTER", "ADDSLOTS", slot)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
            wait_for(lambda: client.cluster("info")["cluster_state"] == "ok", what="a cluster")
            wait_for(lambda: moved(client, slot), what="the other's slot to be known")
        beat = Beat(node.url, caplog)
        try:
            with pytest.raises(MisfireConfigError, match="are on another node of the cluster; name that one"):
                beat.tick()
        finally:
            beat.close()


def moved(client: redis.Redis, slot: int) -> bool:
    try:
        client.get("{shop}")
    except redis.ResponseError as exc:
        return str(slot) in str(exc)
    return False


def test_valkey_does_all_that_is_asked_of_a_redis(valkey_binary: Path, caplog: pytest.LogCaptureFixture):
    with RedisServer(valkey_binary, append_only="everysec") as valkey:
        use_all_of(store_of(misfire_redis_url=valkey.url))
        beat = Beat(valkey.url, caplog)
        try:
            beat.run_until_sent()
        finally:
            beat.close()
        assert beat.said() == beat.said("planned from now")


def test_valkey_says_in_other_words_that_a_user_lacks_rights(
    valkey_binary: Path, caplog: pytest.LogCaptureFixture
):
    with RedisServer(valkey_binary) as valkey, valkey.client() as client:
        too_few_rights(client)
        beat = Beat(f"redis://beat:{QUOTED}@127.0.0.1:{valkey.port}/0", caplog)
        try:
            with pytest.raises(MisfireConfigError) as caught:
                beat.tick()
        finally:
            beat.close()
    (problem,) = caught.value.problems
    assert problem.endswith(
        "User beat has no permissions to run the 'hset' command. "
        "Give the user the rights that are listed in the documentation."
    )
