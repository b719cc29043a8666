"""The wire format by librouteros, in the directory that is named: of the sentences in
`sentences.json` it writes the bytes into `theirs`, and the sentences that it reads in the bytes of
`ours` into `read.json`."""

import io
import json
import pathlib
import sys

from librouteros.protocol import ApiProtocol, encode_sentence


class Given:
    """A transport that holds all its bytes."""

    def __init__(self, given):
        self.left = io.BytesIO(given)
        self.size = len(given)

    def read(self, length):
        return self.left.read(length)

    def is_over(self):
        return self.left.tell() == self.size


def sentences(given):
    transport = Given(given)
    protocol = ApiProtocol(transport, encoding="utf-8")
    while not transport.is_over():
        first, rest = protocol.readSentence()
        yield [first, *rest]


place = pathlib.Path(sys.argv[1])
given = json.loads((place / "sentences.json").read_bytes())
written = b"".join(encode_sentence(*words, encoding="utf-8") for words in given)
(place / "theirs").write_bytes(written)
read = list(sentences((place / "ours").read_bytes()))
(place / "read.json").write_text(json.dumps(read))
