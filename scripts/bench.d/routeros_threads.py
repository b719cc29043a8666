"""What a script of ten connections in ten threads does with librouteros: the changes that the
bench's daemon makes, one account after the other, with as few sentences. `blind` adds without a
look: one sentence, which a router refuses for who has an entry already. Arguments: port, change
(blind, user_redirect, user_redirect_cancel, user_rate_set), accounts, connections."""

import sys
import threading

from librouteros import connect
from librouteros.query import And, Key

port, change, accounts, connections = (
    int(sys.argv[1]),
    sys.argv[2],
    int(sys.argv[3]),
    int(sys.argv[4]),
)
ready = threading.Barrier(connections)
failed = []
number, listed, comment, name = Key(".id"), Key("list"), Key("comment"), Key("name")


def work(first):
    api = connect("127.0.0.1", "admin", "bench", port=port, timeout=60)
    lists, queues = api.path("ip", "firewall", "address-list"), api.path("queue", "simple")
    ready.wait()
    for n in range(first, accounts + 1, connections):
        mark = f"crb_{n}"
        address = f"10.{n // 65536}.{n // 256 % 256}.{n % 256}"
        if change == "blind":
            lists.add(list="crb_blind", address=address, comment=mark)
        elif change == "user_redirect":
            own = And(listed == "crb_negbal", comment == mark)
            if not list(lists.select(number).where(own)):
                lists.add(list="crb_negbal", address=address, comment=mark)
        elif change == "user_redirect_cancel":
            own = And(listed == "crb_negbal", comment == mark)
            lists.remove(*[row[".id"] for row in lists.select(number).where(own)])
        else:
            for row in queues.select(number).where(name == mark):
                queues.update(**{".id": row[".id"], "max-limit": "3M/3M"})


def guarded(first):
    try:
        work(first)
    except Exception as error:
        failed.append(error)
        ready.abort()


threads = [threading.Thread(target=guarded, args=(n,)) for n in range(1, connections + 1)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(f"librouteros: {failed[0]!r}" if failed else 0)
