"""routeros-api speaks to the simulator, always with tags. Arguments: port, login style, and
`slow` to run five commands at once."""

import sys

import routeros_api
from routeros_api.exceptions import RouterOsApiCommunicationError

port, style = int(sys.argv[1]), sys.argv[2]


def pool(password="s3cret"):
    return routeros_api.RouterOsApiPool(
        "127.0.0.1", "admin", password, port, plaintext_login=style == "plain"
    )


def refused(call, text):
    try:
        call()
    except RouterOsApiCommunicationError as error:
        assert error.original_message == text.encode(), error.original_message
    else:
        raise AssertionError(f"not refused: {text}")


wrong = "invalid user name or password (6)" if style == "plain" else "cannot log in"
refused(lambda: pool("wrong").get_api(), wrong)

connection = pool()
api = connection.get_api()
queues = api.get_resource("/queue/simple")
if "slow" in sys.argv:
    promises = [queues.call_async("print") for _ in range(5)]
    for promise in promises:
        promise.get()
    connection.disconnect()
    print("ok")
    sys.exit(0)

added = queues.add(name="q1", target="10.88.0.15", max_limit="1M/1M")
row = added.done_message["ret"]
row = row.decode() if isinstance(row, bytes) else row
assert row == "*1", row
found = queues.get(name="q1")
assert len(found) == 1 and found[0]["max-limit"] == "1000000/1000000", found
assert found[0]["id"] == row, found
queues.set(id=row, comment="Вася $(x)\n!done")
assert queues.get(name="q1")[0]["comment"] == "Вася $(x)\n!done"
assert len(queues.get(name="other")) == 0

refused(lambda: queues.add(name="q1"), "failure: already have such name")
refused(lambda: queues.remove(id="*99"), "no such item")
refused(lambda: queues.add(frob="1"), "unknown parameter frob")

for size in (100, 118, 119, 16374, 16375, 70_000, 3_000_000):
    text = "x" * size
    queues.set(id=row, comment=text)
    assert queues.get(name="q1")[0]["comment"] == text, size

pings = api.get_binary_resource("/").call("ping", {"address": b"10.0.0.1", "count": b"3"})
assert len(pings) == 3, pings
queues.remove(id=row)
assert len(queues.get()) == 0
connection.disconnect()
print("ok")
