"""librouteros speaks to the simulator. Arguments: port, login style (plain or old), and the CA
file if it is to speak TLS."""

import functools
import ssl
import sys

from librouteros import connect
from librouteros.exceptions import FatalError, TrapError
from librouteros.login import plain, token
from librouteros.query import And, Key, Or

port, style = int(sys.argv[1]), sys.argv[2]
method = {"plain": plain, "old": token}[style]


def session(password="s3cret"):
    more = {}
    if len(sys.argv) > 3:
        context = ssl.create_default_context(cafile=sys.argv[3])
        more["ssl_wrapper"] = functools.partial(context.wrap_socket, server_hostname="127.0.0.1")
    return connect(
        "127.0.0.1", "admin", password, port=port, login_method=method, encoding="utf-8", **more
    )


def refused(call, text, category=None):
    try:
        call()
    except TrapError as trap:
        assert trap.message == text, trap.message
        assert trap.category == category, trap.category
    else:
        raise AssertionError(f"not refused: {text}")


refused(
    lambda: session("wrong"),
    "invalid user name or password (6)" if style == "plain" else "cannot log in",
)

api = session()
queues = api.path("queue", "simple")
lists = api.path("ip", "firewall", "address-list")

# add gives the id back, print gives canonical values back
row = queues.add(name="q1", target="10.88.0.15", **{"max-limit": "10M/2M"})
assert row == "*1", row
name, limit, target = Key("name"), Key("max-limit"), Key("target")
found = list(queues.select(name, limit, target).where(name == "q1"))
assert found == [{"name": "q1", "max-limit": "10000000/2000000", "target": "10.88.0.15/32"}], found
queues.update(**{".id": row, "comment": "Вася $(x)\n!done"})
comment = Key("comment")
assert list(queues.select(comment)) == [{"comment": "Вася $(x)\n!done"}]

# queries with operations
for n in range(4):
    lists.add(list="l", address=f"10.0.0.{n}", comment=str(n % 2))
address = Key("address")
one = list(lists.select(address).where(And(comment == "1", address > "10.0.0.1")))
assert one == [{"address": "10.0.0.3"}], one
two = list(lists.select(address).where(Or(address == "10.0.0.0", address == "10.0.0.2")))
assert len(two) == 2, two
assert list(lists.select(address).where(address == "10.9.9.9")) == []

# refusals, after which the session goes on
refused(lambda: lists.add(list="l", address="10.0.0.1"), "failure: already have such entry")
refused(lambda: queues.remove("*99"), "no such item", 0)
refused(lambda: queues.add(frob="1"), "unknown parameter frob", 1)
refused(lambda: list(api("/no/such/print")), "no such command prefix", 0)

# words of every length class
for size in (100, 127 - 9, 128 - 9, 16383 - 9, 16384 - 9, 70_000, 0x200000 - 9, 3_000_000):
    text = "x" * size
    queues.update(**{".id": row, "comment": text})
    assert next(iter(queues.select(comment)))["comment"] == text, size

queues.remove(row)
lists.remove(*[r[".id"] for r in lists])
assert list(lists) == []
try:
    list(api("/quit"))
except FatalError as fatal:
    assert "terminated" in str(fatal), fatal
else:
    raise AssertionError("no !fatal on /quit")
print("ok")
