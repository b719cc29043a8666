"""urllib speaks HTTPS to the simulator. Arguments: port, CA file, token."""

import json
import ssl
import sys
import urllib.error
import urllib.request

port, ca, token = sys.argv[1:4]
context = ssl.create_default_context(cafile=ca)


def call(method, path, body=None, headers=None):
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, None


assert call("GET", "/a")[0] == 404
assert call("PUT", "/a", {"x": 1})[0] == 201
assert call("PATCH", "/a", {"y": "ю"})[0] == 200
assert call("GET", "/a") == (200, {"x": 1, "y": "ю"})
assert call("DELETE", "/a")[0] == 204
event = {"cmd": "user_add", "user_id": 7}
key = {"Idempotency-Key": "k1"}
assert call("POST", "/events", event, key)[0] == 202
assert call("POST", "/events", event, key)[0] == 200
token = "wrong"
assert call("GET", "/a")[0] == 401
print("ok")
