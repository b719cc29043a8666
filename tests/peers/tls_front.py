"""Python's ssl (OpenSSL) in front of a plain TCP port. Arguments: certificate, key, port behind.
Prints its own port."""

import socket
import ssl
import sys
import threading

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
behind = ("127.0.0.1", int(sys.argv[3]))


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(plain):
    try:
        client = context.wrap_socket(plain, server_side=True)
        router = socket.create_connection(behind)
    except OSError:
        plain.close()
        return
    threading.Thread(target=pump, args=(client, router), daemon=True).start()
    pump(router, client)


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
