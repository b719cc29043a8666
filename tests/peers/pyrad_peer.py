"""pyrad speaks to the simulated NAS. Arguments: port, secret."""

import io
import sys

from pyrad import packet
from pyrad.client import Client, Timeout
from pyrad.dictionary import Dictionary

port, secret = int(sys.argv[1]), sys.argv[2].encode()
WORDS = """
ATTRIBUTE User-Name 1 string
ATTRIBUTE Filter-Id 11 string
ATTRIBUTE Error-Cause 101 integer
ATTRIBUTE Message-Authenticator 80 octets
"""


def ask(code, key=secret, **attributes):
    client = Client(server="127.0.0.1", coaport=port, secret=key, dict=Dictionary(io.StringIO(WORDS)), enforce_ma=True)
    client.timeout = 5
    client.retries = 1
    request = client.CreateCoAPacket(code=code)
    for name, value in attributes.items():
        request[name.replace("_", "-")] = value
    return client.SendPacket(request)


reply = ask(packet.CoARequest, User_Name="ivanov", Filter_Id="fast")
assert reply.code == packet.CoAACK, reply.code
assert "Message-Authenticator" in reply.keys(), reply.keys()

reply = ask(packet.DisconnectRequest, User_Name="nobody")
assert reply.code == packet.DisconnectNAK, reply.code
assert reply["Error-Cause"] == [503], reply["Error-Cause"]

reply = ask(packet.DisconnectRequest, User_Name="petrov")
assert reply.code == packet.DisconnectACK, reply.code

print("ok")
