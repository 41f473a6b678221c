"""A pair of encryptors that move keys in both directions while their key managers are killed and cut off."""

import threading
from random import Random

import httpx
from daemons_support import Encryptor, encryptors, eventually, keys_in

from qnode.loopback.prepare import Endpoints


class Exchange:
    """Two encryptors that move keys in both directions, whatever happens to their key managers."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._ends = encryptors(endpoints)
        self._enough = threading.Event()
        self._waiting: list[_Batch] = []
        self.assigned: list[str] = []
        self.fetched: list[str] = []
        self.different: list[str] = []
        self.refused: list[str] = []
        self.broken = 0  # answers that broke off

    def stop(self) -> None:
        """Assign nothing further; `run` returns when all that is assigned was fetched."""
        self._enough.set()

    def run(self) -> None:
        """Assign at one end and fetch at the other."""
        alice, bob = self._ends
        rng = Random(3)
        while not self._enough.wait(0.1):  # the daemons need the processor as well
            for master, slave in ((alice, bob), (bob, alice)):
                self._assign(master, slave, rng.randint(1, 8))
            self._fetch_all()
        eventually(self._fetch_all, "the keys that were assigned")

    def _assign(self, master: Encryptor, slave: Encryptor, number: int) -> None:
        try:
            response = master.post("enc_keys", {"number": number})
        except httpx.TransportError:
            self.broken += 1  # keys that it had assigned may never be seen by anybody
            return
        if response.status_code == 503:
            return
        batch = _Batch(slave, keys_in(response))
        self.assigned += batch.keys
        self._waiting.append(batch)

    def _fetch_all(self) -> bool:
        """Fetch what was assigned; False while some of it could not be had."""
        for batch in list(self._waiting):
            try:
                response = batch.slave.fetch(list(batch.keys))
            except httpx.TransportError:
                batch.doubtful = True
                self.broken += 1
                continue
            if response.status_code == 503:
                continue
            self._waiting.remove(batch)
            if response.status_code == 200:
                fetched = keys_in(response)
                self.fetched += fetched
                self.different += [name for name, key in fetched.items() if batch.keys[name] != key]
            elif not batch.doubtful:  # else they were delivered to a connection that broke
                self.refused += batch.keys
        return not self._waiting


class _Batch:
    def __init__(self, slave: Encryptor, keys: dict[str, bytes]) -> None:
        self.slave = slave
        self.keys = keys
        self.doubtful = False
